"""Inpainting with an unconditional sampler: RePaint.

At every step the known region is replaced by the known image noised to that level, and segments
of the chain are resampled: noise is added back and the segment is run again, so that the rest can
adapt to its surroundings. Source: Lugmayr et al. 2022 (arXiv 2201.09865), algorithm 1 and section
4.2.
"""

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from unclip_jax.core import rng
from unclip_jax.core.checks import in_range
from unclip_jax.core.types import Key, Keys
from unclip_jax.diffusion import process, samplers
from unclip_jax.diffusion.samplers import Before, Solver, StepTable
from unclip_jax.diffusion.schedule import Level

X = Float[Array, " b *s"]
MAX_REPEATS = 100
MIN_SIDE = 0.25  # side of the unknown rectangle in training, of the image's; ours, as is its shape
UNKNOWN_SHARE = 0.2  # share of images of which nothing is known, so that whole ones stay learned


class Resampling(NamedTuple):
    """The noise added back before a row; scalars inside the scan.

    Attributes:
        gain: factor on x; 1 where nothing is added.
        spread: standard deviation of the noise; 0 where nothing is added.
        restarts: True where noise is added and the solver's memory is void.
    """

    gain: Float[Array | np.ndarray, "..."]
    spread: Float[Array | np.ndarray, "..."]
    restarts: Bool[Array | np.ndarray, "..."]


def resampled(table: StepTable, *, repeats: int, jump: int) -> StepTable:
    """Returns a table in which every segment of `jump` steps occurs `repeats` times.

    Going back up over a segment takes one draw: q(x_t | x_s) = N(g x_s, 1 - g^2) with
    g = signal_t / signal_s.

    Args:
        table: a solver's plan for the whole chain.
        repeats: number of times that each segment is run.
        jump: steps in a segment.

    Raises:
        UserError: repeats or jump out of range.
    """
    begins = np.flatnonzero(table.begins)
    in_range("repeats", repeats, 1, MAX_REPEATS)
    in_range("jump", jump, 1, len(begins))
    rows, positions, gains = [], [], []
    edges = np.append(begins[::jump], len(table.t))
    for start, stop in itertools.pairwise(edges.tolist()):
        segment = np.arange(start, stop)
        for repeat in range(repeats):
            gain = np.ones(len(segment))
            if repeat:
                gain[0] = table.signal_t[start] / table.signal_s[stop - 1]
            rows.append(segment)
            gains.append(gain)
            # a first pass has the noise of the plain chain, every other its own
            positions.append(table.position[segment] + repeat * len(begins))
    gain = np.concatenate(gains)
    resampling = Resampling(gain, np.sqrt(1.0 - gain**2), gain < 1.0)
    table = samplers.take(table, np.concatenate(rows))
    position = np.concatenate(positions).astype(np.int32)
    return table._replace(position=position, resampling=resampling)


def keep_known(image: X, mask: Float[Array, " b *m"], *, solver: Solver, keys: Keys) -> Before:
    """Returns the `before` of `samplers.run` for a table of `resampled`; afterwards `combine`.

    With an empty mask and no repeats the chain runs as it does without.

    Args:
        image: its values where the mask is 0 do not matter.
        mask: 1 = known, 0 = unknown; the rank of x, broadcast against it.
        solver: whose memory is void where noise is added back.
        keys: one key per example.
    """

    def before(x: X, memory: object, at: StepTable) -> tuple[X, object]:
        resampling: Resampling = at.resampling
        added = resampling.spread * _normal(keys, "up", at.position, x)
        x = jnp.asarray(resampling.gain) * x + added
        memory = jax.tree.map(
            lambda fresh, old: jnp.where(resampling.restarts, fresh, old), solver.start(x), memory
        )
        level = Level(jnp.asarray(at.signal_t), jnp.asarray(at.noise_t))
        noised = process.q_sample(image, _normal(keys, "known", at.position, x), alpha_bar=level)
        return jnp.where(at.begins, combine(x, noised, mask=mask), x), memory

    return before


def combine(
    x: Float[Array, "..."], image: Float[Array, "..."], *, mask: Float[Array, "..."]
) -> Float[Array, "..."]:
    """Returns `image` where the mask is 1 and `x` where it is 0, broadcast to `x`."""
    return jnp.where(mask > 0.5, image, x)


def random_known(key: Key, *, count: int, side: int) -> Float[Array, " b h w 1"]:
    """Returns masks to learn inpainting with: 0 in a random rectangle or everywhere, 1 elsewhere.

    GLIDE (arXiv 2112.10741, section 4.3) erases "random regions" without saying which.
    """
    sides = jax.random.uniform(rng.fold(key, "sides"), (count, 2, 1), minval=MIN_SIDE)
    start = jax.random.uniform(rng.fold(key, "start"), (count, 2, 1)) * (1.0 - sides)
    centres = ((jnp.arange(side) + 0.5) / side)[None, None]
    within = (centres >= start) & (centres < start + sides)
    rectangle = within[:, 0, :, None] & within[:, 1, None, :]
    everything = jax.random.bernoulli(rng.fold(key, "nothing"), UNKNOWN_SHARE, (count, 1, 1))
    return 1.0 - (rectangle | everything).astype(jnp.float32)[..., None]


def _normal(keys: Keys, purpose: str, position: Int[Array | np.ndarray, ""], like: X) -> X:
    return rng.normal_each(rng.fold_each(keys, purpose, jnp.asarray(position)), like.shape[1:])
