"""Fits a `PcaQuantizer` to training embeddings: PCA, then buckets of equally many rows each.

In float64 on the host, block by block, because the embeddings of a real data set fit no memory:
one pass for mean and covariance, one for the coordinates on the components kept (float32, the only
array with every row). Source: unCLIP (arXiv 2204.06125), section 2.2; where buckets lie
is our choice, the paper is silent.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from unclip_jax.core.arrays import unit
from unclip_jax.core.checks import UserError
from unclip_jax.core.stage import FittedParams, Rows
from unclip_jax.core.types import HostBatch
from unclip_jax.models.pca_quantizer import DotQuantizerConfig, PcaQuantizerConfig

MIN_EIGENVALUE = 1e-10  # eigenvalues below this share of the largest are rounding, not data

Vectors = Float[np.ndarray, " n z"]
# Block of training rows -> the vectors to quantise in float64, and dot products or None.
Read = Callable[[HostBatch], tuple[Vectors, Float[np.ndarray, " n"] | None]]


class RowMoments(NamedTuple):
    """Number, mean and summed squared deviations of rows."""

    rows: int
    mean: Float[np.ndarray, " z"]
    scatter: Float[np.ndarray, " z z"]


class Components(NamedTuple):
    """A principal component analysis.

    Attributes:
        rows: number of rows.
        mean: of the rows.
        basis: orthonormal rows, by decreasing eigenvalue; the largest entry of each is positive.
        eigenvalues: of the covariance (over rows), decreasing, none negative.
    """

    rows: int
    mean: Float[np.ndarray, " z"]
    basis: Float[np.ndarray, " z z"]
    eigenvalues: Float[np.ndarray, " z"]

    @property
    def power(self) -> float:
        """Mean squared norm of the rows."""
        return float(self.mean @ self.mean + self.eigenvalues.sum())

    def explained(self) -> Float[np.ndarray, " z"]:
        """Returns the share of the variance that the first 1, 2, ... components hold."""
        return np.cumsum(self.eigenvalues) / max(self.eigenvalues.sum(), 1e-300)


class Buckets(NamedTuple):
    """Edges and means of the buckets of one coordinate.

    Attributes:
        edges: increasing, float32; a value at an edge lies above it.
        means: of the values in each bucket.
        error: mean squared distance of the values to the mean of their bucket.
    """

    edges: Float[np.ndarray, " e"]
    means: Float[np.ndarray, " c"]
    error: float


def unit_pair(block: HostBatch) -> tuple[Vectors, Float[np.ndarray, " n"]]:
    """Returns unit-norm z_img and its dot products with z_txt (`Read`)."""
    z_img, z_txt = unit_rows(block["z_img"]), unit_rows(block["z_txt"])
    return z_img, np.sum(z_img * z_txt, axis=1)


def fit(
    cfg: PcaQuantizerConfig, rows: Rows, *, components: int, read: Read = unit_pair
) -> FittedParams:
    """Fits the parameters of a `PcaQuantizer`, as group "codec", float32.

    Args:
        cfg: how many buckets, from how many rows; that of a `DotQuantizer` if `read` returns dots.
        rows: opens a pass over at most so many training examples.
        components: k, number of components kept.
        read: block -> vectors and dot products.

    Raises:
        UserError: no rows, rows that are not finite, fewer dimensions in the data than components,
            or buckets that no row falls into.
    """
    pca = principal(read(block)[0] for block in rows(cfg.fit_rows))
    _check_span(pca, components)
    basis = pca.basis[:components]
    x, dots = _coordinates(pca, basis, map(read, rows(cfg.fit_rows)))
    cut = [buckets(x[:, i], count=cfg.buckets, where=f"component {i}") for i in range(components)]
    groups = {
        "mean": pca.mean,
        "basis": basis,
        "eigenvalues": pca.eigenvalues,
        "edges": np.stack([each.edges for each in cut]),
        "centroids": np.stack([each.means for each in cut]),
    }
    if isinstance(cfg, DotQuantizerConfig):
        dot = buckets(dots, count=cfg.dot_buckets, where="z_img . z_txt", key="dot_buckets")
        groups["dot_edges"] = dot.edges
    lost = pca.eigenvalues[components:].sum(), sum(each.error for each in cut)
    note = (
        f"{components} of {len(pca.mean)} principal components explain "
        f"{pca.explained()[components - 1]:.3%} of the variance of {pca.rows:,} embeddings; codes "
        f"lose {sum(lost) / pca.power:.3%} of their squared norm (components "
        f"{lost[0] / pca.power:.3%}, {cfg.buckets} buckets {lost[1] / pca.power:.3%})"
    )
    return FittedParams({"codec": {name: v.astype(np.float32) for name, v in groups.items()}}, note)


def count_components(
    cfg: PcaQuantizerConfig, rows: Rows, *, most: int, read: Read = unit_pair
) -> int:
    """Returns the fewest components that explain `cfg.explained_variance` of the embeddings.

    Raises:
        UserError: as `fit`, or they are more than `most`, which the model can hold.
    """
    pca = principal(read(block)[0] for block in rows(cfg.fit_rows))
    share = pca.explained()
    count = int(np.searchsorted(share, cfg.explained_variance - 1e-12)) + 1
    if count > most:
        raise UserError(
            f"{count} components are needed to explain {cfg.explained_variance:.3%} of the "
            f"training embeddings, but this model holds {most}, which explain "
            f"{share[most - 1]:.3%}; raise config.model.model.latent_context or lower "
            "config.model.model.codec.explained_variance."
        )
    return count


def principal(blocks: Iterable[Vectors]) -> Components:
    """Computes principal components of the rows of all blocks, in float64.

    Raises:
        UserError: there is no row.
    """
    rows, mean, scatter = moments(blocks)
    values, vectors = np.linalg.eigh(scatter / rows)
    values, basis = np.maximum(values[::-1], 0.0), vectors[:, ::-1].T
    largest = np.take_along_axis(basis, np.abs(basis).argmax(1)[:, None], axis=1)
    return Components(rows, mean, basis * np.sign(largest), values)


def moments(blocks: Iterable[Vectors]) -> RowMoments:
    """Computes moments of the rows of all blocks (pairwise update of Chan et al. 1979).

    Raises:
        UserError: there is no row.
    """
    total: RowMoments | None = None
    for z in blocks:
        if not len(z):
            continue
        centred = z - z.mean(axis=0)
        part = RowMoments(len(z), z.mean(axis=0), centred.T @ centred)
        total = part if total is None else _merged(total, part)
    if total is None:
        raise UserError("there are no training embeddings; make some with `unclip_jax.embed`.")
    return total


def buckets(x: Float[np.ndarray, " n"], *, count: int, where: str, key: str = "buckets") -> Buckets:
    """Cuts values into `count` buckets of equally many, to within one.

    Args:
        x: values, float32.
        count: number of buckets.
        where: name of the values, for messages.
        key: of the config that sets `count`, for messages.

    Raises:
        UserError: a bucket would stay empty: fewer values than buckets, or too many equal ones.
    """
    ordered = np.sort(x)
    cuts = np.arange(1, count) * len(x) // count
    below, above = ordered[np.maximum(cuts - 1, 0)], ordered[cuts]
    edges = (below + (above - below) / 2).astype(np.float32)
    edges = np.where(edges > below, edges, above)  # neighbouring floats have no middle
    codes = np.searchsorted(edges, ordered, side="right")
    filled = np.bincount(codes, minlength=count)
    if not filled.all():
        raise UserError(
            f"{np.sum(filled == 0)} of {count} buckets of {where} hold none of the {len(x)} "
            f"training embeddings ({len(np.unique(x))} different values); embed more data or lower "
            f"config.model.model.codec.{key}."
        )
    means = np.bincount(codes, weights=ordered, minlength=count) / filled
    return Buckets(edges, means, float(np.mean((ordered - means[codes]) ** 2)))


def unit_rows(z: Vectors) -> Vectors:
    """Returns rows in float64, scaled to norm 1.

    Raises:
        UserError: one is not finite or has no length.
    """
    z = np.asarray(z, np.float64)
    norm = np.linalg.norm(z, axis=1, keepdims=True)
    if not (np.isfinite(norm).all() and (norm > 0).all()):
        raise UserError(
            "a training embedding is zero or not finite; make the embeddings again with "
            "`python -m unclip_jax.embed`."
        )
    return unit(z)


def _coordinates(
    pca: Components,
    basis: Float[np.ndarray, " k z"],
    blocks: Iterable[tuple[Vectors, Float[np.ndarray, " n"] | None]],
) -> tuple[Float[np.ndarray, " n k"], Float[np.ndarray, " n"]]:
    """Returns coordinates on `basis` and the dot products of all rows, float32; zero for None."""
    x = np.empty((pca.rows, len(basis)), np.float32)
    dots, start = np.zeros(pca.rows, np.float32), 0
    for z, products in blocks:
        stop = start + len(z)
        x[start:stop] = (z - pca.mean) @ basis.T
        if products is not None:
            dots[start:stop] = products
        start = stop
    return x, dots


def _merged(a: RowMoments, b: RowMoments) -> RowMoments:
    rows, gap = a.rows + b.rows, b.mean - a.mean
    scatter = a.scatter + b.scatter + np.outer(gap, gap) * (a.rows * b.rows / rows)
    return RowMoments(rows, a.mean + gap * (b.rows / rows), scatter)


def _check_span(pca: Components, components: int) -> None:
    spanned = int(np.sum(pca.eigenvalues > MIN_EIGENVALUE * pca.eigenvalues[0]))
    if components > spanned:
        raise UserError(
            f"config.model.model.codec.components is {components}, but the {pca.rows} training "
            f"embeddings vary in only {spanned} dimensions; keep at most {spanned}."
        )
