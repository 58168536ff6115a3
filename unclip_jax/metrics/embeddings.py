"""Agreement of sampled embeddings with the true ones, pair by pair; all vectors have norm 1.

Distances between distributions are in `frechet`.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from unclip_jax.metrics.intervals import Mean, Rate, bootstrap, wilson

Vectors = Float[np.ndarray, "n d"]


def cosine(sampled: Vectors, true: Vectors) -> Mean:
    """Computes the mean cosine between corresponding rows."""
    return bootstrap(np.sum(sampled.astype(np.float64) * true, axis=1))


def retrieval_ranks(sampled: Vectors, pool: Vectors, *, group: int) -> Int[np.ndarray, " m"]:
    """Computes the rank of row i of `pool` by its dot product with row i of `sampled`, 1 = nearest.

    Rows are compared within groups of `group` rows, on whose size ranks depend; an incomplete last
    group is left out unless it is the only one. Ties count as if the others ranked higher, so
    vectors that do not distinguish rows have the worst rank.
    """
    group = min(group, len(sampled))
    ranks = []
    for start in range(0, len(sampled) - group + 1, group):
        part = slice(start, start + group)
        scores = sampled[part].astype(np.float64) @ pool[part].astype(np.float64).T
        ranks.append(np.sum(scores >= np.diagonal(scores)[:, None], axis=1))
    return np.concatenate(ranks)


def retrieval_rate(sampled: Vectors, pool: Vectors, *, group: int) -> Rate:
    """Computes retrieval at 1: the share of rows whose nearest row of `pool` is their own."""
    ranks = retrieval_ranks(sampled, pool, group=group)
    return wilson(int(np.sum(ranks == 1)), len(ranks))


def first_occurrences(names: Sequence[str]) -> Int[np.ndarray, " m"]:
    """Returns the index of the first row of every name; equal captions are indistinguishable."""
    return np.sort(np.unique(np.asarray(names), return_index=True)[1])
