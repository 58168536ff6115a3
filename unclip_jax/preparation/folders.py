"""Image folders with captions: Hugging Face's `metadata.jsonl`, or `name.txt` beside `name.png`."""

import json
import os
import pathlib
from collections.abc import Iterator

from unclip_jax.preparation.items import IMAGE_SUFFIXES, MAX_TEXT_BYTES, Blob, Item

METADATA = "metadata.jsonl"
CAPTION_FIELDS = ("text", "caption", "prompt")  # tried in this order when none is named


def list_folder(root: pathlib.Path, *, caption_field: str = "") -> list[Item]:
    """Lists the items below `root`, folder by folder in the order of names.

    A `metadata.jsonl` captions the files it names ("file_name", relative to itself); an image
    that none names takes its caption from the .txt file beside it. The key is the image's path
    below `root` without its suffix.
    """
    items: list[Item] = []
    captioned: set[str] = set()
    pictures: list[pathlib.Path] = []
    for folder, subfolders, files in os.walk(root):
        subfolders.sort()
        here = pathlib.Path(folder)
        if METADATA in files:
            for item in _read_metadata(here, root, caption_field):
                captioned.update([item.image.path] if item.image else [])
                items.append(item)
        names = (f for f in sorted(files) if f.lower().endswith(IMAGE_SUFFIXES) and f[0] != ".")
        pictures.extend(here / name for name in names)
    items += [list_picture(path, root=root) for path in pictures if str(path) not in captioned]
    return items


def list_picture(path: pathlib.Path, *, root: pathlib.Path) -> Item:
    """Returns one image with the .txt file beside it as caption."""
    key = path.relative_to(root).with_suffix("").as_posix()
    text = path.with_suffix(".txt")
    if not text.is_file():
        return Item(key, _whole(path), None, skip="no caption")
    return Item(key, _whole(path), _whole(text))


def _read_metadata(here: pathlib.Path, root: pathlib.Path, caption_field: str) -> Iterator[Item]:
    with (here / METADATA).open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                name = (here / METADATA).relative_to(root).as_posix()
                yield _metadata_item(line, here, root, caption_field, f"{name}:{number}")


def _metadata_item(
    line: bytes, here: pathlib.Path, root: pathlib.Path, caption_field: str, where: str
) -> Item:
    """Parses one line of metadata.jsonl; `where` names an invalid line."""
    try:
        facts = json.loads(line.decode("utf-8-sig"))
        name = facts["file_name"]
        path = here / name
    except UnicodeDecodeError:
        return Item(where, None, None, skip="bad UTF-8")
    except (ValueError, KeyError, TypeError):
        return Item(where, None, None, skip="bad metadata line")
    if pathlib.PurePath(name).is_absolute() or ".." in pathlib.PurePath(name).parts:
        return Item(where, None, None, skip="path outside the folder")
    key = path.relative_to(root).with_suffix("").as_posix()
    if not path.is_file():
        return Item(key, None, None, skip="missing file")
    fields = (caption_field,) if caption_field else CAPTION_FIELDS
    caption = next((facts[field] for field in fields if facts.get(field) is not None), None)
    if not isinstance(caption, str) or len(caption) > MAX_TEXT_BYTES:
        return Item(key, _whole(path), None, skip="no caption")
    return Item(key, _whole(path), caption)


def _whole(path: pathlib.Path) -> Blob:
    return Blob(str(path), 0, path.stat().st_size)
