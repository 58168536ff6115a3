import contextlib
import gc
import hashlib
import json
import os
import pathlib
import random
import resource
import signal
import struct
import time
from collections.abc import Iterator
from concurrent import futures

import pytest

from unclip_jax.core.checks import UserError
from unclip_jax.core.storage import Url
from unclip_jax.data import prepared, records
from unclip_jax.data.prepared import ShardSource


def test_records_come_back_exactly():
    example = {
        "image": bytes(range(256)) + b"\0{}",
        "caption": 'Zürich "東京" \n😀',
        "key": "a/b",
        "scene": "{}",
    }
    assert records.decode(records.encode(example)) == example
    assert records.decode(records.encode({**example, "image": b""}))["image"] == b""


def test_layout_is_as_documented():
    data = records.encode({"image": b"PIXELS", "caption": "c", "key": "k", "scene": ""})
    magic, size = struct.unpack_from("<4sI", data)
    assert magic == b"UCJ1"
    assert json.loads(data[8 : 8 + size]) == {"caption": "c", "key": "k", "scene": ""}
    assert data[8 + size :] == b"PIXELS"


@pytest.mark.parametrize("data", [b"", b"UCJ1", b"nonsense, but long enough", b"UCJ1\4\0\0\0{..."])
def test_foreign_bytes_are_rejected(data: bytes):
    with pytest.raises(UserError, match="not in this project's format"):
        records.decode(data)


def test_shards_hold_their_records_in_order(samples, tmp_path: pathlib.Path):
    path = tmp_path / "train-00000-of-00001.array_record"
    examples = [samples.record(i) for i in range(5)]
    summary = records.write_shard(path, iter(examples))
    source = ShardSource([path], [5])
    assert [source[i] for i in range(5)] == examples
    assert summary.written == records.count_records(path) == 5
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """Sixty shards of two records."""
    folder = tmp_path_factory.mktemp("many")
    paths = [folder / f"{i}.array_record" for i in range(60)]
    for number, path in enumerate(paths):
        entries = [
            {"image": b"", "caption": "", "key": str(2 * number + k), "scene": ""} for k in range(2)
        ]
        records.write_shard(path, entries)
    return paths


