"""Training of a prior between two embedding spaces on arrays in memory."""

import pathlib
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from unclip_jax.core.checks import UserError
from unclip_jax.core.files import atomic_path, check_local
from unclip_jax.experiment import loading, training_run
from unclip_jax.inference.embedding_prior import EmbeddingPriorModel
from unclip_jax.pairs.column_files import open_column
from unclip_jax.pairs.config import RESERVED, SUBJECT, is_condition_name

Rows = np.ndarray | Sequence[np.ndarray]


def fit_prior(
    x: Rows | Mapping[str, Rows],
    y: Rows,
    *,
    size: str = "small",
    groups: Sequence[Any] | np.ndarray | None = None,
    subjects: Sequence[Any] | np.ndarray | None = None,
    settings: Mapping[str, Any] | None = None,
    workdir: str | pathlib.Path | None = None,
) -> EmbeddingPriorModel:
    """Trains a prior, as `python -m unclip_jax.train --config=embedding_prior:SIZE` does.

    Args:
        x: one row per pair; several conditions by name. Sequences of different lengths are a list
            of arrays.
        y: the targets.
        size: of experiments/embedding_prior.py: "tiny", "small" or "large"; "autoregressive", as
            large as "small", for codes instead of noise; or the baselines "mlp" and "ridge".
        groups: a label per row; pairs of one group are in the same split.
        subjects: a label per row, which chooses the first layer of an encoder; needs settings such
            as {"model.encoder.width": 512}.
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
        _check_names(named)
        places = ",".join(f"{name}={_written(data, name, rows)}" for name, rows in named.items())
        overrides = {"data.x": places, "data.y": _written(data, "y", y), **(settings or {})}
        for name, labels in (("groups", groups), ("subjects", subjects)):
            if labels is not None:
                text = np.array([str(label) for label in labels])
                overrides[f"data.{name}"] = _saved(data / f"{name}.npy", text)
        experiment = loading.read(
            f"embedding_prior:{size}",
            overrides=[f"--config.{key}={value}" for key, value in overrides.items()],
        )
        training_run.train_and_export(experiment, folder)
        return EmbeddingPriorModel.open(folder)


def _check_names(names: Iterable[str]) -> None:
    """Rejects names that conditions cannot have.

    Raises:
        UserError: naming the first.
    """
    for name in names:
        if name == SUBJECT:
            raise UserError(f"x has {name!r}; give the labels of subjects as subjects=.")
        if not is_condition_name(name):
            raise UserError(
                f"x has the condition {name!r}; give an identifier that is none of "
                f"{', '.join(RESERVED)}."
            )


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
