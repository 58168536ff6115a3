"""Filling a hole with an unconditional sampler: RePaint.

At every step the known region is replaced by the known image noised to that level, and stretches
of the chain are walked again after adding their noise anew, so that the filling can adapt to what
surrounds it. Source: Lugmayr et al. 2022 (arXiv 2201.09865), algorithm 1 and section 4.2.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from unclip_jax.core import rng
from unclip_jax.core.checks import in_range
from unclip_jax.core.types import Key, Keys
from unclip_jax.diffusion import process, samplers
from unclip_jax.diffusion.guidance import Denoiser
from unclip_jax.diffusion.samplers import StepInputs, StepRule
from unclip_jax.diffusion.schedule import Level, Schedule

X = Float[Array, " b *s"]
MAX_REPEATS = 100
SMALLEST = 0.25  # side of a hole in training, of the picture's; ours, as is its shape
NOTHING = 0.2  # share of pictures of which nothing is known, so that they are still drawn whole


class Visit(NamedTuple):
    """One step of the walk, and the noise added anew before it; scalars inside the scan.

    Attributes:
        row: of `samplers.step_inputs`, 0 = most noise.
        gain: factor on x before the step; 1 where nothing is added.
        spread: standard deviation of what is added; 0 where nothing is.
        again: how often this step was taken before.
    """

    row: Int[Array | np.ndarray, "..."]
    gain: Float[Array | np.ndarray, "..."]
    spread: Float[Array | np.ndarray, "..."]
    again: Int[Array | np.ndarray, "..."]


def visits(schedule: Schedule, *, repeats: int, jump: int) -> Visit:
    """The walk down the chain in stretches of `jump` steps, each walked `repeats` times.

    Going back up over a stretch is one draw: q(x_t | x_s) = N(g x_s, 1 - g^2) with
    g = signal_t / signal_s.

    Raises:
        UserError: repeats or jump out of range.
    """
    in_range("repeats", repeats, 1, MAX_REPEATS)
    in_range("jump", jump, 1, schedule.num_timesteps)
    signal = schedule.signal[::-1]
    rows = []
    for start in range(0, len(signal), jump):
        stop = min(start + jump, len(signal))
        reached = signal[stop] if stop < len(signal) else 1.0
        for again in range(repeats):
            gain = signal[start] / reached if again else 1.0
            rows.append((start, gain, np.sqrt(1.0 - gain**2), again))
            rows += [(row, 1.0, 0.0, again) for row in range(start + 1, stop)]
    columns = [np.array(column) for column in zip(*rows, strict=True)]
    kinds = (np.int32, np.float32, np.float32, np.int32)
    return Visit(*(c.astype(kind) for c, kind in zip(columns, kinds, strict=True)))


def inpaint(
    denoise: Denoiser,
    x_T: X,
    *,
    known: X,
    mask: Float[Array, " b *m"],
    schedule: Schedule,
    step: StepRule,
    keys: Keys,
    repeats: int = 10,
    jump: int = 10,
) -> X:
    """Sample x_0 that equals `known` where `mask` is 1.

    With an empty mask and no repeats this is `samplers.sample` with the same keys.

    Args:
        denoise: (x_t, original timesteps) -> Prediction; need not know of the hole.
        x_T: where to start.
        known: the image; its values in the hole do not matter.
        mask: 1 = known, 0 = to be filled; the rank of x, broadcast against it.
        schedule: the chain to walk.
        step: a stochastic rule gives repeats something to change; DDIM with eta 0 works too.
        keys: one key per example.
        repeats: times that every stretch is walked; 1 = no resampling (10 in the paper).
        jump: steps in a stretch (10 in the paper).

    Returns:
        x_0, with the known region copied from `known`.
    """
    inputs = samplers.step_inputs(schedule)
    total = schedule.num_timesteps

    def mixed(x_t: X, noised: X) -> X:
        return jnp.where(mask > 0.5, noised, x_t)

    def body(x_t: X, visit: Visit) -> tuple[X, None]:
        at: StepInputs = jax.tree.map(lambda table: table[visit.row], inputs)
        address = at.position + visit.again * total  # a first visit draws what `sample` would
        x_t = jnp.asarray(visit.gain) * x_t + visit.spread * _normal(keys, "up", address, x_t)
        level = Level(at.signal_t, at.noise_t)
        seen = process.q_sample(known, _normal(keys, "known", address, x_t), alpha_bar=level)
        x_t = mixed(x_t, seen)
        pred = denoise(x_t, jnp.broadcast_to(at.t, x_t.shape[:1]))
        return step(x_t, pred, at, _normal(keys, "step", address, x_t)), None

    plan = jax.tree.map(jnp.asarray, visits(schedule, repeats=repeats, jump=jump))
    return mixed(jax.lax.scan(body, x_T, plan)[0], known)


def random_known(key: Key, *, count: int, side: int) -> Float[Array, " b h w 1"]:
    """Masks to learn inpainting with: 0 in a random rectangle or everywhere, 1 elsewhere.

    GLIDE (arXiv 2112.10741, section 4.3) erases "random regions" without saying which.
    """
    sides = jax.random.uniform(rng.fold(key, "sides"), (count, 2, 1), minval=SMALLEST)
    start = jax.random.uniform(rng.fold(key, "start"), (count, 2, 1)) * (1.0 - sides)
    at = ((jnp.arange(side) + 0.5) / side)[None, None]
    within = (at >= start) & (at < start + sides)
    hole = within[:, 0, :, None] & within[:, 1, None, :]
    all_of_it = jax.random.bernoulli(rng.fold(key, "nothing"), NOTHING, (count, 1, 1))
    return 1.0 - (hole | all_of_it).astype(jnp.float32)[..., None]


def _normal(keys: Keys, purpose: str, address: Int[Array, ""], like: X) -> X:
    return rng.normal_each(rng.fold_each(keys, purpose, address), like.shape[1:])
