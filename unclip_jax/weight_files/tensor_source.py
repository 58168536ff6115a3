"""Tensors by name, in one safetensors file, several, a torch file or a view.

A `TensorSource` knows the names and shapes of all tensors before it reads any, and reads them one
at a time, so that a conversion can be rejected cheaply and never holds a file twice.
"""

import contextlib
import dataclasses
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from unclip_jax.core import json_text
from unclip_jax.core.checks import UserError, listed, short
from unclip_jax.core.files import read_small
from unclip_jax.weight_files import torch_files

SAFE = ".safetensors"
INDEX = re.compile(r"\.index(\.\w+)?\.json$")
SHARD = re.compile(r"(.+)-(\d+)-of-(\d+)")
Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class TensorSource:
    """Tensors by name.

    Attributes:
        where: the file or folder, for messages.
        shapes: shape of every tensor.
        read: name -> array, read on each call.
    """

    where: str
    shapes: Mapping[str, Shape]
    read: Callable[[str], np.ndarray]

    def without(self, names: Iterable[str]) -> "TensorSource":
        """Returns the source without `names`, which may be absent."""
        removed = set(names)
        shapes = {name: shape for name, shape in self.shapes.items() if name not in removed}
        return dataclasses.replace(self, shapes=shapes)

    def below(self, prefix: str) -> "TensorSource":
        """Returns the tensors whose names begin with `prefix`, without the prefix."""
        cut = len(prefix)
        shapes = {name[cut:]: s for name, s in self.shapes.items() if name.startswith(prefix)}
        return dataclasses.replace(self, shapes=shapes, read=lambda name: self.read(prefix + name))


def in_memory(where: str, tensors: Mapping[str, np.ndarray]) -> TensorSource:
    """Returns a source over arrays in memory."""
    return TensorSource(
        where, {name: array.shape for name, array in tensors.items()}, tensors.__getitem__
    )


def joined(where: str, parts: Mapping[str, TensorSource]) -> TensorSource:
    """Joins several sources; key and "/" precede the names of each one's tensors."""
    shapes = {
        f"{key}/{name}": shape for key, part in parts.items() for name, shape in part.shapes.items()
    }

    def read(name: str) -> np.ndarray:
        key, rest = name.split("/", 1)
        return parts[key].read(rest)

    return TensorSource(where, shapes, read)


def open_tensors(path: pathlib.Path) -> TensorSource:
    """Opens weights: a file, or a folder that holds one set of them.

    In a folder, safetensors are preferred to torch files and an index to a single file.

    Raises:
        UserError: nothing there, an ambiguous folder, a damaged file, a pickle that is more than
            tensors, or a torch file without torch.
    """
    where = _choose(path) if path.is_dir() else path
    if isinstance(where, list):
        return _together(path, {shard.name: open_tensors(shard) for shard in where})
    path = where
    if not path.is_file():
        raise UserError(f"there is no file {path}; give a file or folder with weights.")
    if is_index(path.name):
        return _sharded(path)
    if path.suffix == SAFE:
        return _safetensors(path)
    if path.suffix in torch_files.SUFFIXES:
        return in_memory(str(path), torch_files.read_tensors(path))
    raise UserError(
        f"{path} ends in {path.suffix!r}; weights are read from {SAFE} or "
        f"{', '.join(torch_files.SUFFIXES)} files. Pickles of other kinds are never opened."
    )


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """Reads a JSON object from a file.

    Raises:
        UserError: no such file, broken or too deep JSON, or another value than an object.
    """
    try:
        text = read_small(path)
    except FileNotFoundError:
        raise UserError(f"there is no {path}; copy it from where the weights came.") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); copy it again.") from None
    return json_text.parse_object(text, where=str(path), advice="copy it again.")


