"""One training step as a pure function: (state, batch, key) -> (state, metrics).

    gradients (mean over microbatches, float32) -> finite? -> clip, update -> average

A step whose loss or gradients are not finite changes only the counters, bit for bit.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from unclip_jax.core import rng
from unclip_jax.core.checks import divisible
from unclip_jax.core.types import Batch, Key, Metrics, Params, Scalar
from unclip_jax.training.state import TrainState, averaged, warmed_decay

Loss = Callable[[Params, Batch, Key], tuple[Scalar, Metrics]]
Gradient = Callable[[Loss, Params, Batch, Key], tuple[Params, Metrics]]  # such as `gradients`
Annealed = Callable[[Int[Array, ""]], dict[str, Scalar]]
TrainStep = Callable[..., tuple[TrainState, Metrics]]


def make_train_step(
    loss: Loss,
    tx: optax.GradientTransformation,
    *,
    ema_decay: float,
    accumulate: int = 1,
    shardings: Any = None,
    gradient: Gradient | None = None,
    annealed: Annealed | None = None,
) -> TrainStep:
    """Creates the step of a run, to be jitted by the caller with the state donated.

    Args:
        loss: (params, batch, key) -> (scalar, metrics); the key is its only source of randomness.
        tx: the optimiser, including clipping.
        ema_decay: largest decay of the parameter average; see `state.warmed_decay`.
        accumulate: microbatches per step; the memory for activations is divided by it.
        shardings: shardings of the parameters, for accumulated gradients; None = XLA's choice.
        gradient: computes the gradient of a (micro)batch; None = `gradients`.
        annealed: `Stage.annealed`, whose values become fields of the batch.

    Returns:
        step(state, batch, key, *teacher). `key` is the run's key, the same at every step; the step
        number is folded in here. The parameters of a teacher are not changed. Metrics are those of
        the loss and "loss", "grad_norm" (before clipping) and "bad_steps".

    Raises:
        UserError: `accumulate` does not divide the batch (raised while tracing).
    """

    def step(
        state: TrainState, batch: Batch, key: Key, *teacher: Params
    ) -> tuple[TrainState, Metrics]:
        of_one = functools.partial(gradient or gradients, with_teacher(loss, teacher))
        key = rng.fold(key, "train", state.step)
        if annealed is not None:
            size = len(jax.tree.leaves(batch)[0])
            fields = {name: jnp.full(size, x) for name, x in annealed(state.step).items()}
            batch = {**batch, **fields}
        if accumulate == 1:
            grads, metrics = of_one(state.params, batch, key)
        else:
            parts = split(batch, accumulate)
            grads, metrics = _accumulated(of_one, state.params, parts, key, shardings)
        norm = optax.tree.norm(grads)
        finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(norm)
        new = _updated(state, grads, tx, ema_decay)
        old = dataclasses.replace(state, bad_steps=state.bad_steps + 1)
        new = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, old)
        new = dataclasses.replace(new, step=state.step + 1)
        return new, {**metrics, "grad_norm": norm, "bad_steps": new.bad_steps}

    return step


def with_teacher(loss: Callable[..., Any], teacher: Sequence[Params]) -> Loss:
    """Returns a loss of (params, batch, key) with the parameters of its teacher, if it has one."""
    return lambda params, batch, key: loss(params, batch, key, *teacher)


def gradients(loss: Loss, params: Params, batch: Batch, key: Key) -> tuple[Params, Metrics]:
    """Computes float32 gradients of `loss`, and its metrics including "loss"."""
    (value, metrics), grads = jax.value_and_grad(loss, has_aux=True)(params, batch, key)
    return grads, {**metrics, "loss": value}


def split(batch: Batch, parts: int) -> Batch:
    """Splits [b ...] to [parts b/parts ...].

    Microbatch j contains the examples j, j + parts, j + 2 parts...; with this stride every device
    splits its own examples and none moves between devices.

    Raises:
        UserError: `parts` does not divide the batch.
    """

    def strided(x: jax.Array) -> jax.Array:
        divisible("batch size", x.shape[0], parts, "change config.train.accumulate.")
        return jnp.moveaxis(x.reshape(x.shape[0] // parts, parts, *x.shape[1:]), 1, 0)

    return {name: strided(x) for name, x in batch.items()}


def _accumulated(
    of_one: Callable[[Params, Batch, Key], tuple[Params, Metrics]],
    params: Params,
    parts: Batch,
    key: Key,
    shardings: Any,
) -> tuple[Params, Metrics]:
    """Averages gradients and metrics over microbatches, one at a time in a scan."""
    count = jax.tree.leaves(parts)[0].shape[0]

    def body(total: Params, part: tuple[jax.Array, Batch]) -> tuple[Params, Metrics]:
        index, batch = part
        grads, metrics = of_one(params, batch, rng.fold(key, index))
        return _placed(jax.tree.map(jnp.add, total, grads), shardings), metrics

    zeros = _placed(jax.tree.map(jnp.zeros_like, params), shardings)
    total, metrics = jax.lax.scan(body, zeros, (jnp.arange(count), parts))
    mean = jax.tree.map(lambda x: x / count, total)
    return mean, jax.tree.map(lambda x: jnp.mean(x, axis=0), metrics)


def _placed(tree: Params, shardings: Any) -> Params:
    return tree if shardings is None else jax.lax.with_sharding_constraint(tree, shardings)


def _updated(
    state: TrainState, grads: Params, tx: optax.GradientTransformation, ema_decay: float
) -> TrainState:
    """Returns the state after a finite step, except for the step counter."""
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    params: Any = optax.apply_updates(state.params, updates)
    ema = averaged(state.ema_params, params, decay=warmed_decay(state.step, ema_decay))
    return TrainState(
        step=state.step,
        params=params,
        ema_params=ema,
        opt_state=opt_state,
        bad_steps=jnp.zeros_like(state.bad_steps),
    )
