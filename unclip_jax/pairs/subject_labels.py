"""Labels of the subjects of pairs, and the indices of their layers in a model."""

import difflib
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Bool, Int

from unclip_jax.core.checks import UserError, listed


def layer_numbers(labels: Iterable[object], layers: Sequence[str]) -> Int[np.ndarray, " n"]:
    """Returns the index in `layers` of every label; surrounding spaces are ignored.

    Args:
        labels: label of every row.
        layers: labels of the layers of a model, in their order.

    Raises:
        UserError: a label has no layer; the message names the first.
    """
    numbers = {label.strip(): number for number, label in enumerate(layers)}
    names = [str(label).strip() for label in labels]
    unknown = [name for name in names if name not in numbers]
    if unknown:
        near = difflib.get_close_matches(unknown[0], numbers, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise UserError(
            f"there is no layer for the subject {unknown[0]!r}; this prior has "
            f"{listed(layers, most=8, separator=', ')}.{hint}"
        )
    return np.array([numbers[name] for name in names], np.int32)


def listing(
    subjects: tuple[np.ndarray, Sequence[str]], *, validation: Bool[np.ndarray, " n"]
) -> str:
    """Returns the labels of subjects with their numbers of pairs, on one line.

    Args:
        subjects: index of the subject of every pair, and the labels.
        validation: True for pairs that are held out.
    """
    (numbers, labels), parts = subjects, []
    for number, label in enumerate(labels):
        own = validation[numbers == number]
        parts.append(f"{label} ({np.sum(~own)} pairs, {np.sum(own)} held out)")
    return listed(parts, most=20, separator=", ")
