"""Runs the main function of a command: one line for a user's error, a traceback for a bug."""

import errno
import io
import os
import sys
import traceback
import warnings
from collections.abc import Callable
from typing import Any, NoReturn

from unclip_jax.core.checks import UserError

_BACKENDS = os.path.join("jax", "_src", "xla_bridge.py")  # where JAX starts its devices
_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
_FORMAT = warnings.formatwarning
# Errors of the file system that a user can fix, with advice.
_ADVICE = {
    errno.ENOSPC: "free space and run the same command again",
    errno.EDQUOT: "your quota is used up; free space and run the same command again",
    errno.EFBIG: "the file is too large for the file system; choose another folder",
    errno.EROFS: "choose a folder that can be written",
    errno.EACCES: "check its permissions or choose another path",
    errno.EPERM: "check its permissions or choose another path",
    errno.ENOTDIR: "a part of the path is a file; choose another path",
    errno.EISDIR: "it is a folder; give a file",
    errno.ENOENT: "check the path",
    errno.ENAMETOOLONG: "choose a shorter path",
}


def run(main: Callable[[], Any]) -> NoReturn:
    """Calls `main()` and exits; every entry point ends with it.

    The exit status is the result of `main` (None = 0), 2 after a `UserError`, an error of the file
    system that a user can fix, or a platform without devices, 130 after ctrl-C.
    UNCLIP_TRACEBACK=1 shows tracebacks.
    """
    warnings.filterwarnings("ignore", module=r"PIL\.")  # about notes in images; see image_codec
    warnings.formatwarning = _warning_text
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
    except Exception as error:
        line = _platform_line(error) or _one_line(error)
        if os.environ.get("UNCLIP_TRACEBACK") or line is None:
            raise
        _say(f"error: {line}")
        status = 2
    sys.exit(status)


def _warning_text(message: Any, category: Any, filename: str, *place: Any) -> str:
    """Formats a warning of this project as one line, others as Python does."""
    if filename.startswith(_PACKAGE):
        return f"warning: {message}\n"
    return _FORMAT(message, category, filename, *place)


def _platform_line(error: BaseException) -> str | None:
    """Returns the message of an error of JAX without a device; None for other errors.

    The error may be the cause of a `UserError`.
    """
    causes: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in causes:
        causes.append(cause)
        cause = cause.__cause__ or cause.__context__
    for cause in causes:
        frames = traceback.extract_tb(cause.__traceback__)
        if frames and frames[-1].filename.endswith(_BACKENDS):
            return _no_device(cause)
    return None


def _no_device(cause: BaseException) -> str:
    """Returns a message: the platform that JAX was to use, those that it finds, and what to do."""
    platform = os.environ.get("JAX_PLATFORMS") or "its own choice"
    reason = " ".join(str(cause).split(" (set JAX_PLATFORMS")[0].split()).rstrip(".")
    return (
        f"JAX cannot use the platform {platform} (JAX_PLATFORMS): {reason or 'no such device'}. "
        f"On this machine it finds {_platforms()}. Unset JAX_PLATFORMS, set it to one of these, or "
        "install the driver and the extra for that device (tpu or cuda13)."
    )


def _platforms() -> str:
    """Returns the platform of the devices that JAX finds by default."""
    import jax

    try:
        jax.config.update("jax_platforms", "")
        return ", ".join(sorted({device.platform for device in jax.devices()}))
    except Exception:  # nor any other
        return "none"


def _one_line(error: Exception) -> str | None:
    """Returns the message of an error that a user can fix, without line breaks; else None.

    Errors of the file system come with advice.
    """
    if isinstance(error, UserError):
        return " ".join(str(error).split())
    if not isinstance(error, OSError) or error.errno not in _ADVICE:
        return None
    where = f": {error.filename}" if error.filename else ""
    return f"{error.strerror}{where}; {_ADVICE[error.errno or 0]}."


def _say(line: str) -> None:
    """Prints a separate line to stderr, below progress bars that are still open."""
    if (tqdm := sys.modules.get("tqdm")) is not None:
        for bar in tuple(getattr(tqdm.tqdm, "_instances", ())):
            bar.close()
    sys.stdout.flush()
    sys.stderr.write(f"\n{line}\n" if line.startswith("interrupted") else f"{line}\n")
    sys.stderr.flush()