def _choose(folder: pathlib.Path) -> pathlib.Path | list[pathlib.Path]:
    """Returns the file of weights in a folder, the index of several, or all shards of one set.

    A file with a variant, such as model.fp16.safetensors, is a copy in another precision of the
    one without; it is taken where it is alone.
    """
    files = sorted(path for path in folder.iterdir() if path.is_file())
    for suffix in (SAFE, *torch_files.SUFFIXES):
        indices = [p for p in files if is_index(p.name) and suffix in p.name]
        plain = [p for p in files if p.name.endswith(suffix) and not SHARD.fullmatch(p.stem)]
        for group in (indices, plain):
            chosen = [path for path in group if not _variant(path.name, suffix)] or group
            if len(chosen) > 1:
                names = listed([path.name for path in chosen], separator=", ")
                raise UserError(f"{folder} holds several files of weights ({names}); name one.")
            if chosen:
                return chosen[0]
        if shards := [p for p in files if p.name.endswith(suffix) and SHARD.fullmatch(p.stem)]:
            return _complete(folder, shards)
    raise UserError(
        f"{folder} holds no weights; expected a {SAFE} file (or {', '.join(torch_files.SUFFIXES)})."
    )


def is_index(name: str) -> bool:
    """True for the index of several files, such as model.safetensors.index.fp16.json."""
    return bool(INDEX.search(name))


def _variant(name: str, suffix: str) -> bool:
    stem, end = name.split(suffix, 1)
    return "." in stem or end.count(".") > 2  # ".index.json" or ".index.fp16.json"


def _complete(folder: pathlib.Path, shards: list[pathlib.Path]) -> list[pathlib.Path]:
    """Returns shards that came without their index, if they are one whole set."""
    sets: dict[tuple[str, str], list[pathlib.Path]] = {}
    for path in shards:
        stem, _, count = SHARD.findall(path.stem)[0]
        sets.setdefault((stem, count), []).append(path)
    plain = {key: paths for key, paths in sets.items() if "." not in key[0]} or sets
    if len(plain) > 1:
        names = listed([paths[0].name for paths in plain.values()], separator=", ")
        raise UserError(f"{folder} holds several sets of weights ({names}); keep one.")
    ((_, count), paths) = next(iter(plain.items()))
    if len(paths) != int(count):
        raise UserError(
            f"{folder} holds {len(paths)} of {int(count)} files of weights; copy the others, such "
            "as their index, too."
        )
    return paths


def _safetensors(path: pathlib.Path) -> TensorSource:
    """Opens the file for every tensor, because an open file keeps all tensors in memory."""

    @contextlib.contextmanager
    def opened() -> Iterator[Any]:
        try:
            with safe_open(path, framework="np") as file:
                yield file
        except (SafetensorError, OSError) as error:
            raise UserError(
                f"{path} is damaged or incomplete ({error}); copy or download it again."
            ) from None

    def read(name: str) -> np.ndarray:
        try:
            with opened() as file:
                return file.get_tensor(name)
        except (KeyError, TypeError, ValueError) as error:  # a type that NumPy lacks
            if isinstance(error, UserError):
                raise
            raise UserError(
                f"{path} holds {name} in a form that cannot be read ({error}); save it as float32."
            ) from None

    with opened() as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    return TensorSource(str(path), shapes, read)


def _sharded(path: pathlib.Path) -> TensorSource:
    """Opens several files with one index (`weight_map`: tensor -> file)."""
    places = read_json(path).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise UserError(f"{path} holds no weight_map; copy it again.")
    for name in places.values():
        plain = isinstance(name, str) and pathlib.PurePath(name).name == name
        if not plain or is_index(name):
            raise UserError(f"{path} names the file {short(name)}; expected a plain file name.")
    parts = {name: open_tensors(path.parent / name) for name in sorted(set(places.values()))}
    lost = sorted(n for n, part in places.items() if n not in parts[part].shapes)
    if lost:
        raise UserError(
            f"{path} lists {len(lost)} tensors that its files lack: {listed(lost)}. "
            "Copy all files again."
        )
    return _together(path.parent, parts)


def _together(folder: pathlib.Path, parts: Mapping[str, TensorSource]) -> TensorSource:
    """Returns the tensors of several files as one source."""
    shapes = {n: shape for part in parts.values() for n, shape in part.shapes.items()}
    owner = {n: part for part in parts.values() for n in part.shapes}
    if len(shapes) < sum(len(part.shapes) for part in parts.values()):
        raise UserError(f"{folder} has tensors of one name in several files; copy them again.")
    return TensorSource(str(folder), shapes, lambda name: owner[name].read(name))
