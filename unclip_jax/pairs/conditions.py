"""Conditions without targets, for which a prior samples targets."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from unclip_jax.core.checks import UserError
from unclip_jax.pairs import column_files
from unclip_jax.pairs.config import locations
from unclip_jax.pairs.finite_rows import finite_rows, row_counts

Rows = Int[np.ndarray, " n"]


class ConditionRows(NamedTuple):
    """Rows of conditions without targets.

    Attributes:
        rows: rows of each condition by name, without rejected ones.
        keys: keys of these rows; None without keys.
        numbers: positions of these rows in their files.
        total: number of rows in the files.
    """

    rows: dict[str, list[np.ndarray]]
    keys: list[str] | None
    numbers: Rows
    total: int


def read_conditions(x: str, *, bad_rows: str = "reject") -> ConditionRows:
    """Reads the rows of conditions, and their keys if the first condition has keys.

    Args:
        x: locations of the conditions, as `PairsConfig.x`.
        bad_rows: "reject" raises an error for rows that are not finite, "skip" leaves them out and
            logs their number.

    Raises:
        UserError: a column cannot be read, columns have different lengths, rows are not finite and
            not skipped, or no rows remain.
    """
    opened = {name: column_files.open_column(where) for name, where in locations(x).items()}
    first = next(iter(opened.values()))
    counts = {name: len(column) for name, column in opened.items()}
    if len(set(counts.values())) > 1:
        raise UserError(
            f"conditions have different numbers of rows ({row_counts(counts)}); give the same "
            "number for each."
        )
    good = [finite_rows(name, column, bad_rows=bad_rows) for name, column in opened.items()]
    numbers = np.flatnonzero(np.logical_and.reduce(good))
    if not len(numbers):
        raise UserError(
            f"no row of {x} is left; it is empty, or every row holds NaN or inf: give finite rows."
        )
    rows = {name: [column[int(i)] for i in numbers] for name, column in opened.items()}
    keys = None if first.keys is None else first.keys[numbers].tolist()
    return ConditionRows(rows, keys, numbers, len(first))
