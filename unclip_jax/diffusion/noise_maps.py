"""DDPM inversion: a sample as the noise of every step, which holds its form under edits.

x_T of DDIM inversion is one noise for the whole chain, and an edit of the condition has the whole
chain to move things in. Here x_t is drawn at every level by itself, and what has to be added to the
model's mean at each step to get from one to the next is kept. Walked again under the same condition
they give the sample back up to rounding, whatever the model; under another one, they hold on to it.
Source: Huberman-Spiegelglas, Kulikov & Michaeli, CVPR 2024 (arXiv 2304.06140).

Two things differ from theirs: eta may be less than 1, which holds on more, and the last step has a
map too, what the model's last x_0 misses, where they add nothing.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from unclip_jax.core import rng
from unclip_jax.core.checks import in_range
from unclip_jax.core.types import Keys
from unclip_jax.diffusion import samplers
from unclip_jax.diffusion.guidance import Denoiser
from unclip_jax.diffusion.process import Prediction
from unclip_jax.diffusion.samplers import Ddim, StepInputs
from unclip_jax.diffusion.schedule import Schedule

X = Float[Array, " b *s"]


class NoiseMaps(NamedTuple):
    """A sample as where a chain begins and what every step of it adds; float32.

    Attributes:
        x_t: the sample with noise at the first level of the walk.
        maps: what is added to the model's mean, step by step, most noise first; where there is
            noise, sigma_t z_t in the paper's words.
    """

    x_t: X
    maps: Float[Array, " b k *s"]


def steps(schedule: Schedule, *, strength: float) -> StepInputs:
    """The last `strength` of a chain, most noise first; at least one step.

    Raises:
        UserError: `strength` is outside [0, 1].
    """
    in_range("strength", strength, 0.0, 1.0)
    kept = max(1, round(strength * schedule.num_timesteps))
    return jax.tree.map(lambda table: table[-kept:], samplers.step_inputs(schedule))


def encode(
    denoise: Denoiser, x_0: X, *, walk: StepInputs, eta: float | Float[Array, ""], keys: Keys
) -> NoiseMaps:
    """Find the noise of every step.

        x_t = signal_t x_0 + noise_t n_t,   map_t = x_s - mean(x_t),   x_s = x_0 at the end

    with the n_t of all levels independent, and the mean that of DDIM at `eta`.

    Args:
        denoise: (x_t, original timesteps) -> Prediction, under the condition of the sample.
        x_0: what to encode.
        walk: of `steps`.
        eta: DDIM's noise share; 1 is the paper's, less holds on more.
        keys: one per example.
    """
    x_0 = x_0.astype(jnp.float32)

    def body(x_t: X, at: StepInputs) -> tuple[X, X]:
        # at the last step noise_s is 0 and signal_s is 1
        x_s = at.signal_s * x_0 + at.noise_s * _draw(keys, at.position - 1, x_0)
        mean = _mean(denoise(x_t, jnp.broadcast_to(at.t, x_t.shape[:1])), x_t, at, eta)
        return mean + (x_s - mean), x_s - mean  # as `decode` will add it up, so that errors do not

    first = jax.tree.map(lambda table: table[0], walk)
    x_t = first.signal_t * x_0 + first.noise_t * _draw(keys, first.position, x_0)
    maps = jax.lax.scan(body, x_t, walk)[1]
    return NoiseMaps(x_t, jnp.moveaxis(maps, 0, 1))


def decode(
    denoise: Denoiser, given: NoiseMaps, *, walk: StepInputs, eta: float | Float[Array, ""]
) -> tuple[X, X]:
    """Walk again, under any condition.

    Args:
        denoise: as for `encode`, under the condition wanted.
        given: of `encode`, or the rest of it after a part of the walk.
        walk: the steps whose maps are given.
        eta: that of `encode`.

    Returns:
        x_t after the last of these steps, and the clean sample predicted at it.
    """

    def body(carry: tuple[X, X], inputs: tuple[StepInputs, X]) -> tuple[tuple[X, X], None]:
        at, noise = inputs
        pred = denoise(carry[0], jnp.broadcast_to(at.t, carry[0].shape[:1]))
        return (_mean(pred, carry[0], at, eta) + noise, pred.x_0), None

    start = (given.x_t, jnp.zeros_like(given.x_t))
    return jax.lax.scan(body, start, (walk, jnp.moveaxis(given.maps, 1, 0)))[0]


def _mean(pred: Prediction, x_t: X, at: StepInputs, eta: float | Float[Array, ""]) -> X:
    share = jnp.broadcast_to(jnp.asarray(eta, jnp.float32), x_t.shape[:1])
    return Ddim(share)(x_t, pred, at, jnp.zeros_like(x_t))


def _draw(keys: Keys, position: Array, like: X) -> X:
    return rng.normal_each(rng.fold_each(keys, "noise_map", position), like.shape[1:])
