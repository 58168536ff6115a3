"""A search for the timesteps of a sampler of few steps that minimise an error.

Source: grids that are optimised for a solver and a model, as in Align Your Steps (arXiv
2404.14507), but by the error of the samples themselves instead of a bound on the divergence.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

SMALLEST = 250  # the search ends at moves of T / 250
MOST = 400  # evaluations of the error

Indices = Int[np.ndarray, " n"]


class Optimum(NamedTuple):
    """The result of a search.

    Attributes:
        indices: of the grid, ascending.
        error: of this grid.
        evaluations: number of grids whose error was computed.
    """

    indices: Indices
    error: float
    evaluations: int


def search(
    error: Callable[[Indices], float],
    *,
    start: Indices,
    num_timesteps: int,
    most: int = MOST,
) -> Optimum:
    """Minimises `error` by moving one index at a time (pattern search, Hooke & Jeeves 1961).

    Moves begin with half of a step of an even grid, and are halved when none of them lowers the
    error. The last index, where sampling begins, stays.

    Args:
        error: of a grid with as many indices as `start`.
        start: indices in ascending order.
        num_timesteps: T, the length of the chain.
        most: evaluations of `error` after which the search ends.
    """
    best, lowest, count = start, error(start), 1
    smallest = max(num_timesteps // SMALLEST, 1)
    stride = max(num_timesteps // (2 * len(start)), smallest)
    while stride >= smallest:
        moved = False
        for index in range(len(start) - 1):
            for candidate in _moves(best, index, stride):
                if count == most:
                    return Optimum(best, lowest, count)
                value = error(candidate)
                count += 1
                if value < lowest:
                    best, lowest, moved = candidate, value, True
                    break
        stride = stride if moved else stride // 2
    return Optimum(best, lowest, count)


def _moves(indices: Indices, index: int, stride: int) -> list[Indices]:
    """Returns the grids with one index moved down or up, as far as they ascend from 0."""
    grids = []
    for move in (-stride, stride):
        grid = indices.copy()
        grid[index] += move
        if grid[0] >= 0 and np.all(np.diff(grid) > 0):
            grids.append(grid)
    return grids
