"""Sharpness-aware minimisation: step along the gradient at the worst point nearby.

    up    eps = rho g / |g|, with g the gradient at w
    down  the gradient at w + eps goes to the optimiser          (Foret et al. 2021, eq. 2 and 3)

unCLIP trains CLIP with rho = 0.1, and each replica of 64 examples has its own perturbation (arXiv
2204.06125, appendix C): m-sharpness (arXiv 2010.01412, section 4.1). Replica r has its own
parameters P_r. With L(P_1, ..., P_R) the loss of the whole batch, g_r is dL/dP_r at equal P, and
the optimiser receives the sum of dL/dP_r at P_r = w + eps_r. For a mean over examples, g_r is the
gradient of the replica's own examples; with a contrastive loss each replica sees all embeddings, in
both passes.

The number of replicas follows from the config, not from the devices, so a run that continues on
other devices is the same run.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, PartitionSpec

from unclip_jax.core import rng
from unclip_jax.core.checks import UserError
from unclip_jax.core.types import Batch, Key, Keys, Metrics, Params
from unclip_jax.parallel.mesh import BATCH_AXES, batch_shards
from unclip_jax.training.optimizer import OptimConfig
from unclip_jax.training.step import Gradient, Loss, gradients

REPLICA = "replica"  # axis of the replicas on one device
AXES = (*BATCH_AXES, REPLICA)  # axes of all replicas


def copies(optim: OptimConfig, *, mesh: Mesh, batch_size: int, accumulate: int = 1) -> int:
    """Returns the number of parameter sets on every device for SAM per replica; 0 without it.

    All replicas of a device have one at the same time; with `optim.sam_cached` they have it one
    after the other.

    Args:
        optim: settings with `sam` and `sam_batch`.
        mesh: the devices, whose shards contain the replicas.
        batch_size: examples per step, over all devices.
        accumulate: microbatches per step.

    Raises:
        UserError: the shards of a (micro)batch are not multiples of a replica.
    """
    if not (optim.sam and optim.sam_batch):
        return 0
    shards = batch_shards(mesh)
    local = batch_size // (shards * accumulate)
    if local % optim.sam_batch:
        raise UserError(
            f"config.optim.sam_batch is {optim.sam_batch}, which does not divide the {local} "
            f"examples that each of the mesh's {shards} batch shards has of a microbatch; change "
            "it, config.train.batch_size or the mesh."
        )
    return 1 if optim.sam_cached else local // optim.sam_batch


def parts(optim: OptimConfig, *, mesh: Mesh, batch_size: int, accumulate: int = 1) -> int:
    """Returns the number of parts of a batch whose activations are stored one after the other."""
    if optim.sam and optim.sam_batch and optim.sam_cached:
        return batch_size // (batch_shards(mesh) * optim.sam_batch)
    return accumulate


def whole_batch(rho: float, *, plain: Gradient = gradients) -> Gradient:
    """Returns the gradient with one perturbation of length `rho` per (micro)batch.

    Args:
        rho: length of the perturbation.
        plain: function that computes the gradient at given parameters.
    """

    def gradient(loss: Loss, params: Params, batch: Batch, key: Key) -> tuple[Params, Metrics]:
        up, metrics = plain(loss, params, batch, key)
        down, worse = plain(loss, perturbed(params, up, rho=rho), batch, key)
        return down, {**metrics, "sharpness": worse["loss"] - metrics["loss"]}

    return gradient


def per_replica(rho: float, *, examples: int, mesh: Mesh) -> Gradient:
    """Returns the gradient with a perturbation of length `rho` per `examples` consecutive examples.

    The loss is called once per replica, under named axes (`BATCH_AXES` and `REPLICA`), and must
    return the replica's share: the mean of these is the loss of the batch. Every device stores
    whole parameters for each of its replicas, however they are sharded elsewhere.
    """

    def gradient(loss: Loss, params: Params, batch: Batch, key: Key) -> tuple[Params, Metrics]:
        function = functools.partial(_on_one_shard, loss, rho, examples)
        return on_shards(function, mesh)(params, batch, key)

    return gradient


def on_shards(function: Callable[..., tuple[Params, Metrics]], mesh: Mesh) -> Callable[..., Any]:
    """Returns a function of (params, batch, key) that calls `function` on each shard of the batch.

    `function` receives whole parameters; means of its results over all shards are returned.
    """
    whole, by_shard = PartitionSpec(), PartitionSpec(BATCH_AXES)
    return jax.shard_map(
        function,
        mesh=mesh,
        in_specs=(whole, by_shard, whole),
        out_specs=whole,
        axis_names=frozenset(BATCH_AXES),
        check_vma=False,  # gradients stay separate until the mean at the end
    )


def replicas(batch: Batch, key: Key, *, examples: int) -> tuple[Batch, Keys]:
    """Splits the batch of one shard into replicas of `examples`, each with a key of its own."""
    count = jax.tree.leaves(batch)[0].shape[0] // examples
    parts = {k: v.reshape(count, examples, *v.shape[1:]) for k, v in batch.items()}
    number = jax.lax.axis_index(BATCH_AXES) * count + jnp.arange(count)
    return parts, jax.vmap(lambda index: rng.fold(key, REPLICA, index))(number)


def perturbed(params: Params, gradient: Params, *, rho: float) -> Params:
    """Moves `params` by `rho` along `gradient`, normalised over all leaves (eq. 2, p = 2).

    The gradient is first divided by its largest entry, because its square may underflow or
    overflow. A gradient of zero changes nothing.
    """
    largest = jnp.max(jnp.stack([jnp.max(jnp.abs(g)) for g in jax.tree.leaves(gradient)]))
    safe = jnp.where(largest > 0, largest, 1.0)
    direction = jax.tree.map(lambda g: g / safe, gradient)
    scale = rho / jnp.maximum(optax.tree.norm(direction), 0.5)  # at least 1 unless all are zero
    return jax.tree.map(lambda w, g: w + scale * g, params, direction)


def _on_one_shard(
    loss: Loss, rho: float, examples: int, params: Params, batch: Batch, key: Key
) -> tuple[Params, Metrics]:
    """Computes the mean of the second gradients over all replicas, on one shard."""
    parts, keys = replicas(batch, key, examples=examples)
    share: Callable[..., Any] = jax.vmap(loss, axis_name=REPLICA)

    def total(own: Params) -> tuple[Any, Any]:
        values, metrics = share(own, parts, keys)
        return jnp.sum(values), (values, metrics)

    slope = jax.grad(total, has_aux=True)
    same = jax.tree.map(lambda x: jnp.broadcast_to(x, (len(keys), *x.shape)), params)
    up, (values, metrics) = slope(same)
    down, (worse, _) = slope(jax.vmap(functools.partial(perturbed, rho=rho))(same, up))
    metrics = {**metrics, "loss": values, "sharpness": worse - values}
    return jax.tree.map(lambda x: jax.lax.pmean(jnp.mean(x, axis=0), BATCH_AXES), (down, metrics))
