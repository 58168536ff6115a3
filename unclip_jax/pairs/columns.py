"""Columns of arrays: one vector, token sequence or label per row, read by index.

`column_files` opens them. Formats that cannot be mapped are unpacked once into a temporary file, so
that a column may exceed the memory.
"""

import dataclasses
import tempfile
from collections.abc import Iterable
from typing import Any

import numpy as np

from unclip_jax.core.checks import UserError


@dataclasses.dataclass(frozen=True)
class Column:
    """Rows of equal shape, or token sequences of different lengths.

    Attributes:
        where: name of the column in messages.
        values: [n d] or [n l d], an array or HDF5 dataset; with `offsets` the tokens [sum_l d] of
            all rows.
        offsets: n + 1 positions in `values` between which the rows lie; None = rows of equal shape.
        keys: key of every row; None = rows have no keys.
    """

    where: str
    values: Any
    offsets: np.ndarray | None = None
    keys: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.values) if self.offsets is None else len(self.offsets) - 1

    def __getitem__(self, index: int) -> np.ndarray:
        if self.offsets is None:
            return np.asarray(self.values[index])
        return np.asarray(self.values[self.offsets[index] : self.offsets[index + 1]])

    @property
    def ragged(self) -> bool:
        """True if rows have different lengths."""
        return self.offsets is not None

    @property
    def integer(self) -> bool:
        """True if rows consist of token ids or labels."""
        return np.dtype(self.values.dtype).kind in "iub"

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one row; that of the longest if lengths differ."""
        if self.offsets is None:
            return tuple(int(n) for n in self.values.shape[1:])
        longest = int(np.diff(self.offsets).max(initial=0))
        return (longest, *(int(n) for n in self.values.shape[1:]))

    def range(self) -> tuple[int, int]:
        """Returns the smallest integer, at most -1, and the largest, at least 0."""
        values = np.asarray(self.values)
        return min(int(values.min(initial=0)), -1), max(int(values.max(initial=0)), 0)

    def block(self, start: int, stop: int) -> np.ndarray:
        """Returns rows start..stop as stored; if lengths differ, their tokens in one array."""
        if self.offsets is None:
            return np.asarray(self.values[start:stop])
        return np.asarray(self.values[self.offsets[start] : self.offsets[stop]])


def unpack(location: str, rows: Iterable[tuple[str, np.ndarray]]) -> Column:
    """Copies keys and rows to a column in a temporary file, in order, and maps it into memory.

    A vector of a single NaN represents a missing row.

    Raises:
        UserError: there are no rows, or their ranks or widths differ.
    """
    keys: list[str] = []
    lengths: list[int] = []
    first: np.ndarray | None = None
    dtype = np.dtype(np.float32)
    with tempfile.TemporaryFile() as file:
        for key, row in rows:
            if first is None:
                first = row
                dtype = np.dtype(np.int32 if row.dtype.kind in "iu" else np.float32)
            row = _alike(row, first, where=f"{location}: row {key or len(keys)!r}")
            with np.errstate(over="ignore"):  # inf is reported later
                file.write(np.ascontiguousarray(row, dtype).tobytes())
            keys.append(key)
            lengths.append(len(row))
        if first is None or not sum(lengths):
            raise UserError(f"{location} holds no rows; check the name of the array or member.")
        file.flush()
        flat = np.memmap(file, dtype, "r", shape=(sum(lengths), *first.shape[1:]))
    names = np.array(keys) if any(keys) else None
    if len(set(lengths)) > 1:
        return Column(location, flat, np.concatenate([[0], np.cumsum(lengths)]), names)
    values = flat.reshape(len(keys), lengths[0], *first.shape[1:])
    return checked(Column(location, values, keys=names))


def _alike(row: np.ndarray, first: np.ndarray, *, where: str) -> np.ndarray:
    """Returns `row` if its rank and width are those of `first`; a missing row becomes NaN.

    Raises:
        UserError: rank or width differ.
    """
    if not row.ndim:
        raise UserError(f"{where} is a single number; give a column of lists.")
    vector = first.ndim == 1 and first.dtype.kind == "f"
    if vector and row.size == 1 and np.isnan(row).all():
        return np.full(first.shape, np.nan, np.float32)
    axes = slice(0 if vector else 1, None)
    if row.ndim != first.ndim or row.shape[axes] != first.shape[axes]:
        raise UserError(
            f"{where} has shape {list(row.shape)}, the first row {list(first.shape)}; give vectors "
            "of one length, or sequences of tokens of one width."
        )
    return row


def checked(column: Column) -> Column:
    """Returns `column` if it consists of numeric vectors or sequences, with a key per row or none.

    Raises:
        UserError: its shape or the number of its keys is another.
    """
    values, keys = column.values, column.keys
    if len(values.shape) > 3 or not len(values.shape):
        raise UserError(
            f"{column.where} has shape {list(values.shape)}; give vectors [n, d] or sequences of "
            "tokens [n, l, d]."
        )
    if keys is not None and len(keys) != len(values):
        raise UserError(
            f"{column.where} has {len(values)} rows but {len(keys)} keys; write them together."
        )
    return column
