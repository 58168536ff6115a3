"""Small JSON files that are added to an export after it was written, each atomically.

They describe the parameters beside them, so a new export of the same stage starts without them.
"""

import json
import pathlib
from typing import Any

from unclip_jax.core.checks import UserError
from unclip_jax.core.files import write_atomically
from unclip_jax.handoff.load import locate

VARIANCE = "variance.json"


def write(directory: pathlib.Path, name: str, value: Any) -> pathlib.Path:
    """Writes `value` as JSON into the export and returns the file.

    Raises:
        UserError: the folder cannot be written.
    """
    path = locate(directory) / name
    try:
        write_atomically(path, json.dumps(value, indent=1, allow_nan=False) + "\n")
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror}; free some space or choose a writable folder."
        ) from None
    return path


def read(directory: pathlib.Path, name: str) -> dict[str, Any] | None:
    """Returns the object in the export's file `name`; None if there is no such file.

    Raises:
        UserError: it cannot be read, or holds no JSON object.
    """
    path = locate(directory) / name
    if not path.is_file():
        return None
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"could not read {path} ({error}); write it again or remove it.") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} holds {type(value).__name__}, not an object; write it again.")
    return value
