"""Exact gradients of a loss of the whole batch, computed part by part.

    1  embed part by part                         the embeddings are small and are stored
    2  dL/dF, F the embeddings of the batch       the loss sees all pairs
    3  part by part: dL/dw = sum of (dF/dw)^T dL/dF, with the embeddings computed again

The memory for activations is that of one part, at the cost of one more forward pass (GradCache,
Gao et al., arXiv 2101.06983). With SAM per replica (`training.sam`) the parts are the replicas,
perturbed one after the other, so a device stores one perturbed copy of the parameters instead of
one per replica, at the cost of two more gradients of each replica.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float

from unclip_jax.core import rng
from unclip_jax.core.stage import PairwiseLoss
from unclip_jax.core.types import Batch, Key, Metrics, Params, Scalar
from unclip_jax.parallel.mesh import BATCH_AXES
from unclip_jax.training import sam
from unclip_jax.training.step import Gradient, Loss, split

Embeddings = Any  # a tree whose leaves have one row per example, or are scalars


class Slopes(NamedTuple):
    """Derivatives of a loss by embeddings, and the values of the loss and its metrics."""

    embeddings: Embeddings
    values: Float[Array, "*r"]
    metrics: Metrics


def accumulated(pairwise: PairwiseLoss, *, parts: int, shardings: Any = None) -> Gradient:
    """Returns the gradient of the loss of a whole batch from `parts` microbatches of it.

    Args:
        pairwise: the loss.
        parts: number of microbatches.
        shardings: shardings of the parameters, for the sum of gradients; None = XLA's choice.
    """

    def gradient(loss: Loss, params: Params, batch: Batch, key: Key) -> tuple[Params, Metrics]:
        keys = jax.vmap(lambda index: rng.fold(key, index))(jnp.arange(parts))
        inputs = (split(batch, parts), keys)
        embeddings = jax.lax.map(lambda x: pairwise.embed(params, *x), inputs)

        def whole(embeddings: Embeddings) -> tuple[Scalar, tuple[Scalar, Metrics]]:
            value, metrics = pairwise.share(())(jax.tree.map(_joined, embeddings))
            return value, (value, metrics)

        slopes = _slopes(whole, embeddings)
        total = _summed(
            lambda part, key, slope: _pulled_back(pairwise, params, part, key, slope),
            (*inputs, slopes.embeddings),
            like=params,
            shardings=shardings,
        )
        return total, {**slopes.metrics, "loss": slopes.values}

    return gradient


def sam_per_replica(pairwise: PairwiseLoss, rho: float, *, examples: int, mesh: Mesh) -> Gradient:
    """Returns the gradient that `sam.per_replica` computes, one replica after the other."""

    def gradient(loss: Loss, params: Params, batch: Batch, key: Key) -> tuple[Params, Metrics]:
        function = functools.partial(_on_one_shard, pairwise, rho, examples)
        return sam.on_shards(function, mesh)(params, batch, key)

    return gradient


def _on_one_shard(
    pairwise: PairwiseLoss, rho: float, examples: int, params: Params, batch: Batch, key: Key
) -> tuple[Params, Metrics]:
    """Computes the mean of the second gradients over all replicas, on one shard."""
    inputs = sam.replicas(batch, key, examples=examples)
    share = jax.vmap(pairwise.share(sam.AXES), axis_name=sam.REPLICA)

    def total(embeddings: Embeddings) -> tuple[Scalar, tuple[Array, Metrics]]:
        values, metrics = share(embeddings)
        return jnp.sum(values), (values, metrics)

    def moved(part: Batch, key: Key, slope: Embeddings) -> Params:
        up = _pulled_back(pairwise, params, part, key, slope)
        return sam.perturbed(params, up, rho=rho)

    def second(part: Batch, key: Key, slope: Embeddings, worse: Embeddings) -> Params:
        return _pulled_back(pairwise, moved(part, key, slope), part, key, worse)

    up = _slopes(total, jax.lax.map(lambda x: pairwise.embed(params, *x), inputs))
    cached = (*inputs, up.embeddings)
    down = _slopes(total, jax.lax.map(lambda x: pairwise.embed(moved(*x), *x[:2]), cached))
    summed = _summed(second, (*cached, down.embeddings), like=params)
    mean = jax.tree.map(lambda x: x / len(up.values), summed)
    metrics = {**up.metrics, "loss": up.values, "sharpness": down.values - up.values}
    metrics = jax.tree.map(lambda x: jnp.mean(x, axis=0), metrics)
    return jax.tree.map(lambda x: jax.lax.pmean(x, BATCH_AXES), (mean, metrics))


def _slopes(loss: Callable[[Embeddings], Any], embeddings: Embeddings) -> Slopes:
    """Differentiates (sum of the values, (values, metrics)) with respect to the embeddings."""
    slopes, (values, metrics) = jax.grad(loss, has_aux=True)(embeddings)
    return Slopes(slopes, values, metrics)


def _pulled_back(
    pairwise: PairwiseLoss, params: Params, part: Batch, key: Key, slope: Embeddings
) -> Params:
    """Computes the gradient of the parameters for one part from that of its embeddings."""
    _, pull_back = jax.vjp(lambda p: pairwise.embed(p, part, key), params)
    return pull_back(slope)[0]


def _summed(
    gradient: Callable[..., Params], inputs: tuple[Any, ...], *, like: Params, shardings: Any = None
) -> Params:
    """Adds up the gradients of all parts, one at a time in a scan."""

    def placed(tree: Params) -> Params:
        return tree if shardings is None else jax.lax.with_sharding_constraint(tree, shardings)

    def body(total: Params, each: tuple[Any, ...]) -> tuple[Params, None]:
        return placed(jax.tree.map(jnp.add, total, gradient(*each))), None

    return jax.lax.scan(body, placed(jax.tree.map(jnp.zeros_like, like)), inputs)[0]


def _joined(leaf: Float[Array, "..."]) -> Float[Array, "..."]:
    """Joins the rows of parts in the order before `split`; scalars are equal in all parts."""
    if leaf.ndim == 1:
        return jnp.mean(leaf)
    return jnp.moveaxis(leaf, 0, 1).reshape(-1, *leaf.shape[2:])
