"""Ranged reads through TensorStore, against stores on loopback and stores that fail."""

import concurrent.futures

import pytest

from tests import object_stores
from unclip_jax.core import ranged_reads, storage
from unclip_jax.core.checks import UserError
from unclip_jax.core.storage import Url

CONTENT = bytes(range(256)) * 8


@pytest.fixture(scope="module", params=["gs", "s3"])
def url(request):
    store = {"gs": object_stores.google, "s3": object_stores.amazon}[request.param]
    with store():
        url = Url(f"{request.param}://{object_stores.BUCKET}/a folder/é.bin")
        url.write_bytes(CONTENT)
        yield url


def through_tensorstore(url: Url, start: int, stop: int) -> bytes | None:
    return ranged_reads.read(storage._store(url.scheme), url.text, start, stop)


@pytest.mark.parametrize("bounds", [(0, 1), (0, 2048), (255, 300), (2047, 2048)])
def test_ranges_are_those_of_the_object(url, bounds):
    start, stop = bounds
    assert through_tensorstore(url, start, stop) == CONTENT[start:stop]


def test_reads_send_nothing_through_fsspec(url, monkeypatch):
    store = type(storage._store(url.scheme))
    monkeypatch.setattr(store, "cat_file", lambda *_, **__: pytest.fail("fsspec was asked"))
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        parts = pool.map(lambda i: url.read_range(i, i + 3), range(0, 2000, 3))
    assert b"".join(parts) == CONTENT[:2001]


def test_what_tensorstore_cannot_read_is_left_to_fsspec(url):
    assert through_tensorstore(url.parent / "none", 0, 4) is None
    assert through_tensorstore(url, 2040, 2049) is None
    assert through_tensorstore(Url(f"{url.scheme}://B/x"), 0, 4) is None  # no name of a bucket
    with pytest.raises(UserError, match="none: no such object or bucket"):
        (url.parent / "none").read_range(0, 4)
    with pytest.raises(UserError, match="é.bin ends before byte 2049"):
        url.read_range(2040, 2049)


def test_the_environment_turns_tensorstore_off(url, monkeypatch):
    monkeypatch.setenv(ranged_reads.LIBRARY, "fsspec")
    assert through_tensorstore(url, 0, 4) is None
    assert url.read_range(0, 4) == CONTENT[:4]


def test_tensorstore_asks_the_server_of_gcsfs_or_none(monkeypatch):
    """Another server could have another object of the same name."""
    pytest.importorskip("gcsfs")
    with object_stores.environment(STORAGE_EMULATOR_HOST="http://127.0.0.1:9"):
        object_stores.forget_stores()
        assert ranged_reads._server(storage._store("gs")) is None
        monkeypatch.setenv("TENSORSTORE_GCS_HTTP_URL", "http://127.0.0.1:9")
        ranged_reads.forget()
        assert ranged_reads._server(storage._store("gs")) == ("gcs", "http://127.0.0.1:9", "")
    object_stores.forget_stores()


def test_amazon_is_asked_by_bucket_and_other_servers_by_address(monkeypatch):
    """The server is that of botocore, which also reads profiles."""
    pytest.importorskip("s3fs")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-3")
    for endpoint, region in (("", ""), ("http://127.0.0.1:9", "eu-west-3")):
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        object_stores.forget_stores()
        server = ranged_reads._server(storage._store("s3"))
        assert server is not None and (server.driver, server.region) == ("s3", region)
        assert server.address == (endpoint or "https://s3.eu-west-3.amazonaws.com")
    object_stores.forget_stores()


class Flaky:
    """Imitates a KvStore that rejects reads while it has `failures` left."""

    def __init__(self, failures: int):
        self.failures, self.calls = failures, 0

    def read(self, name, *, byte_range):
        self.calls += 1
        self.failures -= 1
        if self.failures >= 0:
            raise ValueError("PERMISSION_DENIED: no access")
        future: concurrent.futures.Future = concurrent.futures.Future()
        value = CONTENT[byte_range]
        future.set_result(type("Result", (), {"state": "value", "value": value}))
        return future


@pytest.mark.parametrize("failures", [1, 7, 8, 100])
def test_a_bucket_that_keeps_failing_is_left_to_fsspec(failures):
    store = Flaky(failures)
    bucket = ranged_reads.Bucket(store)
    reads = [bucket.read("x", 3, 9) for _ in range(20)]
    succeeds = failures < 8
    assert reads[-1] == (CONTENT[3:9] if succeeds else None)
    assert store.calls == (20 if succeeds else 8)


def test_single_failures_do_not_add_up():
    store = Flaky(0)
    bucket = ranged_reads.Bucket(store)
    for _ in range(20):
        store.failures = 1
        assert bucket.read("x", 0, 2) is None
        assert bucket.read("x", 0, 2) == CONTENT[:2]


def test_a_faulty_store_gives_the_same_bytes(monkeypatch):
    """A read that TensorStore gives up at the first failure is repeated by fsspec."""
    monkeypatch.setattr(storage, "PAUSE", 0.0)
    with object_stores.faulty_google(share=0.4, seed=1) as counts:
        url = Url(f"gs://{object_stores.BUCKET}/x")
        url.write_bytes(CONTENT)
        assert b"".join(url.read_range(i, i + 128) for i in range(0, 2048, 128)) == CONTENT
    assert counts["rejected"] + counts["closed"] + counts["unsaid"] > 3
