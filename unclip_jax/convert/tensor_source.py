"""Tensors by name, in one safetensors file, several, a torch file or a view.

A `TensorSource` knows the names and shapes of all tensors before it reads any, and reads them one
at a time, so that a conversion can be refused cheaply and never holds a file twice.
"""

import contextlib
import dataclasses
import json
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from unclip_jax.convert import torch_files
from unclip_jax.core.checks import UserError

SAFE, INDEX = ".safetensors", ".index.json"
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
    if path.is_dir():
        path = _choose(path)
    if not path.is_file():
        raise UserError(f"there is no file {path}; give a file or folder with weights.")
    if path.name.endswith(INDEX):
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
        UserError: no such file, broken JSON, or another value than an object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"there is no {path}; copy it from where the weights came.") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path} cannot be read as JSON ({error}); copy it again.") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} holds a {type(value).__name__}; expected an object of settings.")
    return value


def _files(folder: pathlib.Path, suffix: str) -> list[pathlib.Path]:
    return sorted(path for path in folder.glob(f"*{suffix}") if path.is_file())


def _choose(folder: pathlib.Path) -> pathlib.Path:
    """Returns the file of weights in a folder, or the index of several."""
    for suffix in (SAFE, *torch_files.SUFFIXES):
        for files in (_files(folder, suffix + INDEX), _files(folder, suffix)):
            # "model.fp16.safetensors" beside "model.safetensors" is a copy in another precision
            plain = [path for path in files if path.name.split(suffix)[0].count(".") == 0] or files
            if len(plain) > 1:
                names = ", ".join(path.name for path in plain)
                raise UserError(f"{folder} holds several files of weights ({names}); name one.")
            if plain:
                return plain[0]
    raise UserError(
        f"{folder} holds no weights; expected a {SAFE} file (or {', '.join(torch_files.SUFFIXES)})."
    )


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
        with opened() as file:
            return file.get_tensor(name)

    with opened() as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    return TensorSource(str(path), shapes, read)


def _sharded(path: pathlib.Path) -> TensorSource:
    """Opens several files with one index (`weight_map`: tensor -> file)."""
    places = read_json(path).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise UserError(f"{path} holds no weight_map; copy it again.")
    for name in set(places.values()):
        if not isinstance(name, str) or pathlib.PurePath(name).name != name:
            raise UserError(f"{path} names the file {name!r}; expected a plain file name.")
    parts = {name: open_tensors(path.parent / name) for name in sorted(set(places.values()))}
    lost = sorted(n for n, part in places.items() if n not in parts[part].shapes)
    if lost:
        raise UserError(
            f"{path} lists {len(lost)} tensors that its files lack: {'; '.join(lost)}. "
            "Copy all files again."
        )
    shapes = {n: shape for part in parts.values() for n, shape in part.shapes.items()}
    owner = {n: part for part in parts.values() for n in part.shapes}
    return TensorSource(str(path.parent), shapes, lambda name: owner[name].read(name))
