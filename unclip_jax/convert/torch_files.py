"""Reader of PyTorch's own files, the only module that needs PyTorch.

Such files are pickles. They are opened with `weights_only`, which rebuilds tensors and plain
containers and refuses everything else; OpenAI's CLIP files are TorchScript archives, which PyTorch
reads without running Python code.
"""

import pathlib
import zipfile
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

from unclip_jax.core.checks import UserError

SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".th")
STATE = "state_dict"


def read_tensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Reads all tensors of a state dict by name; one under the key "state_dict" is unwrapped.

    Raises:
        UserError: torch is not installed, the file is damaged, or it holds more than tensors.
    """
    value = read_value(path)
    if isinstance(value, Mapping) and isinstance(value.get(STATE), Mapping):
        value = value[STATE]
    if not isinstance(value, Mapping):
        raise UserError(
            f"{path} holds a {type(value).__name__}; expected tensors by name (a state dict)."
        )
    odd = [str(name) for name, item in value.items() if not isinstance(item, np.ndarray)]
    if odd:
        raise UserError(
            f"{path} holds entries that are not tensors: {'; '.join(odd)}; "
            "save its state dict alone."
        )
    return {str(name): item for name, item in value.items()}


def read_value(path: pathlib.Path) -> Any:
    """Reads the value in a torch file, with arrays for tensors.

    Raises:
        UserError: as `read_tensors`.
    """
    torch = _torch(path)
    try:
        value = _load(torch, path)
    except (RuntimeError, OSError, EOFError, ValueError, zipfile.BadZipFile) as error:
        raise UserError(
            f"{path} is damaged or incomplete ({_first_line(error)}); copy or download it again."
        ) from None
    except Exception as error:  # pickle.UnpicklingError, which cannot be named without pickle
        raise UserError(
            f"{path} was refused: its pickle holds more than tensors ({_first_line(error)}). "
            "Convert it to safetensors where it came from."
        ) from None
    return _arrays(torch, value)


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
