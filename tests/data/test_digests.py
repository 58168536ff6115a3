"""The content of a data set identifies it: not its path, and not its number of records."""

import hashlib
import pathlib
import pickle
import shutil
from collections.abc import Callable

import numpy as np
import pytest

from unclip_jax.core.checks import UserError
from unclip_jax.data import dataset_manifest, prepared, records, sources
from unclip_jax.data.dataset import content_digest
from unclip_jax.data.embedding_writer import EmbeddingWriter
from unclip_jax.data.records import Record

CHANGES: dict[str, Callable] = {
    "caption": lambda rows, samples: [{**rows[0], "caption": "another"}, *rows[1:]],
    "image": lambda rows, samples: [*rows[:-1], {**rows[-1], "image": samples.png(99)}],
    "key": lambda rows, samples: [{**rows[0], "key": "k9999"}, *rows[1:]],
    "order": lambda rows, samples: rows[::-1],
    "fewer": lambda rows, samples: rows[:-1],
    "more": lambda rows, samples: [*rows, samples.record(77)],
}


def write(folder: pathlib.Path, rows: list[Record]) -> prepared.ShardSource:
    """A prepared folder of these records in one shard."""
    folder.mkdir(parents=True, exist_ok=True)
    name = records.shard_name("train", 0, 1)
    summary = records.write_shard(folder / name, rows)
    shard = dataset_manifest.Shard(name, summary.written, summary.sha256)
    split = dataset_manifest.make_split("train", (shard,), plan="test", sources=("test",))
    dataset_manifest.write(folder, dataset_manifest.DatasetManifest().with_split(split))
    return prepared.open_split(folder, split="train")


@pytest.fixture
def rows(samples) -> list[Record]:
    return [samples.record(i) for i in range(6)]


@pytest.mark.parametrize("change", CHANGES)
def test_every_change_of_the_records_changes_the_digest(samples, rows, tmp_path, change: str):
    other = CHANGES[change](rows, samples)
    assert content_digest(rows) != content_digest(other)  # a source without a digest of its own
    stored = [write(tmp_path / name, each) for name, each in (("a", rows), ("b", other))]
    assert content_digest(stored[0]) != content_digest(stored[1])


@pytest.mark.parametrize(
    ("count", "indices"),
    [
        (1, [0]),
        (3, [0, 1, 2]),
        (256, range(256)),
        (511, range(0, 511, 2)),
        (2551, range(0, 2551, 10)),
    ],
)
def test_the_content_of_256_records_evenly_spaced_stands_for_a_source(samples, count, indices):
    """Of sources without a digest; the first and the last of them are among these."""
    read_now = []

    class Rows:
        def __len__(self):
            return count

        def __getitem__(self, index):
            read_now.append(index)
            return {**samples.record(0), "key": str(index)}

    digest = content_digest(Rows())
    assert read_now == list(indices)
    whole = hashlib.sha256(f"{count} records".encode())
    for index in indices:
        whole.update(records.digest({**samples.record(0), "key": str(index)}).encode())
    assert digest == whole.hexdigest()


def test_the_digest_is_the_same_wherever_the_data_lie(rows, tmp_path: pathlib.Path):
    digest = content_digest(write(tmp_path / "here", rows))
    shutil.copytree(tmp_path / "here", tmp_path / "there" / "data")
    elsewhere = prepared.open_split(tmp_path / "there" / "data", split="train")
    assert content_digest(elsewhere) == digest
    assert content_digest(pickle.loads(pickle.dumps(elsewhere))) == digest
    assert content_digest(list(rows)) == content_digest(rows)


def write_embeddings(folder: pathlib.Path, rows: list[Record], **info: str):
    writer = EmbeddingWriter(folder, info=info)
    vectors = np.ones((len(rows), 2), np.float32)
    names = ([row[field] for row in rows] for field in ("key", "caption"))
    writer.add(*names, z_img=vectors, z_txt=vectors)
    return writer.finish()


@pytest.mark.parametrize("change", CHANGES)
def test_embeddings_of_other_records_are_rejected(samples, rows, tmp_path, change: str):
    source, other = write(tmp_path / "a", rows), CHANGES[change](rows, samples)
    digest = content_digest(write(tmp_path / "b", other))
    result = write_embeddings(tmp_path / "e", other, data_digest=digest)
    with pytest.raises(UserError, match=f"computed on other records: .* {digest[:12]}, this data"):
        sources.JoinedSource(source, result)


def test_embeddings_of_the_same_records_join_wherever_these_lie(rows, tmp_path: pathlib.Path):
    digest = content_digest(write(tmp_path / "a", rows))
    result = write_embeddings(tmp_path / "e", rows, data_digest=digest)
    assert len(sources.JoinedSource(write(tmp_path / "b", rows), result)) == len(rows)
