"""Object stores with latency, for benchmarks: in this process, or a server of Google's protocol.

The files below a local folder are the objects of gs://bucket.
"""

import asyncio
import contextlib
import json
import multiprocessing
import os
import pathlib
import re
import shutil
import threading
import time
import urllib.parse
from collections.abc import Iterator
from typing import Any, ClassVar

import fsspec
from fsspec.spec import AbstractFileSystem

from unclip_jax.core import storage

# Read when gcsfs is imported: disables a second protocol that the server does not support.
os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")

BUCKET = "bucket"
ADDRESSES = ("STORAGE_EMULATOR_HOST", "TENSORSTORE_GCS_HTTP_URL")  # of gcsfs and of TensorStore
_RANGE = re.compile(rb"(?i)\r\nrange: bytes=(\d+)-(\d+)")


class SlowStore(AbstractFileSystem):
    """A store in this process, without the cost of a protocol; counts requests and bytes."""

    protocol = "gs"
    root: ClassVar[pathlib.Path] = pathlib.Path()
    latency: ClassVar[float] = 0.0  # seconds
    requests: ClassVar[int] = 0
    read: ClassVar[int] = 0
    written: ClassVar[int] = 0
    _lock: ClassVar[threading.Lock] = threading.Lock()

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any):  # pyright: ignore[reportIncompatibleMethodOverride]
        """Returns an object, or a range of it."""
        first = start or 0
        with self._file(path).open("rb") as file:
            file.seek(first)
            data = file.read() if end is None else file.read(end - first)
        self._request(read=len(data))
        return data

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **_: Any) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Writes an object; with mode "create" only if it does not exist."""
        file = self._file(path, new=True)
        self._request(written=len(value))
        with file.open("xb" if mode == "create" else "wb") as stream:
            stream.write(value)

    def put_file(self, lpath: str, rpath: str, **_: Any) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Copies a local file to an object."""
        self._request(written=os.path.getsize(lpath))
        shutil.copyfile(lpath, self._file(rpath, new=True))

    def get_file(self, rpath: str, lpath: str, **_: Any) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Copies an object to a local file."""
        shutil.copyfile(self._file(rpath), lpath)
        self._request(read=os.path.getsize(lpath))

    def rm_file(self, path: str) -> None:
        """Removes an object."""
        self._request()
        self._file(path).unlink()

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        """Returns the size of an object."""
        self._request()
        file = self._file(path)
        kind = "file" if file.is_file() else "directory"
        if not file.exists():
            raise FileNotFoundError(path)
        return self._entry(file, kind)

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        """Lists the names directly below a path."""
        folder = self._file(path)
        if not folder.is_dir():
            raise FileNotFoundError(path)
        entries = [self._entry(p, "file" if p.is_file() else "directory") for p in folder.iterdir()]
        self._request(count=1 + len(entries) // 1000)  # a page has a thousand names
        return entries if detail else [entry["name"] for entry in entries]

    def find(self, path: str, *_: Any, **__: Any) -> dict[str, dict[str, Any]]:
        """Lists all objects below a path."""
        files = [file for file in self._file(path).rglob("*") if file.is_file()]
        self._request(count=1 + len(files) // 1000)
        return {str(file): self._entry(file, "file") for file in files}

    def _file(self, path: str, *, new: bool = False) -> pathlib.Path:
        file = self.root / str(self._strip_protocol(path))
        if new:
            file.parent.mkdir(parents=True, exist_ok=True)
        return file

    def _entry(self, file: pathlib.Path, kind: str) -> dict[str, Any]:
        facts = file.stat()
        name = str(file.relative_to(self.root))
        return {"name": name, "size": facts.st_size, "type": kind, "generation": facts.st_mtime_ns}

    def _request(self, *, count: int = 1, read: int = 0, written: int = 0) -> None:
        cls = type(self)
        with cls._lock:
            cls.requests += count
            cls.read += read
            cls.written += written
        if self.latency:
            time.sleep(self.latency)


@contextlib.contextmanager
def in_process(root: pathlib.Path, *, latency: float = 0.0) -> Iterator[type[SlowStore]]:
    """Maps gs:// URLs to files below `root`, with `latency` seconds per request."""
    before = fsspec.get_filesystem_class("gs")
    SlowStore.root, SlowStore.latency = root, latency
    SlowStore.requests = SlowStore.read = SlowStore.written = 0
    fsspec.register_implementation("gs", SlowStore, clobber=True)
    SlowStore.clear_instance_cache()
    storage.forget_stores()
    try:
        yield SlowStore
    finally:
        storage.forget_stores()
        fsspec.register_implementation("gs", before, clobber=True)


@contextlib.contextmanager
def served(root: pathlib.Path, *, latency: float) -> Iterator[str]:
    """Serves the files below `root` from another process; yields its address."""
    context = multiprocessing.get_context("spawn")
    parent, child = context.Pipe()
    process = context.Process(target=_serve, args=(str(root), latency, child), daemon=True)
    process.start()
    address = f"http://127.0.0.1:{parent.recv()}"
    before = {name: os.environ.get(name) for name in ADDRESSES}
    os.environ.update(dict.fromkeys(ADDRESSES, address))
    fsspec.get_filesystem_class("gs").clear_instance_cache()
    storage.forget_stores()
    try:
        yield address
    finally:
        storage.forget_stores()
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
        process.terminate()
        process.join()


def _serve(root: str, latency: float, connection: Any) -> None:
    async def main() -> None:
        answer = _Answer(pathlib.Path(root), latency)
        server = await asyncio.start_server(answer, "127.0.0.1", 0, backlog=1024)
        connection.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(main())


class _Answer:
    """Answers requests for the size or a range of an object, each after `latency` seconds."""

    def __init__(self, root: pathlib.Path, latency: float):
        self._root, self._latency = root, latency
        self._objects: dict[str, bytes] = {}

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                await asyncio.sleep(self._latency)
                writer.write(self._answer(head))
                await writer.drain()
        writer.close()

    def _answer(self, head: bytes) -> bytes:
        target = urllib.parse.urlsplit(head.split(b" ", 2)[1].decode())
        bucket, _, name = target.path.partition("/b/")[2].partition("/o/")
        name = f"{bucket}/{urllib.parse.unquote(name)}"
        if name not in self._objects:
            self._objects[name] = (self._root / name).read_bytes()
        data, status, kind = self._objects[name], b"200 OK", b"application/octet-stream"
        extra = b"x-goog-generation: 1\r\n"
        if "alt=media" not in target.query:
            facts = {"name": name, "bucket": bucket, "size": str(len(data)), "generation": "1"}
            data, kind = json.dumps(facts).encode(), b"application/json"
        elif match := _RANGE.search(head):
            size, data = len(data), data[int(match[1]) : int(match[2]) + 1]
            status = b"206 Partial Content"
            extra += b"content-range: bytes %b-%b/%d\r\n" % (match[1], match[2], size)
        return (
            b"HTTP/1.1 %b\r\ncontent-type: %b\r\n%bcontent-length: %d\r\n\r\n"
            % (status, kind, extra, len(data))
        ) + data
