"""Small JSON files that are added to an export after it was written, each atomically.

They describe the parameters beside them, so a new export of the same stage starts without them.
"""

import json
import os
import pathlib
from typing import Any

from unclip_jax.core import digests, json_text
from unclip_jax.core.checks import UserError
from unclip_jax.core.files import read_small, write_atomically
from unclip_jax.handoff.export import MANIFEST
from unclip_jax.handoff.load import file_digests_of, locate, read_manifest
from unclip_jax.handoff.manifest import DIGEST, to_json

VARIANCE = "variance.json"
ADVICE = "write it again or remove it."


def write(directory: pathlib.Path, name: str, value: dict[str, Any]) -> pathlib.Path:
    """Writes `value` as JSON with its digest into the export and returns the file.

    The manifest lists it from then on, so that its loss is noticed.

    Raises:
        UserError: the folder cannot be written.
    """
    path, digest = locate(directory) / name, digests.of_json(value)
    try:
        write_atomically(path, json.dumps({**value, DIGEST: digest}, indent=1) + "\n")
        if listed := _listed(directory):
            text = to_json(read_manifest(directory), {**listed, name: digest})
            write_atomically(locate(directory) / MANIFEST, text)
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
    path, listed = locate(directory) / name, _listed(directory).get(name)
    if listed is None and not os.path.lexists(path):
        return None
    try:
        text = read_small(path)
    except OSError as error:
        raise UserError(f"could not read {path} ({error}); {ADVICE}") from None
    value = json_text.parse_object(text, where=str(path), advice=ADVICE)
    stored = value.pop(DIGEST, None)  # none in files of version 0.1.0
    expected = {digest for digest in (stored, listed) if digest is not None}
    if not digests.skipped() and expected - {digests.of_json(value)}:
        raise UserError(f"{path} is damaged or was changed: its digest does not fit; {ADVICE}")
    return value


def _listed(directory: pathlib.Path) -> dict[str, str]:
    """Returns the digests in the manifest; {} without a manifest, or in one of version 0.1.0."""
    if not (locate(directory) / MANIFEST).is_file():
        return {}
    return file_digests_of(directory) or {}
