"""Training of a prior between two embedding spaces on arrays in memory."""

import pathlib
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from unclip_jax.core.checks import UserError
from unclip_jax.core.files import atomic_path, check_local
from unclip_jax.data.column_files import open_column
from unclip_jax.experiment import loading, training_run
from unclip_jax.inference.embedding_prior import EmbeddingPriorModel

Rows = np.ndarray | Sequence[np.ndarray]


def fit_prior(
    x: Rows | Mapping[str, Rows],
    y: Rows,
    *,
    size: str = "small",
    groups: Sequence[Any] | np.ndarray | None = None,
    settings: Mapping[str, Any] | None = None,
    workdir: str | pathlib.Path | None = None,
) -> EmbeddingPriorModel:
    """Trains a prior, as `python -m unclip_jax.train --config=embedding_prior:SIZE` does.

    Args:
        x: one row per pair; several conditions by name. Sequences of different lengths are a list
            of arrays.
        y: the targets.
        size: of experiments/embedding_prior.py: "tiny", "small", "large", or the baselines "mlp"
            and "ridge".
        groups: a label per row; pairs of one group are in the same split.
        settings: overrides of the experiment, such as {"train.steps": 600}.
        workdir: folder of the run, which continues one that was interrupted; None = a temporary
            one.

    Raises:
        UserError: arrays or settings that do not fit.
    """
    check_local("workdir", workdir or "")
    with tempfile.TemporaryDirectory() as scratch:
        folder = pathlib.Path(scratch) if workdir is None else pathlib.Path(workdir)
        data = folder / "pairs"
        data.mkdir(parents=True, exist_ok=True)
        named = x if isinstance(x, Mapping) else {"x": x}
        places = ",".join(f"{name}={_written(data, name, rows)}" for name, rows in named.items())
        overrides = {"data.x": places, "data.y": _written(data, "y", y), **(settings or {})}
        if groups is not None:
            labels = np.array([str(group) for group in groups])
            overrides["data.groups"] = _saved(data / "groups.npy", labels)
        experiment = loading.read(
            f"embedding_prior:{size}",
            overrides=[f"--config.{key}={value}" for key, value in overrides.items()],
        )
        training_run.train_and_export(experiment, folder)
        return EmbeddingPriorModel.open(folder)


def _saved(path: pathlib.Path, array: np.ndarray) -> str:
    """Writes an array, beside an earlier one that may be mapped, and returns its path."""
    with atomic_path(path) as draft, draft.open("wb") as file:
        np.save(file, array)
    return str(path)


def _written(folder: pathlib.Path, name: str, rows: Rows) -> str:
    """Writes rows to a file in `folder`, and returns the name of the column.

    Raises:
        UserError: rows that are no arrays of numbers.
    """
    lengths = {np.shape(row)[:1] for row in rows}
    if len(lengths) == 1:
        array = np.asarray(rows)
        if array.dtype == object:
            raise UserError(f"{name} holds objects; give arrays of numbers.")
        return _saved(folder / f"{name}.npy", array)
    width = len(str(len(rows)))
    arrays: dict[str, Any] = {f"{i:0{width}d}": np.asarray(row) for i, row in enumerate(rows)}
    np.savez(folder / f"{name}.npz", **arrays)
    place = f"{folder / name}.npz:*"
    open_column(place)
    return place