@contextlib.contextmanager
def descriptors(most: int) -> Iterator[None]:
    """At most `most` open files in this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def open_files() -> int:
    return len(os.listdir("/dev/fd"))


def test_more_shards_than_descriptors_are_read(many):
    before = open_files()
    with descriptors(before + 90):  # a reader has one or two, and 16 more are being opened
        source = ShardSource(many, [2] * 60)
        source.most_open = 16
        source.check()
        order = random.Random(0).choices(range(120), k=500)
        with futures.ThreadPoolExecutor(8) as pool:
            keys = list(pool.map(lambda index: source[index]["key"], order))
        assert keys == [str(index) for index in order]
        gc.collect()
        assert open_files() - before <= 2 * 16 + 2
        assert sorted(source._readers) != list(range(16))  # not the first for good


def test_the_file_read_longest_ago_is_closed(many):
    source = ShardSource(many, [2] * 60)
    source.most_open = 3
    for index in (0, 2, 4, 0, 6):  # shards 0, 1, 2, 0, 3
        _ = source[index]
    assert list(source._readers) == [2, 0, 3]


def test_one_thread_opens_a_file_and_others_wait(many, monkeypatch):
    source = ShardSource(many, [2] * 60)
    shards, original = [], source._open

    def slow(shard):
        shards.append(shard)
        time.sleep(0.05)
        return original(shard)

    monkeypatch.setattr(source, "_open", slow)
    with futures.ThreadPoolExecutor(8) as pool:
        assert [record["key"] for record in pool.map(source.__getitem__, [0, 1] * 4)] == [
            "0",
            "1",
        ] * 4
    assert shards == [0]


def test_indices_of_objects_are_bounded_by_their_memory(monkeypatch):
    monkeypatch.setattr(prepared, "_INDICES", 8 * 1000 * 20)
    paths = [Url(f"gs://bucket/{i}.array_record") for i in range(100)]
    assert ShardSource(paths, [1000] * 100).most_open == 20


@pytest.mark.parametrize(("num_open", "lack"), [(952, False), (953, True), (1000, True)])
def test_48_descriptors_must_be_left_to_open_a_file(monkeypatch, num_open, lack):
    """Three for each of 16 that are opened at once."""
    monkeypatch.setattr(prepared.resource, "getrlimit", lambda kind: (1000, 4000))
    monkeypatch.setattr(prepared.os, "listdir", lambda path: ["0"] * num_open)
    if not lack:
        return prepared._check_descriptors("a")
    with pytest.raises(
        UserError, match=f"cannot open a: .* may open 1000 files and has {num_open} o"
    ):
        prepared._check_descriptors("a")


@pytest.mark.parametrize(("limit", "most"), [(40, 16), (64, 16), (1024, 256), (10**6, 4096)])
def test_a_quarter_of_the_descriptors_is_for_local_files(monkeypatch, limit, most):
    monkeypatch.setattr(prepared.resource, "getrlimit", lambda kind: (limit, 10**6))
    assert ShardSource([pathlib.Path("a")], [1]).most_open == most
    assert ShardSource([], []).most_open == most


@pytest.mark.parametrize(("suffix", "row"), [("array_record", 8), ("tar_index", 24)])
def test_as_many_objects_are_open_as_have_indices_of_4_gib(suffix, row):
    paths = [Url(f"gs://bucket/{i}.{suffix}") for i in range(1000)]
    assert ShardSource(paths, [10**7] * 1000).most_open == 2**32 // (row * 10**7)
    assert ShardSource(paths, [10**9] * 1000).most_open == 16
    assert ShardSource(paths, [0] * 1000).most_open == 2**32 * 1000 // row


def test_a_lack_of_descriptors_is_not_taken_for_damage(many):
    source = ShardSource(many, [2] * 60)
    with descriptors(open_files() + 20), pytest.raises(UserError, match="raise the limit"):
        source.check()


@pytest.mark.parametrize("field", records.FIELDS)
def test_digest_covers_every_field(samples, field: str):
    record = samples.record(0)
    other = {**record, field: b"other" if field == "image" else "other"}
    assert records.digest(other) != records.digest(record)


def test_digest_is_of_content_alone(samples):
    record = samples.record(3)
    expected = hashlib.sha256(records.encode(record)).hexdigest()
    assert records.digest({**record, "z_img": [1.0]}) == records.digest(record) == expected


def test_hash_covers_every_byte_and_the_order(samples, tmp_path: pathlib.Path):
    examples = [samples.record(i) for i in range(3)]
    encoded = [records.encode(example) for example in examples]
    digest = hashlib.sha256()
    for data in encoded:
        digest.update(len(data).to_bytes(8, "little") + data)
    assert records.write_shard(tmp_path / "a", examples).sha256 == digest.hexdigest()
    assert records.write_shard(tmp_path / "b", examples[::-1]).sha256 != digest.hexdigest()


def test_shard_names_sort_by_number():
    names = [records.shard_name("train", i, 12) for i in range(12)]
    assert names[3] == "train-00003-of-00012.array_record"
    assert names == sorted(names)


def test_an_interrupted_shard_leaves_nothing(samples, tmp_path: pathlib.Path):
    def failing_records() -> Iterator[records.Record]:
        yield samples.record(0)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        records.write_shard(tmp_path / "shard", failing_records())
    assert not list(tmp_path.iterdir())


def test_a_shard_in_the_making_has_another_name(samples, tmp_path: pathlib.Path):
    def observing_records() -> Iterator[records.Record]:
        yield samples.record(0)
        assert not (tmp_path / "shard").exists()
        yield samples.record(1)

    records.write_shard(tmp_path / "shard", observing_records())
    assert (tmp_path / "shard").exists()


@pytest.fixture
def full_disk() -> Iterator[None]:
    """No file may grow beyond 100 kB: the kernel rejects, as it does on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


def test_a_disk_that_rejects_is_one_clear_line(samples, tmp_path: pathlib.Path, full_disk: None):
    big = {**samples.record(0), "image": bytes(50_000)}
    with pytest.raises(UserError, match="cannot write .*shard.* free space .*same command"):
        records.write_shard(tmp_path / "shard", (big for _ in range(20)))
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_not_there(samples, tmp_path: pathlib.Path):
    with pytest.raises(UserError, match="cannot write .*No such file or directory"):
        records.write_shard(tmp_path / "no" / "shard", [samples.record(0)])
