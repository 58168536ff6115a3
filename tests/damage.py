"""Seeded damage to files and folders, as disks, copies, editors and attackers cause it."""

import json
import os
import pathlib
import shutil
from collections.abc import Callable
from typing import Any

import numpy as np

VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2, 3, 7, 2**31, 10**12, -(10**12), 10**400, 0.5, -0.0, 1e308),
    *("", "x", "gelu", "\ud800", "é" * 50, "x" * 5000, [], [1], [None] * 300, {}, {"a": 1}),
)
Random = np.random.Generator


def flip_bit(path: pathlib.Path, rng: Random) -> None:
    content = bytearray(path.read_bytes())
    if content:
        content[rng.integers(len(content))] ^= 1 << int(rng.integers(8))
    path.write_bytes(content)


def set_bytes(path: pathlib.Path, rng: Random) -> None:
    content = bytearray(path.read_bytes())
    start, count = int(rng.integers(len(content) + 1)), int(rng.integers(1, 17))
    content[start : start + count] = rng.bytes(count)
    path.write_bytes(content)


def delete_bytes(path: pathlib.Path, rng: Random) -> None:
    content = bytearray(path.read_bytes())
    start = int(rng.integers(len(content) + 1))
    del content[start : start + int(rng.integers(1, 65))]
    path.write_bytes(content)


def insert_bytes(path: pathlib.Path, rng: Random) -> None:
    content = bytearray(path.read_bytes())
    start = int(rng.integers(len(content) + 1))
    content[start:start] = rng.bytes(int(rng.integers(1, 65)))
    path.write_bytes(content)


def truncate(path: pathlib.Path, rng: Random) -> None:
    os.truncate(path, int(rng.integers(path.stat().st_size + 1)))


def zero_page(path: pathlib.Path, rng: Random) -> None:
    content = bytearray(path.read_bytes())
    start = int(rng.integers(len(content) + 1)) // 512 * 512
    content[start : start + 512] = bytes(len(content[start : start + 512]))
    path.write_bytes(content)


def empty(path: pathlib.Path, rng: Random) -> None:
    path.write_bytes(b"")


def noise(path: pathlib.Path, rng: Random) -> None:
    path.write_bytes(rng.bytes(int(rng.integers(1, 4097))))


def remove(path: pathlib.Path, rng: Random) -> None:
    path.unlink()


def pipe(path: pathlib.Path, rng: Random) -> None:
    path.unlink()
    os.mkfifo(path)


def folder(path: pathlib.Path, rng: Random) -> None:
    path.unlink()
    path.mkdir()


def dangling_link(path: pathlib.Path, rng: Random) -> None:
    path.unlink()
    path.symlink_to("nowhere")


def device(path: pathlib.Path, rng: Random) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def exchange(path: pathlib.Path, rng: Random) -> None:
    """Swaps the file with another one of its folder."""
    others = sorted(p for p in path.parent.iterdir() if p.is_file() and p != path)
    if others:
        other = others[rng.integers(len(others))]
        mine, theirs = path.read_bytes(), other.read_bytes()
        path.write_bytes(theirs)
        other.write_bytes(mine)


def stray(path: pathlib.Path, rng: Random) -> None:
    """Puts a file or a named pipe beside it."""
    place = path.with_name(f"stray_{rng.integers(100)}")
    os.mkfifo(place) if rng.integers(2) else place.write_bytes(rng.bytes(100))


BYTES: tuple[Callable[[pathlib.Path, Random], None], ...] = (
    *(flip_bit, flip_bit, flip_bit, set_bytes, delete_bytes, insert_bytes, truncate, zero_page),
    *(empty, noise, remove, pipe, folder, dangling_link, device, exchange, stray),
)


def places(value: Any) -> list[tuple[Any, Any]]:
    """Returns (container, key) of every value in nested dicts and lists, at most 5,000."""
    result: list[tuple[Any, Any]] = []
    waiting = [value]
    while waiting and len(result) < 5000:
        container = waiting.pop(0)
        keys = list(container) if isinstance(container, dict) else range(len(container))
        result += [(container, key) for key in keys]
        waiting += [container[key] for key in keys if isinstance(container[key], dict | list)]
    return result


def change_value(tree: Any, rng: Random) -> str:
    actual = places(tree)
    container, key = actual[rng.integers(len(actual))]
    old, kind = container[key], int(rng.integers(8))
    if kind == 0 and isinstance(container, dict):
        container[f"{key}_"] = container.pop(key)
    elif kind == 1:
        del container[key]
    elif kind == 2 and isinstance(old, int | float):
        container[key] = old * int(rng.integers(2, 1000)) + int(rng.integers(2))
    elif kind == 3:
        return json.dumps(tree).replace(json.dumps(old), "[" * 5000 + "]" * 5000, 1)
    elif kind == 4:
        number = ("NaN", "-Infinity", "1e999")[rng.integers(3)]
        return json.dumps(tree).replace(json.dumps(old), number, 1)
    else:
        container[key] = VALUES[rng.integers(len(VALUES))]
    return json.dumps(tree)


def damage(root: pathlib.Path, rng: Random) -> str:
    """Damages one file of a folder, or a file; returns what was done."""
    files = sorted(p for p in root.rglob("*") if p.is_file()) if root.is_dir() else [root]
    path = files[rng.integers(len(files))]
    if path.suffix == ".json" and rng.integers(2):
        path.write_text(change_value(json.loads(path.read_text()), rng))
        return f"value in {path.name}"
    if path.suffix in (".unclip", ".npz") and rng.integers(2):
        return damage_member(path, rng)
    damage = BYTES[rng.integers(len(BYTES))]
    damage(path, rng)
    return f"{damage.__name__} {path.relative_to(root) if root.is_dir() else path.name}"


def damage_member(path: pathlib.Path, rng: Random) -> str:
    """Damages a member of a zip file, whose check sum is written anew."""
    import zipfile

    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = sorted(members)[rng.integers(len(members))]
    place = path.with_name("member")
    place.write_bytes(members[name])
    if name.endswith(".json") and rng.integers(2):
        place.write_text(change_value(json.loads(members[name]), rng))
        damage = change_value
    else:
        damage = (flip_bit, set_bytes, truncate, insert_bytes, noise, empty)[rng.integers(6)]
        damage(place, rng)
    members[name] = place.read_bytes()
    place.unlink()
    if not rng.integers(8):
        del members[name]
    with zipfile.ZipFile(path, "w") as archive:
        for member, content in members.items():
            archive.writestr(member, content)
    return f"{damage.__name__} in {name}"


def copy(source: pathlib.Path, target: pathlib.Path) -> pathlib.Path:
    if source.is_dir():
        return pathlib.Path(shutil.copytree(source, target))
    return pathlib.Path(shutil.copy(source, target))
