"""Object stores: URLs such as gs://bucket/run, read and written by whole objects or ranges.

`location` is the one place where a flag or a config key becomes a local path or a `Url`. A `Url` is
no path: there are no folders, no renames and no appending; an object exists completely or not at
all. The libraries behind it (extras `gcs` and `s3`) are imported at the first request, which is
also the first use of the network. Failures that may pass are repeated with growing pauses.
"""

import contextlib
import dataclasses
import errno
import functools
import logging
import os
import pathlib
import random
import re
import shutil
import time
from collections.abc import Callable, Iterable
from concurrent import futures
from typing import Any, NamedTuple, TypeVar

from unclip_jax.core import ranged_reads, store_failures
from unclip_jax.core.checks import UserError
from unclip_jax.core.store_failures import EXTRAS, TRIES

PAUSE = 1.0  # seconds before a request is repeated, doubled for each further time
CACHE = "UNCLIP_CACHE"  # names the folder of local copies
EMULATOR = "STORAGE_EMULATOR_HOST"  # as Google's own libraries read it

_AT_ONCE = 16  # objects that are copied at the same time
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)

Result = TypeVar("Result")


@dataclasses.dataclass(frozen=True)
class LocalFile:
    """A local file that is read by ranges, as a `Url` is."""

    path: pathlib.Path

    def size(self) -> int:
        """Returns its number of bytes."""
        return self.path.stat().st_size

    def read_range(self, start: int, stop: int, /) -> bytes:
        """Reads bytes `start` to `stop`."""
        with self.path.open("rb") as file:
            file.seek(start)
            return file.read(stop - start)

    def __str__(self) -> str:
        return str(self.path)


class StoredObject(NamedTuple):
    """An entry of a listing; `version` differs where the content does."""

    size: int
    version: str


