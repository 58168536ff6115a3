"""Paths of a result on disk: checks before writing, and the files of an earlier result."""

import json
import pathlib
import re

from unclip_jax.core.checks import UserError
from unclip_jax.core.files import check_output

_RESULT_FILE = re.compile(r"\d{4,}\.(png|npz)")  # names in the folder of a result


def check(path: pathlib.Path) -> None:
    """Rejects a path to which `Result.save` could not write.

    Raises:
        UserError: it does not end in .png, it cannot be written, or the folder of the images
            contains some that no earlier result lists.
    """
    if path.suffix.lower() != ".png":
        raise UserError(f"out is {str(path)!r}; give a name that ends in .png.")
    for name in (path, path.with_suffix(".json")):
        check_output(name, flag="out")
    folder = path.with_suffix("")
    check_output(folder, folder=True, flag="out")
    recorded = set(earlier(path))
    unlisted = [
        file.name
        for file in sorted(folder.glob("*"))
        if _RESULT_FILE.fullmatch(file.name) and f"{path.stem}/{file.name}" not in recorded
    ]
    if unlisted:
        examples = ", ".join(unlisted[:3]) + (", ..." if len(unlisted) > 3 else "")
        raise UserError(
            f"{folder} holds {len(unlisted)} images or latents that {path.stem}.json does not "
            f"list ({examples}); remove them, or give another out."
        )


def earlier(path: pathlib.Path) -> list[str]:
    """Returns the files that the JSON beside `path` lists, relative to its folder."""
    images = [f"{path.stem}/{name}" for name in listed(path.with_suffix("")) or []]
    latents = [f"{name.removesuffix('.png')}.npz" for name in images]
    animations = [f"{path.stem}.{kind}" for kind in ("gif", "webp")] if images else []
    return [*images, *latents, *animations]


def listed(folder: pathlib.Path) -> list[str] | None:
    """Returns the image names that the JSON beside a folder lists; None without this file.

    The file is untrusted: names that no result has are left out.
    """
    try:
        record = json.loads(folder.with_name(f"{folder.name}.json").read_text("utf-8"))
        names = [str(name) for name in record["images"]]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    split = [name.rpartition("/") for name in names]
    images = [file for parent, _, file in split if parent == folder.name and _is_image(file)]
    return images if len(images) == len(names) else None


def _is_image(name: str) -> bool:
    return name.endswith(".png") and bool(_RESULT_FILE.fullmatch(name))
