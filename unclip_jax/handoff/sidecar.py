"""Small JSON files that are added to an export after it was written, each atomically.

They describe the parameters beside them, so a new export of the same stage starts without them.
"""

import json
import pathlib
from typing import Any

from unclip_jax.core import digests, json_text
from unclip_jax.core.checks import UserError
from unclip_jax.core.files import read_small, write_atomically
from unclip_jax.handoff.load import locate
from unclip_jax.handoff.manifest import DIGEST

VARIANCE = "variance.json"
ADVICE = "write it again or remove it."


def write(directory: pathlib.Path, name: str, value: dict[str, Any]) -> pathlib.Path:
    """Writes `value` as JSON with its digest into the export and returns the file.

    Raises:
        UserError: the folder cannot be written.
    """
    path = locate(directory) / name
    try:
        sealed = {**value, DIGEST: digests.of_json(value)}
        write_atomically(path, json.dumps(sealed, indent=1, allow_nan=False) + "\n")
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror}; free some space or choose a writable folder."
        ) from None
    return path


def read(directory: pathlib.Path, name: str) -> dict[str, Any] | None:
    """Returns the object in the export's file `name`; None if there is no such file.

    Raises:
        UserError: it cannot be read, holds no JSON object, or was changed.
    """
    path = locate(directory) / name
    if not path.is_file():
        return None
    try:
        text = read_small(path)
    except OSError as error:
        raise UserError(f"could not read {path} ({error}); {ADVICE}") from None
    value = json_text.parse_object(text, where=str(path), advice=ADVICE)
    stored = value.pop(DIGEST, None)  # none in files of version 0.1.0
    if stored is not None and not digests.skipped() and stored != digests.of_json(value):
        raise UserError(f"{path} is damaged or was changed: its digest does not fit; {ADVICE}")
    return value