@dataclasses.dataclass(frozen=True)
class Url:
    """An object in a store, or the common beginning of the names of several, like a folder.

    Every method raises a `UserError` of one line: no such object or bucket, no credentials, no
    permission, a library that is not installed, or a store that does not answer.
    """

    text: str

    def __str__(self) -> str:
        return self.text

    def __truediv__(self, name: str) -> "Url":
        return Url(f"{self.text.rstrip('/')}/{name}")

    @property
    def scheme(self) -> str:
        """The part before "://"."""
        return self.text.partition("://")[0]

    @property
    def name(self) -> str:
        """The last part of the name."""
        return self.text.rstrip("/").rpartition("/")[2]

    @property
    def parent(self) -> "Url":
        """The name without its last part."""
        return Url(self.text.rstrip("/").rpartition("/")[0])

    def exists(self) -> bool:
        """True if there is an object of this name."""
        return self._request("read", lambda store: bool(store.isfile(self.text)))

    def size(self) -> int:
        """Returns the number of bytes of the object."""
        return self._request("read", lambda store: int(store.info(self.text)["size"]))

    def read_bytes(self) -> bytes:
        """Reads the whole object."""
        return self._request("read", lambda store: store.cat_file(self.text))

    def read_if_present(self) -> bytes | None:
        """Reads the whole object; None if there is none."""

        def read(store: Any) -> bytes | None:
            with contextlib.suppress(FileNotFoundError):
                return store.cat_file(self.text)
            return None

        return self._request("read", read)

    def read_range(self, start: int, stop: int, /) -> bytes:
        """Reads bytes `start` to `stop` in one request."""
        if start == stop:
            return b""

        def attempt(store: Any) -> bytes:
            data = ranged_reads.read(store, self.text, start, stop)
            return store.cat_file(self.text, start=start, end=stop) if data is None else data

        data = self._request("read", attempt)
        if len(data) != stop - start:
            raise UserError(
                f"{self} ends before byte {stop}: it was cut short or replaced; copy it again."
            )
        return data

    def write_bytes(self, content: bytes) -> None:
        """Writes the whole object, which appears when it is complete."""
        self._request("write", lambda store: store.pipe_file(self.text, content))

    def create(self, content: bytes) -> None:
        """Writes the object if there is none, and leaves one that exists as it is."""

        def attempt(store: Any) -> None:
            with contextlib.suppress(FileExistsError):
                store.pipe_file(self.text, content, mode="create")

        self._request("write", attempt)

    def upload(self, path: pathlib.Path) -> None:
        """Writes the object from a local file."""
        self._request("write", lambda store: store.put_file(str(path), self.text))

    def unlink(self) -> None:
        """Removes the object, if there is one."""

        def remove(store: Any) -> None:
            with contextlib.suppress(FileNotFoundError):
                store.rm_file(self.text)

        self._request("remove", remove)

    def move(self, target: "Url") -> None:
        """Gives all objects below this name names below `target`; each is copied, then removed."""

        def copy_and_remove(store: Any) -> None:
            store.copy(self.text, target.text, recursive=True)
            store.rm(self.text, recursive=True)

        self._request("move", copy_and_remove)

    def download(self, path: pathlib.Path) -> None:
        """Writes the object to a local file, which is complete or absent."""
        partial = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._request("read", lambda store: store.get_file(self.text, str(partial)))
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)

    def names(self) -> list[str]:
        """Returns the last parts of the names directly below this one, sorted."""

        def listing(store: Any) -> list[str]:
            try:
                paths = store.ls(self.text, detail=False)
            except FileNotFoundError:
                self._check_bucket(store)
                return []
            parts = {path.rstrip("/").rpartition("/")[2] for path in paths}
            return sorted(parts - {"", self.name} if self.name in parts else parts - {""})

        return self._request("list", listing)

    def files(self) -> dict[str, int]:
        """Returns the sizes of all objects below this name, by the rest of their names, sorted."""
        return {name: stored.size for name, stored in self.objects().items()}

    def objects(self) -> dict[str, StoredObject]:
        """Returns all objects below this name, by the rest of their names, sorted."""

        def listing(store: Any) -> dict[str, StoredObject]:
            root = f"{store._strip_protocol(self.text).rstrip('/')}/"
            infos = store.find(self.text, detail=True).values()
            if not infos:
                self._check_bucket(store)
            objects = {
                info["name"].removeprefix(root): StoredObject(int(info["size"]), _version(info))
                for info in infos
                if info["type"] == "file" and info["name"].startswith(root)
            }
            return dict(sorted(objects.items()))

        return self._request("list", listing)

    def _check_bucket(self, store: Any) -> None:
        """Raises FileNotFoundError if the bucket is missing."""
        bucket = f"{self.scheme}://{store._strip_protocol(self.text).partition('/')[0]}"
        if not store.exists(bucket):
            raise FileNotFoundError(bucket)

    def _request(self, verb: str, call: Callable[[Any], Result]) -> Result:
        """Sends a request to the store, again while it fails for reasons that may pass."""
        try:
            return repeated(lambda: call(_store(self.scheme)))
        except UserError:
            raise
        except Exception as error:
            raise UserError(
                f"cannot {verb} {self}: {store_failures.reason(error, self.scheme)}"
            ) from error


RangedFile = LocalFile | Url
Location = pathlib.Path | Url


def location(text: str | os.PathLike[str]) -> Location:
    """Returns what a flag or a config key names: a local path, or a URL of a supported scheme.

    Raises:
        UserError: a URL of another scheme.
    """
    text = os.fspath(text)
    match = _URL.fullmatch(text)
    if match is None:
        return pathlib.Path(text)
    scheme, rest = match[1].lower(), match[2].strip("/")
    if scheme not in EXTRAS:
        raise UserError(
            f"{text!r} is a URL of another kind than {' and '.join(f'{s}://' for s in EXTRAS)}; "
            "copy the files to one of these, or to a local folder, and give that."
        )
    if not rest:
        raise UserError(f"{text!r} names no bucket; give {scheme}://BUCKET/NAME.")
    return Url(f"{scheme}://{rest}")


