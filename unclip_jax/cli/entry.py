"""Runs the main function of a command: one line for a mistake, a traceback for a bug."""

import errno
import io
import os
import sys
import warnings
from collections.abc import Callable
from typing import Any, NoReturn

from unclip_jax.core.checks import UserError

# Errors of the file system that a user can fix, and how.
_ADVICE = {
    errno.ENOSPC: "free space and run the same command again",
    errno.EDQUOT: "your quota is used up; free space and run the same command again",
    errno.EFBIG: "the file system takes no larger file; choose another folder",
    errno.EROFS: "choose a folder that can be written",
    errno.EACCES: "check its permissions or choose another path",
    errno.EPERM: "check its permissions or choose another path",
    errno.ENOTDIR: "a part of the path is a file; choose another path",
    errno.EISDIR: "it is a folder; give a file",
    errno.ENOENT: "check the path",
    errno.ENAMETOOLONG: "choose a shorter path",
}


def run(main: Callable[[], Any]) -> NoReturn:
    """Calls `main()` and exits: the last line of every entry point.

    The exit status is the result of `main` (None = 0), 2 after a `UserError` or an error of the
    file system that a user can fix, 130 after ctrl-C. UNCLIP_TRACEBACK=1 shows tracebacks.
    """
    warnings.filterwarnings("ignore", module=r"PIL\.")  # about notes in images; see image_codec
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # names of files need not be UTF-8
            stream.reconfigure(errors="backslashreplace")
    try:
        status = main()
    except KeyboardInterrupt:
        _say("interrupted: run the same command again to continue.")
        status = 130
    except BrokenPipeError:  # the reader of stdout has exited
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 0
    except (UserError, OSError) as error:
        if os.environ.get("UNCLIP_TRACEBACK") or not _can_be_fixed(error):
            raise
        _say(f"error: {_one_line(error)}")
        status = 2
    sys.exit(status)


def _can_be_fixed(error: UserError | OSError) -> bool:
    return isinstance(error, UserError) or error.errno in _ADVICE


def _one_line(error: UserError | OSError) -> str:
    """Returns the message without line breaks; for errors of the file system, with advice."""
    if isinstance(error, UserError):
        return " ".join(str(error).split())
    where = f": {error.filename}" if error.filename else ""
    return f"{error.strerror}{where}; {_ADVICE[error.errno or 0]}."


def _say(line: str) -> None:
    sys.stdout.flush()
    sys.stderr.write(f"\n{line}\n" if line.startswith("interrupted") else f"{line}\n")
    sys.stderr.flush()
