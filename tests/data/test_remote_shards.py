"""Prepared shards in object stores: read by ranges, equal to what the library reads locally."""

import pathlib

import numpy as np
import pytest
from array_record.python import array_record_module

from tests import object_stores
from unclip_jax.core import storage
from unclip_jax.core.checks import UserError
from unclip_jax.core.storage import LocalFile, Url
from unclip_jax.data import dataset_manifest, prepared, records, sources
from unclip_jax.data.examples import ExampleConfig
from unclip_jax.data.loader import LoaderConfig, make_loader
from unclip_jax.data.remote_shards import RemoteShard


@pytest.fixture(scope="module")
def folder(samples, tmp_path_factory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("shards")
    samples.write_folder(folder, [7, 0, 3, 9])
    return folder


@pytest.fixture(scope="module", params=["gs", "s3"])
def url(request, folder):
    store = {"gs": object_stores.google, "s3": object_stores.amazon}[request.param]
    with store():
        place = Url(f"{request.param}://{object_stores.BUCKET}/prepared")
        object_stores.upload(folder, place)
        yield place


# Records that end in the middle of a header of a block, at its ends, and over several blocks.
SIZES = (0, 1, 65_000, 400, 65_536 - 64, 65_496, 3, 65_535, 65_536, 200_000, 17)


@pytest.mark.parametrize("sizes", [SIZES, (5,), tuple(range(65_390, 65_470)), (30,) * 3000])
def test_records_are_those_of_the_library(tmp_path, sizes):
    path = tmp_path / "shard"
    generator = np.random.default_rng(0)
    contents = [generator.bytes(size) for size in sizes]
    writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1,uncompressed")
    for record in contents:
        writer.write(record)
    writer.close()
    shard = RemoteShard(LocalFile(path))
    assert shard.num_records() == len(contents)
    assert shard.read(list(range(len(contents)))) == contents


@pytest.mark.parametrize("size", [10, 70_000, 200_000])
@pytest.mark.parametrize("captions", [1, 900])
def test_records_are_read_without_their_images(tmp_path, monkeypatch, size, captions):
    """By one range of 4 KB, unless the captions are longer."""
    examples = [
        {
            "image": bytes([i]) * size,
            "caption": f"caption {i} é",
            "key": str(i),
            "scene": "",
            "captions": [f"caption {i} é"] * captions,
        }
        for i in range(30)
    ]
    records.write_shard(tmp_path / "shard", examples)
    source = prepared.ShardSource([tmp_path / "shard"], [30])
    source._readers[0] = RemoteShard(LocalFile(tmp_path / "shard"))
    ranges, read_range = [], LocalFile.read_range
    monkeypatch.setattr(
        LocalFile, "read_range", lambda f, a, b: (ranges.append(b - a), read_range(f, a, b))[1]
    )
    for i, record in enumerate(examples):
        ranges.clear()
        strings = source.without_image(i)
        assert {**strings, "image": record["image"]} == record
        assert source[i] == record
        whole = ranges.pop()
        expected = {1: [min(whole, 4096)], 900: [4096, whole]}[captions]
        assert ranges == expected


def test_stages_without_images_read_none(url):
    source = sources.open_source(str(url), split="train")
    example = ExampleConfig(fields=("caption", "key"))
    indices = []
    source.__class__ = type(
        "Noted",
        (prepared.ShardSource,),
        {
            "__getitem__": lambda self, i: (
                indices.append(i) or prepared.ShardSource.__getitem__(self, i)
            )
        },
    )
    loader = make_loader(source, example=example, config=LoaderConfig(batch_size=4))
    indices.clear()  # the loader looks at the first record
    next(loader)
    assert not indices


@pytest.mark.parametrize("options", ["group_size:4,uncompressed", "group_size:1,zstd"])
def test_shards_of_other_tools_are_rejected(tmp_path, options):
    writer = array_record_module.ArrayRecordWriter(str(tmp_path / "shard"), options)
    for number in range(8):
        writer.write(b"%d" % number * 1000)
    writer.close()
    with pytest.raises(UserError, match="cannot be read: .*(one by one|compressed)"):
        RemoteShard(LocalFile(tmp_path / "shard")).read([0])


@pytest.mark.parametrize(
    ("size", "reason"),
    [
        (0, "it was cut short"),
        (100, "it was cut short"),
        (65_535, "it was cut short"),
        (65_536, "a chunk is incomplete, compressed or of another kind"),  # whole blocks
        (65_537, "it was cut short"),
        (-1, "it was cut short"),
    ],
)
def test_a_shard_cut_short_is_rejected(folder, tmp_path, size, reason):
    content = (folder / "train-00000-of-00004.array_record").read_bytes()
    (tmp_path / "shard").write_bytes(content[:size])
    with pytest.raises(UserError, match=f"shard cannot be read: {reason}; copy it again"):
        RemoteShard(LocalFile(tmp_path / "shard"))


def batches(path, **options) -> list[dict]:
    source = sources.open_source(path, split="train")
    config = LoaderConfig(batch_size=4, seed=3, num_epochs=2, **options)
    example = ExampleConfig(fields=("image", "caption"), image_size=16, flip=True)
    return list(make_loader(source, example=example, config=config))


def test_batches_are_equal_to_those_of_the_local_folder(url, folder, monkeypatch):
    """With requests that fail now and then, in many threads."""
    monkeypatch.setattr(storage, "PAUSE", 0.0)
    faults = object_stores.fail_some_reads(monkeypatch, url.scheme, every=19)
    expected, actual = batches(folder), batches(str(url), workers=8)
    assert len(expected) == len(actual) == 9 and faults.failed > 1
    for ours, theirs in zip(actual, expected, strict=True):
        assert ours.keys() == theirs.keys()
        assert all(np.array_equal(ours[name], theirs[name]) for name in ours)


def test_an_object_deleted_under_a_run_is_named(url, folder):
    source = prepared.open_split(str(url), split="train")
    shard = url / "train-00002-of-00004.array_record"
    assert source[7]["key"] == "k0007"
    shard.unlink()
    with pytest.raises(UserError, match="train-00002.*no such object or bucket"):
        source[8]
    with pytest.raises(UserError, match="train-00002.* is missing, though manifest.json lists it"):
        prepared.open_split(str(url), split="train")
    shard.write_bytes((folder / shard.name).read_bytes())


def test_what_is_no_data_set(url):
    with pytest.raises(UserError, match="no data set at .*/none: it has no manifest.json"):
        dataset_manifest.read(url / "none")
    with pytest.raises(UserError, match="another kind than gs:// and s3://"):
        sources.open_dataset("hf://me/data")
    assert sources.is_dataset(str(url))


def test_the_tokenizer_is_copied_once(url, monkeypatch, tmp_path):
    monkeypatch.setenv(storage.CACHE, str(tmp_path))
    manifest = dataset_manifest.read(url)
    with_tokenizer = dataset_manifest.as_json(manifest.with_tokenizer("abc"))
    (url / dataset_manifest.FILE).write_bytes(with_tokenizer.encode())
    (url / "tokenizer" / "tokenizer.json").write_bytes(b"{}")
    folder = sources.open_dataset(str(url)).tokenizer_dir
    assert folder == tmp_path / "tokenizers" / "abc"
    assert (folder / "tokenizer.json").read_bytes() == b"{}"
    (url / "tokenizer" / "tokenizer.json").unlink()
    assert prepared.open_dataset(url).tokenizer_dir is None  # as for a local folder


def test_an_object_that_is_deleted_under_a_run(folder, google_store):
    """The run ends in one line, and its position leads on when the object is back."""
    place = google_store / "deleted"
    object_stores.upload(folder, place)
    expected = batches(folder)
    source = sources.open_source(str(place), split="train")
    config = LoaderConfig(batch_size=4, seed=3, num_epochs=2, workers=2, prefetch=1)
    example = ExampleConfig(fields=("image", "caption"), image_size=16, flip=True)
    loader = make_loader(source, example=example, config=config)
    results = [next(loader)]
    for name in place.names():
        if name.endswith("array_record"):
            (place / name).unlink()
    with pytest.raises(UserError, match=rf"^cannot read {place}/.*record: no such object") as error:
        results.extend(loader)
    assert "\n" not in str(error.value)
    object_stores.upload(folder, place)
    again = make_loader(source, example=example, config=config)
    again.set_state(loader.get_state())
    results.extend(again)
    assert len(results) == len(expected)
    for one, other in zip(results, expected, strict=True):
        np.testing.assert_array_equal(one["image"], other["image"])
        assert one["caption"].tolist() == other["caption"].tolist()
