"""Sampling in parts: looking at x_0 on the way, or stopping between two parts of the chain.

`samplers.sample` is the whole chain and nothing else; this module walks the same steps with the
same noise and also hands out what the model believes in between.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from unclip_jax.core import rng
from unclip_jax.core.checks import in_range
from unclip_jax.core.types import Keys
from unclip_jax.diffusion import samplers
from unclip_jax.diffusion.guidance import Denoiser
from unclip_jax.diffusion.samplers import StepInputs, StepRule
from unclip_jax.diffusion.schedule import Schedule

X = Float[Array, " b *s"]


def walk(
    denoise: Denoiser, x_t: X, *, inputs: StepInputs, step: StepRule, keys: Keys
) -> tuple[X, X]:
    """Take the steps in `inputs`, a part of `samplers.step_inputs`, most noise first.

    Walking all parts one after the other is `samplers.sample` with the same keys.

    Returns:
        x_t after the last of these steps, and the clean sample predicted at it.
    """

    def body(carry: tuple[X, X], at: StepInputs) -> tuple[tuple[X, X], None]:
        return _step(denoise, carry[0], at, step, keys), None

    return jax.lax.scan(body, (x_t, jnp.zeros_like(x_t)), inputs)[0]


def sample_with_previews(
    denoise: Denoiser,
    x_T: X,
    *,
    schedule: Schedule,
    step: StepRule,
    keys: Keys,
    count: int,
) -> tuple[X, Float[Array, " p b *s"]]:
    """`samplers.sample`, and `count` clean samples predicted on the way, evenly spaced.

    The last of them is the prediction of the last step. One scan keeps them in one buffer.

    Raises:
        UserError: there are fewer steps than previews.
    """
    total = schedule.num_timesteps
    in_range("number of previews", count, 1, total)
    slots = jnp.asarray(preview_slots(total, count))

    def body(carry, inputs):
        x_t, seen = carry
        at, slot = inputs
        x_t, x_0 = _step(denoise, x_t, at, step, keys)
        return (x_t, seen.at[slot].set(x_0)), None  # the last step of a slot is what stays in it

    seen = jnp.zeros((count, *x_T.shape), x_T.dtype)
    inputs = (samplers.step_inputs(schedule), slots)
    return jax.lax.scan(body, (x_T, seen), inputs)[0]


def preview_slots(steps: int, count: int) -> Int[np.ndarray, " n"]:
    """Which of `count` nearly equal parts of the chain each step lies in: [0, 0, 1, 1, 1]."""
    return (np.arange(steps) * count // steps).astype(np.int32)


def parts(inputs: StepInputs, count: int) -> list[StepInputs]:
    """Cut a chain into `count` nearly equal parts for `walk`, most noise first."""
    slots = preview_slots(len(inputs.t), count)
    edges = [*np.searchsorted(slots, np.arange(count)), len(slots)]
    return [jax.tree.map(lambda x, a=a, b=b: x[a:b], inputs) for a, b in itertools.pairwise(edges)]


def _step(denoise: Denoiser, x_t: X, at: StepInputs, step: StepRule, keys: Keys) -> tuple[X, X]:
    pred = denoise(x_t, jnp.broadcast_to(at.t, x_t.shape[:1]))
    noise = rng.normal_each(rng.fold_each(keys, "step", at.position), x_t.shape[1:])
    return step(x_t, pred, at, noise), pred.x_0
