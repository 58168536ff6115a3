"""Files of other layouts: settings as JSON, parameters as safetensors."""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from safetensors.numpy import save_file

from unclip_jax.core.types import Params
from unclip_jax.weight_files import tensor_table
from unclip_jax.weight_files.tensor_table import Entry


def write_json(path: pathlib.Path, value: Mapping[str, Any]) -> None:
    """Writes settings, and the folder that they are in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def write_tensors(
    path: pathlib.Path,
    params: Params,
    entries: Sequence[Entry],
    *,
    dtype: str,
    extra: Mapping[str, np.ndarray] | None = None,
) -> None:
    """Writes parameters under the names and in the layouts of a table.

    Args:
        path: of the safetensors file, whose folder is made.
        params: tree of parameters.
        entries: the table.
        dtype: "float32" or "bfloat16".
        extra: further tensors by name, as they are.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {name: cast(array, dtype) for name, array in tensor_table.tensors(params, entries)}
    save_file({**arrays, **(extra or {})}, path, metadata={"format": "pt"})


def cast(array: Any, dtype: str) -> np.ndarray:
    """Returns an array in another type, contiguous as safetensors stores it."""
    return np.asarray(array).astype(jax.numpy.dtype(dtype), order="C")
