"""How every command ends: one line for a mistake, a hint after ctrl-C, a traceback for a bug."""

import errno
import os
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from unclip_jax.core.checks import UserError

# What the file system can refuse without any fault of ours, and what to do about it.
_REFUSALS = {
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
    """Call `main()` and leave the process: the last line of every entry point.

    Exit status: what `main` returns (None = 0), 2 after a `UserError` or a refusal of the file
    system, 130 after ctrl-C. Set UNCLIP_TRACEBACK=1 to see where an error came from.
    """
    try:
        status = main()
    except KeyboardInterrupt:
        _say("interrupted: run the same command again to continue.")
        status = 130
    except BrokenPipeError:  # the reader of our output has gone: nobody is left to tell
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 0
    except (UserError, OSError) as error:
        if os.environ.get("UNCLIP_TRACEBACK") or not _is_users(error):
            raise
        _say(f"error: {_one_line(error)}")
        status = 2
    sys.exit(status)


def _is_users(error: UserError | OSError) -> bool:
    return isinstance(error, UserError) or error.errno in _REFUSALS


def _one_line(error: UserError | OSError) -> str:
    """The message without line breaks; for the file system's refusals, with what to do."""
    if isinstance(error, UserError):
        return " ".join(str(error).split())
    where = f": {error.filename}" if error.filename else ""
    return f"{error.strerror}{where}; {_REFUSALS[error.errno or 0]}."


def _say(line: str) -> None:
    sys.stdout.flush()
    sys.stderr.write(f"\n{line}\n" if line.startswith("interrupted") else f"{line}\n")
    sys.stderr.flush()
