import json
import os
import pathlib
import pickle
import shutil

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from unclip_jax.core import digests
from unclip_jax.core.checks import UserError
from unclip_jax.data import embeddings
from unclip_jax.data.embedding_writer import EmbeddingWriter
from unclip_jax.data.embeddings import EmbeddingSource

RNG = np.random.default_rng(0)
Z_IMG = (RNG.normal(size=(10, 3)) * [1, 2, 3] + [0, 5, -5]).astype(np.float32)
Z_TXT = RNG.normal(size=(10, 3)).astype(np.float32)
KEYS = [f"k{i}" for i in range(10)]
CAPTIONS = [f"caption {i} ä" for i in range(10)]


def add(writer: EmbeddingWriter, start: int, stop: int) -> None:
    rows = slice(start, stop)
    writer.add(KEYS[rows], CAPTIONS[rows], z_img=Z_IMG[rows], z_txt=Z_TXT[rows])


def write(directory: pathlib.Path, **options) -> EmbeddingSource:
    writer = EmbeddingWriter(directory, info={"clip": "abc"}, shard_size=4, **options)
    add(writer, 0, 3)
    add(writer, 3, 10)
    return writer.finish()


def foreign(directory: pathlib.Path, counts: list[int], *, name: str = "image_path") -> None:
    """A folder as clip-retrieval writes it: float16, unpadded numbers, its own column names."""
    first = 0
    for kind in ("img_emb", "metadata"):
        (directory / kind).mkdir(parents=True)
    for i, count in enumerate(counts):
        rows = slice(first, first + count)
        np.save(directory / "img_emb" / f"img_emb_{i}.npy", Z_IMG[rows].astype(np.float16))
        table = pyarrow.table({name: KEYS[rows], "caption": CAPTIONS[rows], "width": [1] * count})
        pyarrow.parquet.write_table(table, directory / "metadata" / f"metadata_{i}.parquet")
        first += count


def test_layout_is_clip_retrievals(tmp_path: pathlib.Path):
    write(tmp_path)
    names = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file())
    assert names == [
        *[f"img_emb/img_emb_000{i}.npy" for i in range(3)],
        *[f"metadata/metadata_000{i}.parquet" for i in range(3)],
        *[f"reports/reports_000{i}.json" for i in range(3)],
        "stats.json",
        *[f"text_emb/text_emb_000{i}.npy" for i in range(3)],
    ]
    np.testing.assert_array_equal(np.load(tmp_path / "img_emb/img_emb_0001.npy"), Z_IMG[4:8])
    table = pyarrow.parquet.read_table(tmp_path / "metadata/metadata_0001.parquet")
    assert table["key"].to_pylist() == KEYS[4:8]
    assert table["caption"].to_pylist() == CAPTIONS[4:8]


def test_rows_come_back(tmp_path: pathlib.Path):
    source = write(tmp_path)
    assert len(source) == 10
    assert source.fields == ("z_img", "z_txt")
    for i in range(10):
        record = source[i]
        assert (record["key"], record["caption"]) == (KEYS[i], CAPTIONS[i])
        np.testing.assert_array_equal(record["z_img"], Z_IMG[i])
        np.testing.assert_array_equal(record["z_txt"], Z_TXT[i])
    with pytest.raises(IndexError):
        source[10]


@pytest.mark.parametrize(("start", "stop"), [(0, 10), (3, 9), (4, 8), (5, 5)])
def test_ranges_cross_shards(tmp_path: pathlib.Path, start: int, stop: int):
    np.testing.assert_array_equal(write(tmp_path).vectors("z_img", start, stop), Z_IMG[start:stop])


@pytest.mark.parametrize("most", [10, 11, 1000])
def test_blocks_are_all_rows_in_order(tmp_path: pathlib.Path, most: int):
    blocks = list(write(tmp_path).blocks(most, size=3))
    assert [len(block["z_img"]) for block in blocks] == [3, 3, 3, 1]
    for field, rows in (("z_img", Z_IMG), ("z_txt", Z_TXT)):
        np.testing.assert_array_equal(np.concatenate([b[field] for b in blocks]), rows)


@pytest.mark.parametrize(("most", "starts"), [(9, [0, 3, 6]), (7, [0, 5]), (2, [0])])
def test_some_blocks_lie_evenly_over_the_rows(tmp_path: pathlib.Path, most: int, starts: list[int]):
    source = write(tmp_path)
    blocks = list(source.blocks(most, size=3))
    size = min(3, most)
    for block, start in zip(blocks, starts, strict=True):
        np.testing.assert_array_equal(block["z_img"], Z_IMG[start : start + size])


def test_half_precision_is_an_option(tmp_path: pathlib.Path):
    source = write(tmp_path, dtype="float16")
    assert np.load(tmp_path / "img_emb/img_emb_0000.npy").dtype == np.float16
    assert source[0]["z_img"].dtype == np.float32
    np.testing.assert_allclose(source[0]["z_img"], Z_IMG[0], rtol=1e-3)


