"""Ranged reads of objects through TensorStore, at less than half the CPU of fsspec's libraries.

gcsfs handles the requests of a process in one thread of Python, and s3fs keeps ten connections,
which limits a process to 300 reads/s at a latency of 30 ms. TensorStore sends its requests from
C++. It knows fewer kinds of credentials and reports failures in another way. Reads that it cannot
answer are therefore left to fsspec, whose errors `store_failures` explains.
"""

import functools
import os
from typing import Any, NamedTuple

AT_ONCE = 1024  # requests of a process; the number of threads is the limit in practice
SECONDS = 60.0  # for one read
FAILURES = 8  # in a row, after which a bucket is read by fsspec alone
LIBRARY = "UNCLIP_RANGED_READS"  # environment variable; "fsspec" turns TensorStore off

_GOOGLE = "https://storage.googleapis.com"
_GOOGLE_SERVER = "TENSORSTORE_GCS_HTTP_URL"  # as TensorStore reads it
_AMAZON = ".amazonaws.com"


class Server(NamedTuple):
    """The server of a file system of fsspec.

    Attributes:
        driver: of TensorStore.
        address: of the server.
        region: of a server that is not Amazon's; "" = the one of the bucket.
    """

    driver: str
    address: str
    region: str = ""


class Bucket:
    """Reads ranges of the objects of one bucket; threads may share it."""

    def __init__(self, kvstore: Any):
        """Wraps the `tensorstore.KvStore` of the bucket."""
        self._kvstore, self._failures = kvstore, 0

    def read(self, name: str, start: int, stop: int) -> bytes | None:
        """Reads bytes `start` to `stop`; None if that failed or there is no such object."""
        if self._failures >= FAILURES:
            return None
        try:
            future = self._kvstore.read(name, byte_range=slice(start, stop))
            result = future.result(timeout=SECONDS)
        except (ValueError, OSError, RuntimeError):  # TensorStore has no types of its own
            self._failures += 1
            return None
        self._failures = 0
        return result.value if result.state == "value" else None


def read(store: Any, url: str, start: int, stop: int) -> bytes | None:
    """Reads bytes `start` to `stop` of an object.

    Args:
        store: the file system of fsspec that reads the object otherwise.
        url: of the object.
        start: the first byte.
        stop: the byte after the last.

    Returns:
        The bytes; None if TensorStore cannot read them from the server of `store`.
    """
    if os.environ.get(LIBRARY) == "fsspec":
        return None
    server = _server(store)
    if server is None:
        return None
    bucket, _, name = store._strip_protocol(url).partition("/")
    opened = _open(bucket, server, os.getpid())
    return None if opened is None else opened.read(name, start, stop)


def forget() -> None:
    """Opens buckets anew at their next read."""
    _server.cache_clear()
    _open.cache_clear()


@functools.lru_cache
def _server(store: Any) -> Server | None:
    """Returns the server of a file system; None if TensorStore does not reach it."""
    library = type(store).__module__.partition(".")[0]
    if library == "gcsfs":
        address = os.environ.get(_GOOGLE_SERVER, _GOOGLE)
        return Server("gcs", address) if store.base.startswith(f"{address}/") else None
    if library == "s3fs":
        store.connect()
        facts = store.s3.meta  # after environment, profile and defaults
        region = "" if facts.endpoint_url.endswith(_AMAZON) else facts.region_name or "us-east-1"
        return Server("s3", facts.endpoint_url, region)
    return None


@functools.lru_cache
def _open(bucket: str, server: Server, process: int) -> Bucket | None:
    """Opens a bucket, once per process and server; None if TensorStore rejects its name."""
    del process
    import tensorstore  # at the first read, so that --help is quick

    spec: dict[str, Any] = {"driver": server.driver, "bucket": bucket}
    if server.region:
        spec |= {"endpoint": server.address, "aws_region": server.region}
    spec["context"] = {
        f"{server.driver}_request_concurrency": {"limit": AT_ONCE},
        f"{server.driver}_request_retries": {"max_retries": 0},  # fsspec repeats
    }
    try:
        opened: Any = tensorstore.KvStore.open(spec).result(timeout=SECONDS)
    except (ValueError, OSError, RuntimeError):
        return None
    return Bucket(opened)
