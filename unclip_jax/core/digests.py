"""SHA-256 digests of files and JSON values, by which damaged or exchanged files are recognised.

Files are hashed in parallel: hashlib releases the interpreter's lock. A process reads a file once,
and again if the file system states a change: a run opens the same embeddings several times, and the
held-out ones for every evaluation. UNCLIP_SKIP_DIGESTS=1 skips the comparison of stored digests,
for very large files on slow storage.
"""

import concurrent.futures
import hashlib
import json
import os
import pathlib
import time
from collections.abc import Iterable, Mapping
from typing import Any

from unclip_jax.core.checks import UserError, listed
from unclip_jax.core.files import check_regular, content_state

SKIP = "UNCLIP_SKIP_DIGESTS"
_MIN_AGE = 2.0  # seconds since its last change, from which a further one gets another time
_digests: dict[tuple[int, ...], str] = {}  # by what the file system states of a file


def skipped() -> bool:
    """True if the environment asks not to compare digests."""
    return os.environ.get(SKIP, "") not in ("", "0")


def of_json(value: Any) -> str:
    """Returns the digest of a JSON value, independent of spacing and of the order of keys.

    Raises:
        ValueError: a number is not finite.
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def of_bytes(content: bytes) -> str:
    """Returns the digest of bytes."""
    return hashlib.sha256(content).hexdigest()


def of_file(path: pathlib.Path) -> str:
    """Returns the digest of a file.

    Raises:
        UserError: it is no regular file.
        OSError: it cannot be read.
    """
    check_regular(path)
    with path.open("rb") as file:
        facts = os.fstat(file.fileno())
        state = content_state(facts)
        if state in _digests:
            return _digests[state]
        unchanging = time.time() - max(facts.st_mtime, facts.st_ctime) > _MIN_AGE
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if unchanging:
        _digests[state] = digest
    return digest


def of_files(folder: pathlib.Path, names: Iterable[str]) -> dict[str, str]:
    """Returns the digest of every file, by its path relative to `folder`.

    Raises:
        UserError: one is no regular file.
        OSError: one cannot be read.
    """
    names = sorted(names)
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        return dict(zip(names, pool.map(lambda name: of_file(folder / name), names), strict=True))


def check_files(folder: pathlib.Path, stored: Mapping[str, str], *, advice: str) -> None:
    """Compares the files of a folder with their stored digests.

    Args:
        folder: of the files.
        stored: digest of every file, by its path relative to `folder`.
        advice: ends the message.

    Raises:
        UserError: files that are missing, not regular, unreadable or of other content, by name.
    """
    missing = [name for name in sorted(stored) if not (folder / name).exists()]
    if missing:
        raise UserError(
            f"{folder} is incomplete: it lacks {listed(missing, most=3, separator=', ')}; {advice}"
        )
    if skipped():
        return
    try:
        actual = of_files(folder, stored)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{error.filename} cannot be read ({reason}); {advice}") from None
    changed = [name for name in actual if actual[name] != stored[name]]
    if changed:
        raise UserError(
            f"{folder} is damaged or was changed: the digest of {_names(changed)} differs from "
            f"the stored one; {advice}"
        )


def _names(names: list[str]) -> str:
    return listed(names, most=3, separator=", ")