def test_the_precision_on_disk_is_known(tmp_path: pathlib.Path):
    for name in ("float16", "float32"):
        assert write(tmp_path / name, dtype=name).dtype == np.dtype(name)


def test_rows_of_some_records_state_which(tmp_path: pathlib.Path):
    """Tables of embeddings that were joined by key have a column with the record's number."""
    assert write(tmp_path / "all").records() is None
    foreign(tmp_path / "some", [4, 6])
    numbers = [7, 3, 4, 20, 0, 1, 2, 9, 8, 30]
    for i, rows in enumerate((slice(0, 4), slice(4, 10))):
        columns = {"key": KEYS[rows], "caption": CAPTIONS[rows], "record": numbers[rows]}
        path = tmp_path / "some" / "metadata" / f"metadata_{i}.parquet"
        pyarrow.parquet.write_table(pyarrow.table(columns), path)
    (tmp_path / "some" / "stats.json").write_text('{"info": {"joined": "key"}}')
    source = EmbeddingSource(tmp_path / "some", verify=False)
    assert source.info() == {"joined": "key"}
    assert source.records().tolist() == numbers


def test_statistics_are_those_of_all_rows(tmp_path: pathlib.Path):
    stats = write(tmp_path).stats("z_img")
    exact = Z_IMG.astype(np.float64)
    assert stats.count == 10
    np.testing.assert_allclose(stats.mean, exact.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(stats.std, exact.std(axis=0), rtol=1e-12)
    norms = np.linalg.norm(exact, axis=1)
    np.testing.assert_allclose([stats.norm_mean, stats.norm_std], [norms.mean(), norms.std()])


def test_statistics_survive_a_large_offset(tmp_path: pathlib.Path):
    # mean of squares minus square of means would lose all digits here
    offset = (Z_IMG * 1e-3 + 1e4).astype(np.float32)
    writer = EmbeddingWriter(tmp_path, info={})
    writer.add(KEYS, CAPTIONS, z_img=offset, z_txt=Z_TXT)
    stats = writer.finish().stats("z_img")
    np.testing.assert_allclose(stats.std, offset.astype(np.float64).std(axis=0), rtol=1e-9)


def test_embeddings_of_clip_retrieval_are_read(tmp_path: pathlib.Path):
    foreign(tmp_path, [1] * 10)  # img_emb_9 comes before img_emb_10, not after img_emb_1
    source = EmbeddingSource(tmp_path)
    assert source.fields == ("z_img",)
    assert source.dim("z_img") == 3
    assert [source[i]["key"] for i in range(10)] == KEYS
    assert source[4]["caption"] == CAPTIONS[4]
    np.testing.assert_allclose(source.stats("z_img").mean, Z_IMG.mean(axis=0), atol=5e-3)
    assert source.info() == {}


def test_sources_can_be_sent_to_other_processes(tmp_path: pathlib.Path):
    again = pickle.loads(pickle.dumps(write(tmp_path)))
    np.testing.assert_array_equal(again[9]["z_txt"], Z_TXT[9])


def test_writing_goes_on_where_it_stopped(tmp_path: pathlib.Path):
    writer = EmbeddingWriter(tmp_path, info={"clip": "abc"}, shard_size=4)
    add(writer, 0, 7)  # the process ends with three rows unwritten
    del writer
    (tmp_path / "img_emb" / "img_emb_0001.npy").write_bytes(b"half a fi")  # killed while writing
    again = EmbeddingWriter(tmp_path, info={"clip": "abc"}, shard_size=4)
    assert again.written == 4
    add(again, again.written, 10)
    source = again.finish()
    assert [source[i]["key"] for i in range(10)] == KEYS
    np.testing.assert_array_equal(source.vectors("z_img", 0, 10), Z_IMG)


def test_finished_embeddings_can_be_opened_again_for_writing(tmp_path: pathlib.Path):
    write(tmp_path)
    again = EmbeddingWriter(tmp_path, info={"clip": "abc"}, shard_size=4)
    assert again.written == 10
    assert len(again.finish()) == 10
    assert EmbeddingSource(tmp_path).info() == {"clip": "abc"}


def test_complete_embeddings_are_not_added_to(tmp_path: pathlib.Path):
    write(tmp_path)
    with pytest.raises(UserError, match="is complete; choose another folder"):
        add(EmbeddingWriter(tmp_path, info={"clip": "abc"}), 0, 3)


def test_shards_of_the_other_precision_are_written_again(tmp_path: pathlib.Path):
    add(EmbeddingWriter(tmp_path, info={}, shard_size=4), 0, 4)
    writer = EmbeddingWriter(tmp_path, info={}, shard_size=4, dtype="float16")
    assert writer.written == 0
    add(writer, 0, 4)
    assert len(writer.finish()) == 4
    assert np.load(tmp_path / "img_emb" / "img_emb_0000.npy").dtype == np.float16


def test_a_shard_that_is_being_written_again_is_incomplete(tmp_path: pathlib.Path, monkeypatch):
    add(EmbeddingWriter(tmp_path, info={}, shard_size=4), 0, 4)
    again = EmbeddingWriter(tmp_path, info={}, shard_size=4, dtype="float16")
    monkeypatch.setattr(pyarrow.parquet, "write_table", None)
    with pytest.raises(TypeError):
        add(again, 0, 4)
    assert EmbeddingWriter(tmp_path, info={}, shard_size=4).written == 0


def test_shards_that_do_not_belong_are_rejected(tmp_path: pathlib.Path):
    writer = EmbeddingWriter(tmp_path, info={}, shard_size=4)
    add(writer, 0, 4)
    shutil.copy(*(tmp_path / "metadata" / f"metadata_000{i}.parquet" for i in (0, 1)))
    with pytest.raises(UserError, match="holds further shards, of an earlier version"):
        writer.finish()


def test_embeddings_too_large_for_float16(tmp_path: pathlib.Path):
    writer = EmbeddingWriter(tmp_path, info={}, dtype="float16")
    writer.add(KEYS, CAPTIONS, z_img=Z_IMG * 1e6, z_txt=Z_TXT)
    with pytest.raises(UserError, match="near 'k0' is too large for float16; store float32"):
        writer.finish()


def test_few_files_stay_open(tmp_path: pathlib.Path, monkeypatch):
    monkeypatch.setattr(embeddings, "_ARRAYS", 2)
    monkeypatch.setattr(embeddings, "_TABLES", 1)
    source = write(tmp_path)
    for index in [*range(10), *range(9, -1, -1)]:
        assert source[index]["key"] == KEYS[index]
        np.testing.assert_array_equal(source[index]["z_txt"], Z_TXT[index])
    assert source._array.cache_info().currsize == 2 and source._table.cache_info().currsize == 1


def test_half_written_embeddings_are_rejected(tmp_path: pathlib.Path):
    writer = EmbeddingWriter(tmp_path, info={}, shard_size=4)
    add(writer, 0, 7)
    with pytest.raises(UserError, match="is half-written; run the same .*embed"):
        EmbeddingSource(tmp_path)


def test_embeddings_of_another_clip_are_not_continued(tmp_path: pathlib.Path):
    write(tmp_path)
    with pytest.raises(UserError, match="embeddings with clip = 'abc', now it is 'xyz'"):
        EmbeddingWriter(tmp_path, info={"clip": "xyz"})


def test_lengths_must_agree(tmp_path: pathlib.Path):
    writer = EmbeddingWriter(tmp_path, info={})
    with pytest.raises(UserError, match="2 keys, 10 captions, 10 z_img, 10 z_txt"):
        writer.add(KEYS[:2], CAPTIONS, z_img=Z_IMG, z_txt=Z_TXT)


def test_embeddings_must_be_finite(tmp_path: pathlib.Path):
    writer = EmbeddingWriter(tmp_path, info={})
    broken = Z_IMG.copy()
    broken[3, 1] = np.nan
    with pytest.raises(UserError, match="near 'k0' is NaN or infinite"):
        writer.add(KEYS, CAPTIONS, z_img=broken, z_txt=Z_TXT)


def test_unknown_dtype(tmp_path: pathlib.Path):
    with pytest.raises(UserError, match="unknown dtype 'float8'"):
        EmbeddingWriter(tmp_path, info={}, dtype="float8")


def test_empty_folder(tmp_path: pathlib.Path):
    with pytest.raises(UserError, match="no embeddings in .*unclip_jax.embed"):
        EmbeddingSource(tmp_path)


def test_metadata_alone(tmp_path: pathlib.Path):
    foreign(tmp_path, [4])
    (tmp_path / "img_emb" / "img_emb_0.npy").unlink()
    with pytest.raises(UserError, match="has metadata but no img_emb"):
        EmbeddingSource(tmp_path)


def test_missing_shard(tmp_path: pathlib.Path):
    foreign(tmp_path, [4, 4, 2])
    (tmp_path / "img_emb" / "img_emb_2.npy").unlink()
    with pytest.raises(UserError, match="img_emb has 2 shards, metadata has 3"):
        EmbeddingSource(tmp_path)


def test_gap_in_the_numbers(tmp_path: pathlib.Path):
    foreign(tmp_path, [4, 4, 2])
    (tmp_path / "metadata" / "metadata_1.parquet").unlink()
    with pytest.raises(UserError, match=r"holds shards \[0, 2\]; they should count up from 0"):
        EmbeddingSource(tmp_path)


def test_rows_that_do_not_match(tmp_path: pathlib.Path):
    foreign(tmp_path, [4, 6])
    np.save(tmp_path / "img_emb" / "img_emb_1.npy", Z_IMG[:5])
    with pytest.raises(UserError, match=r"img_emb_1.npy has shape \[5, 3\], its metadata has 6"):
        EmbeddingSource(tmp_path)


def test_dimensions_that_do_not_match(tmp_path: pathlib.Path):
    foreign(tmp_path, [4, 6])
    np.save(tmp_path / "img_emb" / "img_emb_1.npy", np.zeros((6, 5), np.float32))
    with pytest.raises(UserError, match="dimension 5, the first shard 3"):
        EmbeddingSource(tmp_path)


def test_array_cut_short(tmp_path: pathlib.Path):
    foreign(tmp_path, [10])
    path = tmp_path / "img_emb" / "img_emb_0.npy"
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(UserError, match="img_emb_0.npy cannot be read"):
        EmbeddingSource(tmp_path)


def test_damaged_metadata(tmp_path: pathlib.Path):
    foreign(tmp_path, [10])
    (tmp_path / "metadata" / "metadata_0.parquet").write_bytes(b"PAR1 or not")
    with pytest.raises(UserError, match="metadata_0.parquet cannot be read"):
        EmbeddingSource(tmp_path)


def test_metadata_without_keys(tmp_path: pathlib.Path):
    foreign(tmp_path, [10], name="url")
    with pytest.raises(UserError, match="it needs 'key' or 'image_path'"):
        EmbeddingSource(tmp_path)


def test_embeddings_that_are_not_there(tmp_path: pathlib.Path):
    foreign(tmp_path, [10])
    with pytest.raises(UserError, match=r"has no z_txt \(text_emb\)"):
        EmbeddingSource(tmp_path).dim("z_txt")


def test_damaged_statistics(tmp_path: pathlib.Path):
    write(tmp_path)
    (tmp_path / "stats.json").write_text("{")
    with pytest.raises(UserError, match="stats.json cannot be read as JSON .*; delete it"):
        EmbeddingSource(tmp_path)


def edit(directory: pathlib.Path, old: str, new: str) -> None:
    path = directory / "stats.json"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))


