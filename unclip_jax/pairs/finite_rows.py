"""Selection of the rows of a column whose numbers are all finite."""

import logging
from collections.abc import Mapping

import numpy as np
from jaxtyping import Bool

from unclip_jax.core.checks import UserError
from unclip_jax.pairs.columns import Column

BLOCK = 4096  # rows per read
SKIP = (
    "correct them, or leave them out with config.data.bad_rows=skip (--bad-rows=skip of commands)"
)

log = logging.getLogger(__name__)


def finite_rows(name: str, column: Column, *, bad_rows: str) -> Bool[np.ndarray, " n"]:
    """Returns True for every row whose numbers are all finite as float32.

    Args:
        name: name of the column in messages.
        column: the rows.
        bad_rows: "reject" raises an error for other rows, "skip" logs their number.

    Raises:
        UserError: there are other rows, and they are rejected.
    """
    if column.integer:
        return np.ones(len(column), bool)
    good = np.ones(len(column), bool)
    for start in range(0, len(column), BLOCK):
        stop = min(start + BLOCK, len(column))
        with np.errstate(over="ignore"):
            block = column.block(start, stop).astype(np.float32)
        finite = np.isfinite(block.reshape(len(block), -1)).all(axis=1)
        if column.offsets is not None:
            tokens = np.concatenate([[0], np.cumsum(~finite)])
            ends = column.offsets[start : stop + 1] - column.offsets[start]
            finite = np.diff(tokens[ends]) == 0
        good[start:stop] = finite
    bad = np.flatnonzero(~good)
    if not len(bad):
        return good
    first = bad[0] if column.keys is None else f"{bad[0]}, key {str(column.keys[bad[0]])!r}"
    half = np.dtype(column.values.dtype) == np.float16 and np.isinf(column[int(bad[0])]).any()
    why = "inf in float16, which ends at 65,504" if half else "NaN or inf"
    line = (
        f"{len(bad)} of {len(column)} rows of {name} ({column.where}) hold {why}, first row {first}"
    )
    if bad_rows == "reject":
        raise UserError(f"{line}; {SKIP}.")
    log.warning("%s; left out", line)
    return good


def row_counts(counts: Mapping[str, int]) -> str:
    """Returns names with their numbers of rows, on one line."""
    return ", ".join(f"{name} {count}" for name, count in counts.items())
