"""A folder of everything that goes wrong at once: nothing is fatal, and everything is counted."""

import collections
import json
import os
import pathlib
import re
from collections.abc import Callable

import numpy as np
import pytest

from tests.preparation import hostile
from tests.preparation.hostile import image, run_prepare, write
from tests.preparation.test_hostile_inputs import NAMES, PLACES, UNREAD, parquet, place
from unclip_jax.core.checks import UserError

Maker = Callable[
    [pathlib.Path, str, np.random.Generator], str
]  # "" for a record, else the reason of its rejection


def write_captioned(
    folder: pathlib.Path, name: str, data: bytes, caption: bytes | str = "x"
) -> None:
    write(folder, {name: data, f"{os.path.splitext(name)[0]}.txt": caption})


def good(folder: pathlib.Path, name: str, rng: np.random.Generator) -> str:
    suffix, kind = (("png", "PNG"), ("jfif", "JPEG"), ("avif", "AVIF"), ("tif", "TIFF"))[
        rng.integers(4)
    ]
    write_captioned(folder, f"{name}.{suffix}", image(int(rng.integers(99)), kind))
    return ""


def with_notes(folder: pathlib.Path, name: str, rng: np.random.Generator) -> str:
    pngs = [*hostile.BROKEN_NOTES.values()]
    write_captioned(folder, f"{name}.png", pngs[rng.integers(len(pngs))]())
    return ""


def unread(folder: pathlib.Path, name: str, rng: np.random.Generator) -> str:
    kinds = sorted(UNREAD)
    kind = kinds[rng.integers(len(kinds))]
    data, reason = UNREAD[kind]
    write_captioned(folder, f"{name}{os.path.splitext(kind)[1]}", data)
    return reason


def no_file(folder: pathlib.Path, name: str, rng: np.random.Generator) -> str:
    kinds = [kind for kind in sorted(PLACES) if kind not in ("circle of links", "link to a pipe")]
    kind = kinds[rng.integers(len(kinds))]
    (folder / name).mkdir()
    place(folder / name, kind)
    return PLACES[kind]


def bad_name(folder: pathlib.Path, name: str, rng: np.random.Generator) -> str:
    kinds = sorted(NAMES)
    raw = name.encode() + b"/" + NAMES[kinds[rng.integers(len(kinds))]]
    write(folder, {raw: image(), os.path.splitext(raw)[0] + b".txt": "x"})
    return "name is not UTF-8"


def bad_caption(folder: pathlib.Path, name: str, rng: np.random.Generator) -> str:
    texts = [
        (".txt", b"caf\xe9", "bad UTF-8"),
        (".txt", b" \n", "empty caption"),
        (".json", b"{", "caption is not JSON"),
        (".json", b"[" * 9000, "caption is not JSON"),
        (".json", b'{"caption": "\\ud83d"}', "bad UTF-8"),
        (".json", b"7", "no caption"),
        (".cls", b"12", "class number without a name in classes.txt"),
        (".txt", b"a" * 2**21, "too many bytes"),
    ]
    suffix, content, reason = texts[rng.integers(len(texts))]
    write(folder, {f"{name}.png": image(), f"{name}{suffix}": content})
    return reason


def alone(folder: pathlib.Path, name: str, rng: np.random.Generator) -> str:
    write(folder, {f"{name}.png": image()})
    return "no caption"


def other(folder: pathlib.Path, name: str, rng: np.random.Generator) -> str:
    suffixes = (".md", ".npy", ".xlsx", ".pkl", ".txt", "", ".json", ".csv", ".parquet")
    content = b"\xff" * int(rng.integers(99))
    write(folder, {f"{name}{suffixes[rng.integers(len(suffixes))]}": content})
    return "other"


def damaged_tar(folder: pathlib.Path, name: str, rng: np.random.Generator) -> str:
    write(folder, {f"{name}.tar": rng.bytes(1500)})
    return "input that cannot be read"


def table(folder: pathlib.Path, name: str, rng: np.random.Generator) -> str:
    rows = [f"sur{name}\ud83d.png", "gone.png"]
    text = json.dumps({"file_name": rows[rng.integers(2)], "text": "x"})
    write(folder, {f"{name}/metadata.jsonl": text})
    return "missing file"


def cut_parquet(folder: pathlib.Path, name: str, rng: np.random.Generator) -> str:
    images = [{"bytes": b"<html>", "path": ""}]
    parquet(folder / f"{name}.parquet", {"image": images, "text": ["a"]})
    return "not an image"


NUMBER = re.compile(r"(?<!\d)\d{5}(?!\d)")  # of an entry, in a key
MAKERS: tuple[Maker, ...] = (
    *(good, with_notes, unread, no_file, bad_name, bad_caption),
    *(alone, other, damaged_tar, table, cut_parquet),
)


@pytest.mark.parametrize(
    ("count", "seed"), [(100, 0), pytest.param(5000, 1, marks=pytest.mark.nightly)]
)
def test_everything_in_a_hostile_folder_is_kept_or_counted(tmp_path, count: int, seed: int):
    rng = np.random.default_rng(seed)
    folder, expected = tmp_path / "in", collections.Counter()
    folder.mkdir()
    numbers = collections.defaultdict(set)
    for number in range(count):
        maker = MAKERS[rng.integers(len(MAKERS))] if number >= len(MAKERS) else MAKERS[number]
        reason = maker(folder, f"{number:05d}", rng)
        expected[reason] += 1
        numbers[reason].add(f"{number:05d}")
    others, num_records = expected.pop("other"), expected.pop("")
    records, report = run_prepare(folder, out=tmp_path / "out")
    assert len(records) == num_records
    assert report["skipped"] == dict(expected)
    assert report["read"] == count - others
    assert sum(report["other_files"].values()) == others
    for reason, keys in report["named"].items():
        assert {number for key in keys for number in NUMBER.findall(key)} == numbers[reason]
    with pytest.raises(UserError, match="cannot be used, more than --max-bad=0.05"):
        run_prepare(folder, out=tmp_path / "strict", options=("--max-bad=0.05",))