@pytest.mark.parametrize(
    "change",
    [('"count": 10', '"count": 9'), ('"abc"', '"abd"'), ('"digest": "', '"digest": "0')],
)
def test_changed_statistics_are_rejected(tmp_path: pathlib.Path, change: tuple[str, str]):
    write(tmp_path)
    edit(tmp_path, *change)
    with pytest.raises(UserError, match="stats.json is damaged or was changed: its digest does"):
        EmbeddingSource(tmp_path)


@pytest.mark.parametrize("name", ["img_emb/img_emb_0001.npy", "metadata/metadata_0002.parquet"])
def test_a_changed_bit_in_any_shard_is_rejected_by_name(tmp_path, monkeypatch, name: str):
    write(tmp_path)
    content = bytearray((tmp_path / name).read_bytes())
    content[-9] ^= 1
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=f"the digest of {name} differs from the stored one"):
        EmbeddingSource(tmp_path)
    if name.endswith("npy"):
        monkeypatch.setenv(digests.SKIP, "1")
        assert len(EmbeddingSource(tmp_path)) == 10


def test_workers_do_not_compare_digests_again(tmp_path: pathlib.Path, monkeypatch):
    source = write(tmp_path)
    monkeypatch.setattr(digests, "check_files", None)
    assert len(pickle.loads(pickle.dumps(source))) == 10


def test_embeddings_of_version_0_1_0_have_no_digests(tmp_path: pathlib.Path):
    write(tmp_path)
    path = tmp_path / "stats.json"
    stored = json.loads(path.read_text())
    del stored["digest"], stored["files"]
    path.write_text(json.dumps(stored))
    assert EmbeddingSource(tmp_path).stats("z_img").count == 10
    path.write_text(json.dumps({**stored, "z_img": {"count": 10, "mean": "x"}}))
    with pytest.raises(UserError, match="stats.json is damaged; delete it"):
        EmbeddingSource(tmp_path).stats("z_img")


def test_embeddings_that_lost_their_origin_are_rejected(tmp_path: pathlib.Path):
    write(tmp_path)
    (tmp_path / "stats.json").unlink()
    with pytest.raises(UserError, match="lacks stats.json, which says where its embeddings"):
        EmbeddingSource(tmp_path)


def test_a_named_pipe_is_not_waited_for(tmp_path: pathlib.Path):
    foreign(tmp_path, [4, 6])
    path = tmp_path / "metadata" / "metadata_1.parquet"
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(UserError, match="is a named pipe; expected a regular file"):
        EmbeddingSource(tmp_path)
