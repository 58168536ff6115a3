"""Unbiased estimate of the best of n candidates from m candidates per caption (n = 1, ..., m).

Sorted by score, the i-th best of m is the best of a random subset of n with probability
C(m - i, n - 1) / C(m, n), so one set of candidates yields the whole curve of means.
"""

import math

import numpy as np
from jaxtyping import Float


def expected_best(
    quality: Float[np.ndarray, " b m"], scores: Float[np.ndarray, " b m"]
) -> Float[np.ndarray, " b m"]:
    """Computes the expected quality of the candidate with the highest score among n, n = 1..m.

    Args:
        quality: of every candidate of every caption, such as a verdict of 0 or 1.
        scores: score by which the best is chosen; the first of equal ones counts as the highest.
    """
    order = np.argsort(-scores, axis=1, kind="stable")
    ranked, count = np.take_along_axis(quality, order, axis=1), quality.shape[1]
    weights = np.array(
        [
            [math.comb(count - i, n - 1) / math.comb(count, n) for n in range(1, count + 1)]
            for i in range(1, count + 1)
        ]
    )
    return ranked.astype(np.float64) @ weights
