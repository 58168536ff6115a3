"""Attention masks of a stream of caption tokens and a grid of codes (DALL-E, appendix B.1).

States are ordered: `context` caption tokens, then one state per code in raster order, numbered by
the code that it predicts. A caption token attends to those up to it; a code attends to the whole
caption and, among codes, to a pattern of the grid (figure 11). Tables are True where a state (row)
attends to another (column).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from unclip_jax.core.checks import UserError, one_of

PATTERNS = ("row", "column", "convolution", "full")


class AttentionPlan(NamedTuple):
    """The pattern of every layer of a transformer.

    Attributes:
        tables: one per distinct pattern, bool [p l l].
        order: the number of every layer's table.
    """

    tables: np.ndarray
    order: tuple[int, ...]


def grid_mask(pattern: str, *, grid: int, kernel: int = 11) -> np.ndarray:
    """Returns the mask among the codes of a grid x grid image, bool [k k].

    Args:
        pattern: "row" (a code, and the `grid` codes before it), "column" (those above it too),
            "convolution" (those of a kernel x kernel window, which wraps around the edges), or
            "full" (all up to it).
        grid: side of the grid.
        kernel: side of the window, odd.

    Raises:
        UserError: an unknown pattern or an even kernel.
    """
    one_of("attention pattern", pattern, PATTERNS)
    if kernel < 1 or kernel % 2 == 0:
        raise UserError(f"the kernel of convolutional attention is {kernel}; give an odd number.")
    state = np.arange(grid * grid)
    back = state[:, None] - state[None, :]  # how many codes earlier
    if pattern == "row":
        visible = back <= grid
    elif pattern == "column":
        visible = back % grid == 0
    elif pattern == "convolution":
        half = kernel // 2
        offsets = [r * grid + c for r in range(half + 1) for c in range(-half, half + 1)]
        visible = np.isin(back, offsets)
    else:
        visible = np.ones_like(back, bool)
    return visible & (back >= 0)


def stream_mask(pattern: str, *, context: int, grid: int, kernel: int = 11) -> np.ndarray:
    """Returns the mask of the whole stream, bool [l l] with l = context + grid^2."""
    length = context + grid * grid
    mask = np.tril(np.ones((length, length), bool))
    mask[context:, context:] = grid_mask(pattern, grid=grid, kernel=kernel)
    return mask


def plan(names: Sequence[str], *, context: int, grid: int, kernel: int) -> AttentionPlan:
    """Returns the masks of layers whose patterns are `names`."""
    distinct = sorted(set(names))
    tables = [stream_mask(name, context=context, grid=grid, kernel=kernel) for name in distinct]
    return AttentionPlan(np.stack(tables), tuple(distinct.index(name) for name in names))


def sparse_order(depth: int) -> tuple[str, ...]:
    """Returns the paper's patterns: row, column, row, row repeated, and a convolution last."""
    return (*(("row", "column", "row", "row")[i % 4] for i in range(depth - 1)), "convolution")
