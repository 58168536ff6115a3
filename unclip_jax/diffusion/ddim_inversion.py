"""DDIM inversion: the noise from which deterministic sampling gives an image back.

Together with z_img it is unCLIP's bipartite latent (arXiv 2204.06125, section 3).
Source: ADM (arXiv 2105.05233, appendix F), DDIM (arXiv 2010.02502, section 4.3).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from unclip_jax.core.checks import UserError, in_range
from unclip_jax.diffusion import process
from unclip_jax.diffusion.guidance import Denoiser
from unclip_jax.diffusion.schedule import Level, Schedule

X = Float[Array, " b *s"]


MAX_REFINEMENTS = 32


def invert(
    denoise: Denoiser,
    x_0: X,
    *,
    schedule: Schedule,
    skip_last: bool = True,
    refinements: int = 0,
) -> X:
    """Runs the DDIM update towards the noise.

        x_{k+1} = signal_{k+1} x_0(x_k) + noise_{k+1} eps(x_k)

    The clean sample stands for x at position 0 of the chain. With `skip_last` the result lies at
    the last position, T' - 1, where `samplers.sample` starts on the same `schedule`: 249
    updates on a chain of 250. Without it one more update leads to pure noise, a level that no step
    of the chain starts from; ADM saw noise in such reconstructions.

    For a round trip give the same condition both ways, no guidance or threshold, and `Ddim(0.0)`.

    The update takes the noise at the level it leaves, while sampling takes it at the level it
    starts from, so a round trip errs in the first order of the step. `refinements` solves for the
    x_{k+1} from which sampling does lead to x_k, by that many fixed-point iterations per update
    (Pan et al. 2023, arXiv 2309.04907; Garibi et al. 2024, arXiv 2403.14602), each one more call
    of the network. The paper's recipe is 0.

    Args:
        denoise: (x_t, original timesteps) -> Prediction.
        x_0: the samples to invert; images in [-1, 1].
        schedule: the chain, strided or full, that sampling will walk back.
        skip_last: stop at the level where sampling starts.
        refinements: fixed-point iterations per update.

    Returns:
        x_T in float32.

    Raises:
        UserError: `refinements` out of range, or given without `skip_last`: no step of the chain
            could be solved for.
    """
    in_range("refinements", refinements, 0, MAX_REFINEMENTS)
    if refinements and not skip_last:
        raise UserError(
            f"refinements is {refinements} with skip_last=False; the last update inverts no step "
            "of the chain. Use skip_last=True or refinements=0."
        )
    x_0 = x_0.astype(jnp.float32)
    if refinements:
        x_0 = _first_position(denoise, x_0, schedule, refinements)
    steps = slice(None, -1) if skip_last else slice(None)
    # the level after the last is alpha_bar = 0, and no timestep belongs to it
    signal, noise = np.append(schedule.signal[1:], 0.0), np.append(schedule.noise[1:], 1.0)
    following = np.append(schedule.timesteps[1:], schedule.timesteps[-1])

    def step(x: X, t: Array, level: Level) -> X:
        pred = denoise(x, jnp.broadcast_to(t, x.shape[:1]))
        return process.q_sample(pred.x_0, pred.eps, alpha_bar=level)

    def body(x_t: X, at: _Update) -> tuple[X, None]:
        x_next = step(x_t, at.t, at.level_next)
        residual = lambda x: x_t - step(x, at.t_next, at.level)  # noqa: E731
        lost = at.level_next.signal / at.level.signal
        return _refine(residual, x_next, refinements, first=lost), None

    updates = _Update(
        t=jnp.asarray(schedule.timesteps[steps], jnp.int32),
        t_next=jnp.asarray(following[steps], jnp.int32),
        level=_level(schedule.signal[steps], schedule.noise[steps]),
        level_next=_level(signal[steps], noise[steps]),
    )
    return jax.lax.scan(body, x_0, updates)[0]


class _Update(NamedTuple):
    """The numbers of one update, from position k to k + 1; scalars inside the scan."""

    t: Int[Array, "..."]
    t_next: Int[Array, "..."]
    level: Level
    level_next: Level


def _first_position(denoise: Denoiser, x_0: X, schedule: Schedule, refinements: int) -> X:
    """Returns the x at position 0 whose predicted clean sample is `x_0`."""
    t = jnp.full(x_0.shape[:1], int(schedule.timesteps[0]), jnp.int32)
    return _refine(lambda x: x_0 - denoise(x, t).x_0, x_0, refinements, first=schedule.signal[0])


def _refine(
    residual: Callable[[X], X], x: X, iterations: int, *, first: float | Float[Array, ""]
) -> X:
    """Moves x by a share of its residual, the error of its step, `iterations` times.

    The `first` share is that of the plain fixed-point iteration, safe but next to nothing where the
    signal is gone. Those that follow are one over the slope of the step as the last move has shown
    it (Barzilai & Borwein 1988, IMA J. Numer. Anal. 8), one for each example, always from the best
    x so far; at most 2, up to which a slope of 1, the largest of an exact denoiser of data of
    deviation 1 or less, does not run away.
    """
    if not iterations:
        return x
    tail = (1,) * (x.ndim - 1)

    def iterate(index: Int[Array, ""], state: _Search) -> _Search:
        error = residual(state.x)
        moved, change = state.x - state.best, state.error - error
        slope = _dot(moved, change) / jnp.maximum(_dot(moved, moved), 1e-30)
        share = jnp.where(slope > 0.5, 1.0 / slope, jnp.where(slope > 0.0, 2.0, state.share / 4))
        share = jnp.where(index == 0, state.share, share)
        size = _dot(error, error)
        improved = (size < state.size).reshape(-1, *tail)
        best, error = (
            jnp.where(improved, state.x, state.best),
            jnp.where(improved, error, state.error),
        )
        following = best + share.reshape(-1, *tail) * error
        return _Search(following, best, error, jnp.minimum(size, state.size), share)

    ones = jnp.ones(x.shape[:1], x.dtype)
    start = _Search(x, x, jnp.zeros_like(x), jnp.inf * ones, first * ones)
    return jax.lax.fori_loop(0, iterations, iterate, start).x


def _dot(a: X, b: X) -> Float[Array, " b"]:
    return jnp.sum((a * b).reshape(a.shape[0], -1), axis=1)


class _Search(NamedTuple):
    """The state of a fixed-point iteration.

    Attributes:
        x: the next to be evaluated.
        best: the x with the smallest error so far.
        error: the residual of `best`.
        size: its squared norm, per example.
        share: of the error that x was moved by, per example.
    """

    x: X
    best: X
    error: X
    size: Float[Array, " b"]
    share: Float[Array, " b"]


def _level(signal: np.ndarray, noise: np.ndarray) -> Level:
    return Level(jnp.asarray(signal, jnp.float32), jnp.asarray(noise, jnp.float32))
