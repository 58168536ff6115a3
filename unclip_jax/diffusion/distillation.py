"""Distillation: a student that takes few steps where its teacher takes many.

Progressive distillation (Salimans & Ho 2022, arXiv 2202.00512, algorithm 2): one DDIM step of the
student ends where several DDIM steps of the teacher end. Consistency distillation (Song et al.
2023, arXiv 2303.01469, algorithm 2): the student predicts the same end of the path from two of its
points, of which the nearer to the data is reached by the teacher. Guidance of the teacher becomes
part of the student (Meng et al. 2023, arXiv 2210.03142).
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from unclip_jax.core import rng
from unclip_jax.core.types import Key, PerExample
from unclip_jax.diffusion import respace
from unclip_jax.diffusion.guidance import Denoiser
from unclip_jax.diffusion.schedule import Schedule

X = Float[Array, " b *s"]
HUBER = 0.00054  # c of the pseudo-Huber distance per square root of the size (arXiv 2310.14189)


class ChainPoint(NamedTuple):
    """A timestep and its level, one per example: x_t = signal x_0 + noise eps."""

    t: Int[Array, " b"]
    signal: Float[Array, " b *ones"]
    noise: Float[Array, " b *ones"]


@dataclasses.dataclass(frozen=True)
class Grid:
    """The points of student and teacher on a chain.

    Interval i of the student leads from its point i to point i - 1; interval 0 leads to the data.
    The teacher divides each into `substeps`.

    Attributes:
        schedule: the trained chain.
        steps: number of intervals, the student's steps.
        substeps: steps of the teacher in an interval.
    """

    schedule: Schedule
    steps: int
    substeps: int

    def point(self, interval: Int[Array, " b"], substep: int | Array, *, ndim: int) -> ChainPoint:
        """Returns the point after some teacher's steps of an interval; the data have noise 0.

        Args:
            interval: one per example.
            substep: teacher's steps that were taken, 0 to `substeps`.
            ndim: axes of x, to which the levels are shaped.
        """
        fine = respace.strided(self.schedule, steps=trailing(self.steps * self.substeps))
        at = (interval + 1) * self.substeps - substep  # 0 is the data
        ones = (-1,) + (1,) * (ndim - 1)

        def column(data: float, table: np.ndarray) -> Array:
            return jnp.asarray(np.append(data, table), jnp.float32)[at].reshape(ones)

        t = jnp.asarray(np.append(0, fine.timesteps), jnp.int32)[at]
        return ChainPoint(t, column(1.0, fine.signal), column(0.0, fine.noise))


def trailing(steps: int) -> str:
    """Returns the grid of a student: evenly spaced timesteps that end at pure noise."""
    return f"trailing{steps}"


class NoisedIntervals(NamedTuple):
    """A noised batch for distillation: the interval of each example, and x at its beginning."""

    interval: Int[Array, " b"]
    start: ChainPoint
    x: X


def noise_intervals(grid: Grid, x_0: X, *, key: Key) -> NoisedIntervals:
    """Draws an interval for each example, uniformly, and noises it to where the interval begins."""
    interval = jax.random.randint(rng.fold(key, "interval"), x_0.shape[:1], 0, grid.steps)
    start = grid.point(interval, 0, ndim=x_0.ndim)
    eps = jax.random.normal(rng.fold(key, "noise"), x_0.shape, x_0.dtype)
    return NoisedIntervals(interval, start, start.signal * x_0 + start.noise * eps)


def teacher_end(teacher: Denoiser, noised: NoisedIntervals, *, grid: Grid) -> X:
    """Returns x at the end of the intervals, after the teacher's DDIM steps."""

    def step(x: X, substep: Array) -> tuple[X, None]:
        here = grid.point(noised.interval, substep, ndim=x.ndim)
        there = grid.point(noised.interval, substep + 1, ndim=x.ndim)
        pred = teacher(x, here.t)
        return there.signal * pred.x_0 + there.noise * pred.eps, None

    return jax.lax.scan(step, noised.x, jnp.arange(grid.substeps))[0]


def progressive_target(noised: NoisedIntervals, x_s: X, *, grid: Grid) -> X:
    """Returns the x_0 with which one DDIM step leads from the beginning of an interval to `x_s`.

    Salimans & Ho 2022, appendix G.
    """
    end = grid.point(noised.interval, grid.substeps, ndim=x_s.ndim)
    ratio = end.noise / noised.start.noise
    return (x_s - ratio * noised.x) / (end.signal - ratio * noised.start.signal)


def progressive_loss(
    student: Denoiser, teacher: Denoiser, noised: NoisedIntervals, *, grid: Grid
) -> PerExample:
    """Returns the squared error of the student's x_0, weighted by max(signal^2 / noise^2, 1).

    The weight is the truncated one of Salimans & Ho 2022, section 4.
    """
    x_s = teacher_end(teacher, noised, grid=grid)
    target = jax.lax.stop_gradient(progressive_target(noised, x_s, grid=grid))
    error = student(noised.x, noised.start.t).x_0 - target
    weight = jnp.maximum((noised.start.signal / noised.start.noise) ** 2, 1.0)
    return _mean(weight * error**2)


def consistency_loss(
    student: Denoiser, teacher: Denoiser, noised: NoisedIntervals, *, grid: Grid
) -> PerExample:
    """Returns the pseudo-Huber distance of the student's x_0 at both ends of an interval.

    The end nearer to the data takes no gradient; at the data its x_0 is x itself. Distance from
    Song & Dhariwal 2023 (arXiv 2310.14189, section 3.3), which needs no averaged student.
    """
    x_s = teacher_end(teacher, noised, grid=grid)
    end = grid.point(noised.interval, grid.substeps, ndim=x_s.ndim)
    nearer = jnp.where(end.noise > 0, student(x_s, end.t).x_0, x_s)
    error = student(noised.x, noised.start.t).x_0 - jax.lax.stop_gradient(nearer)
    square, size = _mean(error**2), error[0].size
    margin = HUBER**2  # of the mean square: c^2 / size
    return jnp.sqrt(jnp.float32(size)) * (jnp.sqrt(square + margin) - HUBER)


def _mean(x: X) -> PerExample:
    return jnp.mean(x.reshape(len(x), -1), axis=1)


class Method(NamedTuple):
    """A way to distil.

    Attributes:
        loss: (student, teacher, noised batch, *, grid) -> loss of every example.
        sampler: that of its students, as configs name it.
        any_steps: True if students are sampled on other grids than that of training, too.
    """

    loss: Callable[..., PerExample]
    sampler: str
    any_steps: bool


METHODS = {
    "progressive": Method(progressive_loss, "ddim", any_steps=False),
    "consistency": Method(consistency_loss, "consistency", any_steps=True),
}
