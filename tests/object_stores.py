"""Object stores on loopback: Google's and Amazon's protocols, answered in this process."""

import collections
import contextlib
import email.parser
import http
import io
import os
import pathlib
import random
import threading
import time
from collections.abc import Iterator
from typing import Any
from unittest import mock

import fsspec
import pytest

from unclip_jax.core import ranged_reads, storage
from unclip_jax.core.storage import Url

# Read when gcsfs is imported: no second protocol, which the emulator does not support.
os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")

BUCKET = "bucket"


@contextlib.contextmanager
def environment(**values: str) -> Iterator[None]:
    """Sets environment variables, and restores them."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


@contextlib.contextmanager
def google() -> Iterator[str]:
    """Serves gs://bucket from memory; yields the address of the server."""
    pytest.importorskip("gcsfs")
    emulator = pytest.importorskip("gcp_storage_emulator.server")
    with conditional():
        yield from _serve(emulator)


@contextlib.contextmanager
def conditional() -> Iterator[None]:
    """Adds to the emulator what the store does with generations, and libraries rely on.

    Answers with content state the generation of the object, and requests with a condition are
    rejected where it does not hold (cloud.google.com/storage/docs/request-preconditions). Besides,
    content that ends in a carriage return is stored whole, and the last part of a resumable upload
    may be sent again (cloud.google.com/storage/docs/performing-resumable-uploads), as clients do
    that got no answer.
    """
    from gcp_storage_emulator import server
    from gcp_storage_emulator import storage as storages
    from gcp_storage_emulator.exceptions import NotFound
    from gcp_storage_emulator.handlers import objects

    def generation(storage, bucket: str, name: str) -> str:
        try:
            return storage.get_file_obj(bucket, name)["generation"]
        except NotFound:
            return "0"

    def checked(upload):
        def handle(request, response, storage):
            names = request.query.get("name") or [request.data["meta"].get("name")]
            expected = request.query.get("ifGenerationMatch")
            current = generation(storage, request.params["bucket_name"], names[0])
            if expected and expected[0] != current:
                response.status = http.HTTPStatus.PRECONDITION_FAILED
                return
            upload(request, response, storage)

        return handle

    def download(request, response, storage, *_):
        params = request.params
        current = generation(storage, params["bucket_name"], params["object_id"])
        response["x-goog-generation"] = current
        original(request, response, storage)

    uploads: dict[str, Any] = {}

    def upload(self, file_id):
        if file_id in uploads:
            self.resumable.setdefault(file_id, uploads[file_id])
        uploads[file_id] = first(self, file_id)
        return uploads[file_id]

    original, first = objects.download, storages.Storage.get_resumable_file_obj
    with (
        mock.patch.object(storages.Storage, "get_resumable_file_obj", upload),
        mock.patch.object(objects, "download", download),
        mock.patch.object(objects, "_media_upload", checked(objects._media_upload)),
        mock.patch.object(objects, "_multipart_upload", checked(objects._multipart_upload)),
        mock.patch.object(server, "BytesParser", _ExactParser),
    ):
        yield


class _ExactParser(email.parser.BytesParser):
    """A parser of uploads that leaves the last part, the content of an object, as it is.

    The library's takes a carriage return at its end for a part of the line's end.
    """

    def parsebytes(self, text: bytes, headersonly: bool = False) -> Any:
        message: Any = super().parsebytes(text, headersonly)
        boundary = b"--" + str(message.get_boundary()).encode()
        if message.get_content_type() == "multipart/related":
            line = b"\r\n" if boundary + b"\r\n" in text else b"\n"
            _, _, last = text.rpartition(line + boundary + b"--")[0].rpartition(boundary + line)
            content = last.partition(2 * line)[2]
            message.get_payload()[1].get_payload = lambda decode: content
        return message


