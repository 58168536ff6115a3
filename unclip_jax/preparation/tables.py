"""Tables of captions: metadata.jsonl, CSV, TSV, JSON lists and objects, COCO's annotations."""

import csv
import io
import json
import os
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from unclip_jax.data import captions
from unclip_jax.preparation.items import IMAGE_SUFFIXES

SUFFIXES = (".jsonl", ".csv", ".tsv", ".json")
FILE_FIELDS = (
    *("file_name", "filename", "file", "image", "image_path", "image_file", "image_name"),
    *("filepath", "path", "img"),
)
MAX_BYTES = 2**30
_MAX_CELL = 2**24  # bytes of a CSV cell
_SEPARATORS = ",\t;|"

Row = dict[str, Any] | str  # fields and values, or the reason why a row cannot be used


class TableRow(NamedTuple):
    """The captions of one image in a table.

    Attributes:
        line: number of the row, from 1.
        name: file name of the image as written; "" if the row cannot be used.
        texts: its captions.
        problem: reason why the row cannot be used; "" = none.
        facts: the cells of the row that are numbers or text.
    """

    line: int
    name: str = ""
    texts: tuple[str, ...] = ()
    problem: str = ""
    facts: dict[str, Any] = {}  # noqa: RUF012


def is_metadata(path: pathlib.PurePath) -> bool:
    """True for the file names that Hugging Face reserves for tables."""
    return path.stem.lower() == "metadata" and path.suffix.lower() in SUFFIXES


def read_table(path: pathlib.Path, *, field: str = "") -> list[TableRow] | None:
    """Reads the rows of a table; None if the file is not one.

    A table has the names of image files in a column of `FILE_FIELDS`, and captions in the column
    `field` or one of `captions.FIELDS`. COCO's annotations become one row per image with all of its
    captions.

    Args:
        path: a file with one of `SUFFIXES`.
        field: column of the captions; "" = one of the usual names.
    """
    try:
        size = path.stat().st_size if path.is_file() else MAX_BYTES + 1
        data = path.read_bytes() if size <= MAX_BYTES else b""
    except OSError:
        return None
    suffix = path.suffix.lower()
    if suffix == ".jsonl":
        return checked(_json_lines(data), field, strict=is_metadata(path))
    if suffix == ".json":
        rows = _json_rows(data)
        return None if rows is None else checked(enumerate(rows, 1), field, strict=False)
    return checked(_csv_rows(data, tabs=suffix == ".tsv"), field, strict=is_metadata(path))


def candidates(table: pathlib.Path, name: str) -> Iterator[pathlib.Path]:
    """Yields the possible paths of a table's image, that beside the table first.

    COCO stores annotations/captions_val2014.json beside val2014/; others use a folder `images`.
    """
    here, last = table.parent, table.stem.rpartition("_")[2]
    for base in (here, here.parent):
        yield base / name
        for folder in ("images", "Images", last):
            yield base / folder / name


def resolve(table: pathlib.Path, name: str) -> pathlib.Path:
    """Returns the first candidate that exists, else the path beside the table."""
    places = candidates(table, name)
    return next((place for place in places if os.path.lexists(place)), table.parent / name)


def name_problem(name: Any) -> str:
    """Returns the reason why a file name in a table cannot be used; "" if it can."""
    if not isinstance(name, str):
        return "bad metadata line"
    path = pathlib.PurePath(name)
    if path.is_absolute() or ".." in path.parts:
        return "path outside the folder"
    if not path.name or "\0" in name:
        return "missing file"
    return ""


def checked(rows: Iterable[tuple[int, Row]], field: str, *, strict: bool) -> list[TableRow] | None:
    """Returns typed rows; None if no row names an image and its caption, unless `strict`.

    Args:
        rows: pairs of a row's number and its fields, or the reason why it cannot be used.
        field: name of the captions; "" = one of the usual names.
        strict: True returns the rows even if none names an image and its caption.
    """
    result, usable = [], strict
    for number, row in rows:
        if isinstance(row, str):
            result.append(TableRow(number, problem=row))
            continue
        name = next((row[key] for key in FILE_FIELDS if row.get(key) is not None), None)
        problem = name_problem(name)
        texts = captions.field_of(row, field)
        usable = usable or (bool(texts) and _names_image(name))
        facts = {key: cell for key, cell in row.items() if isinstance(cell, str | int | float)}
        result.append(TableRow(number, "" if problem else str(name), texts, problem, facts))
    return result if usable else None


def _names_image(name: Any) -> bool:
    return isinstance(name, str) and name.lower().endswith(IMAGE_SUFFIXES)


def _json_lines(data: bytes) -> Iterator[tuple[int, Row]]:
    for number, line in enumerate(data.split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode("utf-8-sig"))
        except UnicodeDecodeError:
            yield number, "bad UTF-8"
        except (ValueError, RecursionError):
            yield number, "bad metadata line"
        else:
            yield number, row if isinstance(row, dict) else "bad metadata line"


def _json_rows(data: bytes) -> Sequence[Row] | None:
    """Returns the rows of a JSON file; None if its structure is unknown."""
    try:
        content = json.loads(captions.decode(data))
    except (ValueError, RecursionError):  # a decoding error is a ValueError
        return None
    if isinstance(content, dict) and isinstance(content.get("images"), list):
        coco = isinstance(content.get("annotations"), list)
        return _coco(content) if coco else _json_list(content["images"])
    if isinstance(content, list):
        return _json_list(content)
    if isinstance(content, dict):
        named = {name: value for name, value in content.items() if _names_image(name)}
        return [_object_row(name, value) for name, value in named.items()] or None
    return None


def _json_list(rows: list[Any]) -> list[Row]:
    return [row if isinstance(row, dict) else "bad metadata line" for row in rows]


def _object_row(name: str, value: Any) -> dict[str, Any]:
    """Returns the row of one entry of a JSON object from file names to captions."""
    if isinstance(value, dict):
        return {**value, "file_name": name}
    return {"file_name": name, "text": value}


def _coco(content: dict[str, Any]) -> list[Row]:
    """Returns a row per image of COCO's annotations, with all of its captions."""
    texts: dict[Any, list[str]] = {}
    for entry in content["annotations"]:
        if isinstance(entry, dict) and isinstance(entry.get("image_id"), (int, str)):
            texts.setdefault(entry["image_id"], []).extend(captions.texts_of(entry.get("caption")))
    rows: list[Row] = []
    for entry in content["images"]:
        if not isinstance(entry, dict) or not isinstance(entry.get("id"), (int, str)):
            rows.append("bad metadata line")
        else:
            rows.append({"file_name": entry.get("file_name"), "text": texts.get(entry["id"], [])})
    return rows


def _csv_rows(data: bytes, *, tabs: bool) -> Iterator[tuple[int, Row]]:
    """Yields the rows of a CSV or TSV file with a header; separators are , ; | and tab."""
    csv.field_size_limit(_MAX_CELL)
    try:
        text = captions.decode(data)
    except UnicodeDecodeError:
        text = data.decode("utf-8", "surrogateescape")  # rows that are not UTF-8 are skipped later
    header, _, _ = text.partition("\n")
    separator = "\t" if tabs else max(_SEPARATORS, key=header.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
    names: list[str] | None = None
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error:
            yield reader.line_num, "bad metadata line"
            continue
        if names is None:
            names = [cell.strip().lower() for cell in cells]
        elif any(cells):
            last = len(names) - 1  # its cell may contain unquoted separators
            cells = [*cells[:last], separator.join(cells[last:])]
            stripped = (cell.strip() for cell in cells)
            yield reader.line_num, dict(zip(names, stripped, strict=False))
