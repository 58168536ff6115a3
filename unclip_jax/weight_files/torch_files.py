"""Reader of PyTorch's own files, the only module that needs PyTorch.

Such files are pickles. They are opened with `weights_only`, which rebuilds tensors and plain
containers and rejects everything else; OpenAI's CLIP files are TorchScript archives, which PyTorch
reads without running Python code.
"""

import contextlib
import pathlib
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np

from unclip_jax.core.checks import UserError, listed, short

SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".th")
STATES = ("state_dict", "model_state_dict", "model", "module")  # keys of trainers
MAX_DEPTH = 8  # of dicts in a training checkpoint


def read_tensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Reads all tensors of a state dict, or of a training checkpoint, by name.

    Names within dicts are joined by dots. A checkpoint holds numbers and lists besides, which are
    left out; one whose only tensors by name are those under a key such as "state_dict" is read as
    that state dict.

    Raises:
        UserError: torch is not installed, the file is damaged, or it holds no tensors by name.
    """
    value = read_value(path)
    if not isinstance(value, Mapping):
        raise UserError(
            f"{path} holds a {type(value).__name__}; expected tensors by name (a state dict)."
        )
    tensors = flat(value)
    if not tensors:
        names = listed([*value])
        raise UserError(f"{path} holds no tensors by name, only {names}; save its state dict.")
    for key in STATES:
        if all(name.startswith(f"{key}.") for name in tensors) and isinstance(value.get(key), dict):
            return flat(value[key])
    return tensors


def read_module(path: pathlib.Path, *, classes: Sequence[str]) -> dict[str, np.ndarray]:
    """Reads all parameters of a pickled module by name, without running any code of its classes.

    Args:
        path: the pickle.
        classes: full names of the classes that it may name; each is replaced by an empty one.

    Raises:
        UserError: as `read_tensors`, or it names other classes.
    """
    torch = _torch(path)
    inert = [(type(name.rsplit(".", 1)[1], (), {}), name) for name in classes]
    expected = f"{', '.join(classes)} and tensors"
    with _errors(path, expected=expected), torch.serialization.safe_globals(inert):
        module = torch.load(path, map_location="cpu", weights_only=True)
    return _arrays(torch, dict(_parameters(module)))


def _parameters(module: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields the parameters of an unpickled module and of those within it."""
    state = vars(module)
    for name, value in state.get("_parameters", {}).items():
        if value is not None:
            yield f"{prefix}{name}", value
    for name, inner in state.get("_modules", {}).items():
        yield from _parameters(inner, f"{prefix}{name}.")


def flat(value: Mapping[Any, Any], *, depth: int = MAX_DEPTH) -> dict[str, np.ndarray]:
    """Returns the arrays in nested dicts, by names that are joined with dots."""
    arrays: dict[str, np.ndarray] = {}
    for name, item in value.items():
        if isinstance(item, np.ndarray):
            arrays[str(name)] = item
        elif isinstance(item, Mapping) and depth:
            inner = flat(item, depth=depth - 1)
            arrays |= {f"{name}.{key}": array for key, array in inner.items()}
    return arrays


def read_value(path: pathlib.Path) -> Any:
    """Reads the value in a torch file, with arrays for tensors.

    Raises:
        UserError: as `read_tensors`.
    """
    torch = _torch(path)
    with _errors(path, expected="tensors"):
        value = _load(torch, path)
    return _arrays(torch, value)


@contextlib.contextmanager
def _errors(path: pathlib.Path, *, expected: str) -> Iterator[None]:
    """Turns what torch raises on files into a UserError that says what they may hold."""
    try:
        yield
    except (RuntimeError, OSError, EOFError, ValueError, zipfile.BadZipFile) as error:
        raise UserError(
            f"{path} is damaged or incomplete ({_first_line(error)}); copy or download it again."
        ) from None
    except Exception as error:  # pickle.UnpicklingError, which cannot be named without pickle
        name = re.search(r"GLOBAL (\S+)", str(error))
        extra = f" (it names {short(name.group(1))})" if name else ""
        raise UserError(
            f"{path} was rejected: its pickle holds more than {expected}{extra}. Convert it to "
            "safetensors where it came from."
        ) from None


def _torch(path: pathlib.Path) -> Any:
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise UserError(
            f"{path} is a PyTorch file and PyTorch is not installed; `pip install "
            "'unclip_jax[convert]'`, or give safetensors, which need none."
        ) from None
    return torch


def _load(torch: Any, path: pathlib.Path) -> Any:
    if _is_torchscript(path):
        return torch.jit.load(str(path), map_location="cpu").state_dict()
    mapped = zipfile.is_zipfile(path)  # then tensors stay on disk until they are read
    return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)


def _is_torchscript(path: pathlib.Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _arrays(torch: Any, value: Any) -> Any:
    """Converts tensors to arrays, within dicts, lists and tuples."""
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().contiguous()
        if value.dtype == torch.bfloat16:  # which NumPy lacks and ml_dtypes has
            return value.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
        return value.numpy()
    if isinstance(value, Mapping):
        return {name: _arrays(torch, item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_arrays(torch, item) for item in value)
    return value


def _first_line(error: Exception) -> str:
    return (str(error).strip() or repr(error)).splitlines()[0]
