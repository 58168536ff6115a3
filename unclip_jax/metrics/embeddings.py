"""How near drawn embeddings come to the true ones, pair by pair; all vectors have norm 1.

What distributions have in common is measured by `frechet`.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from unclip_jax.metrics.intervals import Mean, Rate, bootstrap, wilson

Vectors = Float[np.ndarray, "n d"]


def cosine(drawn: Vectors, true: Vectors) -> Mean:
    """Mean cosine between row i of one and row i of the other."""
    return bootstrap(np.sum(drawn.astype(np.float64) * true, axis=1))


def ranks(drawn: Vectors, pool: Vectors, *, group: int) -> Int[np.ndarray, " m"]:
    """Rank of row i of `pool` by its dot product with row i of `drawn`, 1 = nearest.

    Rows are compared within groups of `group`, on which ranks depend; rows that do not fill a
    group are left out, unless there is but one. Ties count in full, so what cannot tell rows apart
    has the worst rank.
    """
    group = min(group, len(drawn))
    found = []
    for start in range(0, len(drawn) - group + 1, group):
        part = slice(start, start + group)
        scores = drawn[part].astype(np.float64) @ pool[part].astype(np.float64).T
        found.append(np.sum(scores >= np.diagonal(scores)[:, None], axis=1))
    return np.concatenate(found)


def finds(drawn: Vectors, pool: Vectors, *, group: int) -> Rate:
    """Share of rows whose own row of `pool` is the nearest among `group` (retrieval at 1)."""
    found = ranks(drawn, pool, group=group)
    return wilson(int(np.sum(found == 1)), len(found))


def first_of_each(names: Sequence[str]) -> Int[np.ndarray, " m"]:
    """Indices of the first row of every name: equal captions cannot be told apart."""
    return np.sort(np.unique(np.asarray(names), return_index=True)[1])