def is_url(text: str | os.PathLike[str]) -> bool:
    """True if `text` is a URL of any scheme."""
    return _URL.fullmatch(os.fspath(text)) is not None


def cache_folder() -> pathlib.Path:
    """Returns the local folder of copies of objects: UNCLIP_CACHE, or one in the home."""
    stated = os.environ.get(CACHE)
    return pathlib.Path(stated) if stated else pathlib.Path("~/.cache/unclip_jax").expanduser()


def local_copy(
    folder: Url,
    names: Iterable[str],
    *,
    key: str,
    check: Callable[[pathlib.Path], None] | None = None,
) -> pathlib.Path:
    """Returns a local copy of the objects `names` below `folder`, which is made once.

    Args:
        folder: of the objects.
        names: their names below it.
        key: folder of the copy in `cache_folder`, with a digest of the content in it.
        check: raises an error if the copy is not what it should be; it is not kept then.

    Raises:
        UserError: a name leads out of the folder, an object cannot be read, or the copy cannot be
            written.
    """
    target = cache_folder() / key
    if target.is_dir():
        return target
    names = list(names)
    if any(".." in pathlib.PurePosixPath(name).parts or name.startswith("/") for name in names):
        raise UserError(f"a file list of {folder} leads out of it; it is damaged, copy it again.")
    draft = target.with_name(f"{target.name}.{os.getpid()}.tmp")
    try:
        with futures.ThreadPoolExecutor(_AT_ONCE) as pool:
            for _ in pool.map(lambda name: (folder / name).download(draft / name), names):
                pass
        if check is not None:
            check(draft)
        _rename(draft, target)
        return target
    except OSError as error:
        raise UserError(
            f"cannot copy {folder} to {target} ({error.strerror}); free space, or name another "
            f"folder with {CACHE}."
        ) from None
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _rename(draft: pathlib.Path, target: pathlib.Path) -> None:
    """Renames a folder to one that may exist in the meantime, with the same content."""
    try:
        draft.rename(target)
    except OSError as error:
        if error.errno != errno.ENOTEMPTY:
            raise


def repeated(call: Callable[[], Result]) -> Result:
    """Calls a request until it succeeds, `TRIES` times at most, with growing pauses.

    Raises:
        Exception: of the last try, or one that a repetition cannot mend.
    """
    for number in range(TRIES):
        try:
            return call()
        except Exception as error:
            if store_failures.is_final(error) or number == TRIES - 1:
                raise
        time.sleep(PAUSE * 2**number * (0.5 + random.random()))  # so that hosts do not march
    raise AssertionError


def _store(scheme: str) -> Any:
    """Returns the file system of a scheme."""
    return _open_store(scheme, os.environ.get(EMULATOR, ""), os.getpid())


def forget_stores() -> None:
    """Opens stores anew at their next request, for another server or account."""
    _open_store.cache_clear()
    ranged_reads.forget()


@functools.lru_cache
def _open_store(scheme: str, emulator: str, process: int) -> Any:
    """Opens the file system of a scheme, once per process."""
    del process
    import fsspec  # at the first request, so that --help is quick
    from fsspec.config import conf

    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # failures are reported here, once
    # Orbax opens stores by itself, and must see what other processes and this module change.
    conf.setdefault(scheme, {})["use_listings_cache"] = False
    anonymous = {"token": "anon"} if scheme == "gs" and emulator else {}
    return fsspec.filesystem(scheme, **anonymous)


def _version(info: dict[str, Any]) -> str:
    """Returns what the store states of an object that changes with its content."""
    names = ("generation", "ETag", "etag", "md5Hash", "mtime", "LastModified")
    return next((str(info[name]) for name in names if info.get(name)), "")
