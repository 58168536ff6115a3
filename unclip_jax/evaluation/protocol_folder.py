"""Folders of results, all of the same protocol."""

import json
import pathlib
from typing import Any

from unclip_jax.core import json_text
from unclip_jax.core.checks import UserError
from unclip_jax.core.files import write_atomically

PROTOCOL = "protocol.json"


def claim(
    out: pathlib.Path,
    protocol: dict[str, Any],
    *,
    first: bool,
    contents: str = "points",
    folder: str = "points",
) -> None:
    """Stores the protocol in a new folder, or compares it with the stored one.

    Args:
        out: the folder.
        protocol: JSON-ready.
        first: True for the process that writes.
        contents: name of the results in errors.
        folder: name of the folder of the results in `out`.

    Raises:
        UserError: the folder holds results of another protocol, or a damaged one.
    """
    path = out / PROTOCOL
    if path.is_file():
        stored = json_text.parse_object(
            path.read_bytes(), where=str(path), advice="delete the folder, or give another --out."
        )
        for name in sorted(protocol.keys() | stored.keys()):
            if protocol.get(name) != stored.get(name):
                raise UserError(
                    f"{out} holds {contents} of another protocol: {name} is {stored.get(name)!r} "
                    f"there and {protocol.get(name)!r} here; give another --out."
                )
    elif first:
        (out / folder).mkdir(parents=True, exist_ok=True)
        write(path, json.dumps(protocol, indent=2) + "\n")


def write(path: pathlib.Path, text: str) -> None:
    """Writes a complete file, and its folder if that is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, text)