def _serve(emulator: Any) -> Iterator[str]:
    server = emulator.create_server("127.0.0.1", 0, in_memory=True, default_bucket=BUCKET)
    server.start()
    host, port = server._api._httpd.socket.getsockname()
    address = f"http://{host}:{port}"
    try:
        with environment(
            STORAGE_EMULATOR_HOST=address,
            TENSORSTORE_GCS_HTTP_URL=address,
        ):
            forget_stores()
            yield address
    finally:
        forget_stores()
        server.stop()


@contextlib.contextmanager
def amazon() -> Iterator[str]:
    """Serves s3://bucket from memory; yields the address of the server."""
    s3fs = pytest.importorskip("s3fs")
    moto = pytest.importorskip("moto.server")
    server = moto.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    address = f"http://{host}:{port}"
    try:
        with environment(
            AWS_ACCESS_KEY_ID="x",
            AWS_SECRET_ACCESS_KEY="x",
            AWS_DEFAULT_REGION="us-east-1",
            AWS_ENDPOINT_URL=address,
        ):
            forget_stores()
            s3fs.S3FileSystem().makedirs(BUCKET, exist_ok=True)
            yield address
    finally:
        forget_stores()
        server.stop()


def upload(folder: pathlib.Path, url: Url) -> None:
    """Writes the files of a local folder."""
    for path in folder.iterdir():
        (url / path.name).upload(path)


def fail_some_reads(monkeypatch: pytest.MonkeyPatch, scheme: str, *, every: int) -> "Faults":
    """Makes every n-th request for the content of an object fail; returns the counter."""
    faults, cls = Faults(every=every), fsspec.get_filesystem_class(scheme)

    def faulty(original: Any) -> Any:
        def request(*args: Any, **options: Any) -> Any:
            faults()
            return original(*args, **options)

        return request

    monkeypatch.setattr(cls, "cat_file", faulty(cls.cat_file), raising=False)
    monkeypatch.setattr(ranged_reads, "read", faulty(ranged_reads.read))
    forget_stores()
    return faults


def forget_stores() -> None:
    """Makes fsspec open its file systems anew, for other servers and environments."""
    storage.forget_stores()
    for scheme in ("gs", "s3"):
        with contextlib.suppress(ImportError):
            fsspec.get_filesystem_class(scheme).clear_instance_cache()


class Faults:
    """Makes some requests of fsspec's asynchronous stores fail once, deterministically."""

    def __init__(self, *, every: int):
        self.every, self.failed, self._count = every, 0, 0
        self._lock = threading.Lock()

    def __call__(self) -> None:
        with self._lock:
            self._count += 1
            fail = self._count % self.every == 0
            self.failed += fail
        if fail:
            raise ConnectionResetError("the connection was reset")


@contextlib.contextmanager
def faulty_google(*, share: float, seed: int) -> Iterator[collections.Counter[str]]:
    """Serves gs://bucket with failures of every kind; yields how many of each there were.

    A `share` of the requests fails: the server is unavailable, has done what was asked but does not
    say so, or closes the connection. As many again are late.
    """
    from gcp_storage_emulator import server

    counts: collections.Counter[str] = collections.Counter()
    generator, lock = random.Random(seed), threading.Lock()
    original = server.Router.handle

    def handle(self: Any, method: str) -> None:
        handler = self._request_handler
        with lock:
            number, kind = generator.random(), generator.choice(["rejected", "unsaid", "closed"])
            kind = kind if number < share else "late" if number < 2 * share else "served"
            counts[kind] += 1
        if kind == "late":
            time.sleep(0.1)
        if kind in ("late", "served"):
            original(self, method)
            return
        handler.rfile = io.BytesIO(handler.rfile.read(int(handler.headers["content-length"] or 0)))
        if kind == "unsaid":
            answer, handler.wfile = handler.wfile, io.BytesIO()
            original(self, method)
            handler.wfile = answer
        if kind != "closed":
            handler.send_error(http.HTTPStatus.SERVICE_UNAVAILABLE)
        handler.close_connection = True

    with google(), mock.patch.object(server.Router, "handle", handle):
        yield counts
