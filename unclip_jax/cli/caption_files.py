"""Captions from a file or from standard input, one per line."""

import pathlib
import sys
from collections.abc import Sequence

from unclip_jax.core.checks import UserError

STDIN = "-"
_MOST = 2**24  # bytes
_MARKS = (b"\xff\xfe", b"\xfe\xff")  # of UTF-16


def resolve(captions: Sequence[str], file: str | None) -> list[str]:
    """Returns the captions of a command line: its arguments, or the lines of a file.

    Args:
        captions: arguments of the command line; "-" alone = the lines of standard input.
        file: name of a file with a caption per line, "-" for standard input; None = none.

    Raises:
        UserError: both or neither are set, a caption is the name of a file, or the file cannot be
            read or has no caption.
    """
    if file is None and list(captions) == [STDIN]:
        file = STDIN
    elif file is not None and captions:
        raise UserError(
            "captions are given on the command line and by --captions; use only one of them."
        )
    if file is not None:
        return read(file)
    if not captions:
        raise UserError('no caption is given; write one, or --captions=FILE, or "-" for stdin.')
    for caption in captions:
        _check_no_file(caption)
    return list(captions)


def read(file: str) -> list[str]:
    """Reads the captions of a file, one per line; empty lines are left out.

    Accepts line ends of every system, a byte order mark, and UTF-16 with one.

    Raises:
        UserError: the file cannot be read, is not text or has no caption.
    """
    name = "standard input" if file == STDIN else file
    try:
        if file == STDIN:
            data = sys.stdin.buffer.read(_MOST + 1)
        elif not pathlib.Path(file).is_file():
            raise UserError(f"there is no file {file}; check --captions.")
        else:
            with pathlib.Path(file).open("rb") as opened:
                data = opened.read(_MOST + 1)
        if len(data) > _MOST:
            raise UserError(f"{name} is larger than {_MOST >> 20} MiB; give fewer captions.")
        text = data.decode("utf-16" if data.startswith(_MARKS) else "utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{name} cannot be read ({error}); save it as UTF-8.") from None
    captions = [line.strip() for line in text.splitlines() if line.strip()]
    if not captions:
        raise UserError(f"{name} holds no caption; write one per line.")
    return captions


def _check_no_file(caption: str) -> None:
    """Rejects a caption that is the name of a file, such as prompts.txt or @prompts.txt."""
    path = pathlib.Path(caption.removeprefix("@"))
    try:
        is_file = bool(path.suffix) and path.is_file()
    except (OSError, ValueError):  # too long, or with a NUL byte
        return
    if is_file:
        raise UserError(
            f"the caption {caption!r} is the name of a file; give --captions={path} to read a "
            "caption per line from it."
        )
