"""Solvers of higher order: DPM-Solver++(2M) and (3M), Heun's method, and EDM's stochastic sampler.

The first three walk the deterministic path that DDIM walks with eta 0, with an error that falls
with the square or the cube of the step instead of the step itself; EDM's walks it on noise levels
of its own and may add and remove noise on the way. They go beyond the paper: unCLIP samples with
`samplers.Ddim` and `samplers.Ancestral`. Their errors are plotted in docs/samplers.md. Sources:
DPM-Solver++ (arXiv 2211.01095, algorithm 2), EDM (arXiv 2206.00364, algorithms 1 and 2), the flow
as a rotation from arXiv 2202.00512, appendix D.
"""

import dataclasses
import math
from typing import ClassVar, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from unclip_jax.core.checks import UserError, in_range, positive
from unclip_jax.diffusion import respace, samplers
from unclip_jax.diffusion.process import Prediction
from unclip_jax.diffusion.samplers import Ddim, Solver, StepTable
from unclip_jax.diffusion.schedule import Schedule

X = Float[Array, " b *s"]


class _Last(NamedTuple):
    """The memory of `DpmSolver2M`: the last x_0, and 1.0 if there is one."""

    x_0: Float[Array, " b *s"]
    valid: Float[Array, ""]


@dataclasses.dataclass(frozen=True)
class DpmSolver2M(Solver):
    """DDIM whose x_0 is extrapolated from this step's and the last one's: two steps, second order.

    One evaluation per step. The first step and the last, which ends at noise 0 and so is infinitely
    long in log(signal / noise), are DDIM's. Even step lengths there suit it best: "logsnr20".
    """

    order: ClassVar[int] = 2

    def columns(self, schedule: Schedule) -> Float[np.ndarray, " n"]:
        """Returns half of each step's length over that of the step before.

        Lengths are in log(signal / noise); 0 on the first and the last step.
        """
        lengths = np.diff(schedule.log_sigma)  # of the step from k + 1 to k
        weights = np.zeros(schedule.num_timesteps)
        weights[1:-1] = lengths[:-1] / (2.0 * lengths[1:])
        return np.flip(weights)

    def start(self, x_T: X) -> _Last:
        """Returns a memory without x_0."""
        return _Last(jnp.zeros_like(x_T), jnp.zeros(()))

    def advance(
        self, x: X, memory: _Last, *, pred: Prediction, at: StepTable, noise: X
    ) -> tuple[X, _Last]:
        """Takes one step and remembers its x_0."""
        # along the ray to x_0 a DDIM step moves by this much per unit of x_0 at fixed x_t
        gain = at.signal_s - at.noise_s * at.signal_t / at.noise_t
        change = memory.valid * at.columns * (pred.x_0 - memory.x_0)
        first_order, _ = Ddim().advance(x, (), pred=pred, at=at, noise=noise)
        return first_order + gain * change, _Last(pred.x_0, jnp.ones(()))


class DpmColumns(NamedTuple):
    """The columns of `DpmSolver3M`: weights of differences of x_0, times 1 / signal_s.

    Attributes:
        second: of the newest difference, by the second-order rule.
        newest: of the newest difference, by the third-order rule.
        oldest: of the difference before it, by the third-order rule.
    """

    second: Float[Array | np.ndarray, "..."]
    newest: Float[Array | np.ndarray, "..."]
    oldest: Float[Array | np.ndarray, "..."]


class _LastTwo(NamedTuple):
    """The memory of `DpmSolver3M`: the last x_0, the one before, and how many there are (to 2)."""

    x_0: Float[Array, " b *s"]
    before: Float[Array, " b *s"]
    num_values: Float[Array, ""]


@dataclasses.dataclass(frozen=True)
class DpmSolver3M(Solver):
    """DDIM whose x_0 is extrapolated by the parabola through three steps: third order.

    With l = log(signal / noise), the flow over a step of length h, which ends at s, is

        x_s = noise_s / noise_t x_t + signal_s integral_0^h exp(u - h) x_0(l_t + u) du

    (arXiv 2211.01095, proposition 4.1), and the parabola through x_0 at this step and the two
    before it is integrated exactly: an Adams-Bashforth method for exponential integrators. The
    third-order multistep rule of diffusers 0.42 (`DPMSolverMultistepScheduler`) has half of the
    last difference in its place, and so is of second order.

    One evaluation per step. The first step is DDIM's, the second extrapolates from two points, and
    the last, which is infinitely long in l, is DDIM's. Even step lengths suit it best: "logsnr20".
    """

    order: ClassVar[int] = 3

    def columns(self, schedule: Schedule) -> DpmColumns:
        """Returns the weights of each step; 0 on the last, and where no step precedes."""
        lengths = np.diff(schedule.log_sigma)  # of the step from k + 1 to k
        second, newest, oldest = np.zeros((3, schedule.num_timesteps))
        if schedule.num_timesteps > 2:
            step, last = lengths[:-1], lengths[1:]
            zeroth = -np.expm1(-step)  # integral_0^h exp(u - h) u^n du for n = 0, 1, 2
            first = step - zeroth
            second[1:-1] = first / last
            newest[1:-1] = second[1:-1]
            step, last, before = step[:-1], last[:-1], lengths[2:]
            curved = step**2 - 2.0 * first[:-1] + last * first[:-1]
            newest[1:-2] += curved / (last * (last + before))
            oldest[1:-2] = -curved / (before * (last + before))
        return DpmColumns(*map(np.flip, (second, newest, oldest)))

    def start(self, x_T: X) -> _LastTwo:
        """Returns a memory without x_0."""
        return _LastTwo(jnp.zeros_like(x_T), jnp.zeros_like(x_T), jnp.zeros(()))

    def advance(
        self, x: X, memory: _LastTwo, *, pred: Prediction, at: StepTable, noise: X
    ) -> tuple[X, _LastTwo]:
        """Takes one step and remembers its x_0."""
        weights = at.columns
        new, old = pred.x_0 - memory.x_0, memory.x_0 - memory.before
        change = jnp.where(
            memory.num_values == 2.0,
            weights.newest * new + weights.oldest * old,
            jnp.where(memory.num_values == 1.0, weights.second * new, 0.0),
        )
        first_order, _ = Ddim().advance(x, (), pred=pred, at=at, noise=noise)
        num_values = jnp.minimum(memory.num_values + 1.0, 2.0)
        return first_order + at.signal_s * change, _LastTwo(pred.x_0, memory.x_0, num_values)


class _Predictor(NamedTuple):
    """The memory of Heun's method: a step that has begun.

    Attributes:
        x_t: where it began.
        slope: the derivative there.
        length: of the step, in the solver's time.
    """

    x_t: Float[Array, " b *s"]
    slope: Float[Array, " b *s"]
    length: Float[Array, ""]


def _no_step(x_T: X) -> _Predictor:
    return _Predictor(x_T, jnp.zeros_like(x_T), jnp.zeros(()))


def _in_two_evaluations(table: StepTable) -> StepTable:
    """Returns every step twice, the second time evaluated where it ends; the last step once."""
    twice = samplers.take(table, np.repeat(np.arange(len(table.t)), 2)[:-1])
    second = np.arange(len(twice.t)) % 2 == 1
    return twice._replace(
        t=np.append(table.t[:1], np.repeat(table.t[1:], 2)),  # t_0, t_1 | t_1, t_2 | ... | t_last
        signal_t=np.where(second, twice.signal_s, twice.signal_t),
        noise_t=np.where(second, twice.noise_s, twice.noise_t),
        begins=~second,
    )


@dataclasses.dataclass(frozen=True)
class Heun(Solver):
    """Heun's method: a trial DDIM step, then a step along the mean of the slopes at its two ends.

    Time is the angle of (signal, noise), in which the flow is dx / d angle = v = signal eps -
    noise x_0: bounded and smooth on every schedule, while in EDM's noise / signal the first step of
    a cosine chain is longer than all others together and spoils the result.

    Two evaluations per step but for the last, which is DDIM's: the network knows no noise 0.
    """

    order: ClassVar[int] = 2

    def plan(self, schedule: Schedule, *, steps: str | None = None) -> StepTable:
        """Returns two rows per step and one for the last."""
        return _in_two_evaluations(super().plan(schedule, steps=steps))

    def start(self, x_T: X) -> _Predictor:
        """Returns a memory in which no step has begun."""
        return _no_step(x_T)

    def advance(
        self, x: X, memory: _Predictor, *, pred: Prediction, at: StepTable, noise: X
    ) -> tuple[X, _Predictor]:
        """Begins a step, or corrects the one that has begun."""
        velocity = jnp.asarray(at.signal_t) * pred.eps - at.noise_t * pred.x_0
        turn = jnp.arctan2(at.noise_s, at.signal_s) - jnp.arctan2(at.noise_t, at.signal_t)
        trial, _ = Ddim().advance(x, (), pred=pred, at=at, noise=noise)
        corrected = memory.x_t + memory.length * 0.5 * (memory.slope + velocity)
        return jnp.where(at.begins, trial, corrected), _Predictor(x, velocity, turn)


class EdmColumns(NamedTuple):
    """The columns of `Edm`, for the second evaluation of a step and the noise added after it.

    Attributes:
        gain: signal where the step ends over signal where it began.
        length: the step's length in noise / signal, times the signal where it ends.
        churn_gain: factor that lowers the signal to the level after the added noise.
        churn: standard deviation of the added noise.
    """

    gain: Float[Array | np.ndarray, "..."]
    length: Float[Array | np.ndarray, "..."]
    churn_gain: Float[Array | np.ndarray, "..."]
    churn: Float[Array | np.ndarray, "..."]


@dataclasses.dataclass(frozen=True)
class Edm(Solver):
    """Heun's method in sigma = noise / signal on Karras levels, with churn (EDM, algorithm 2).

        sigma_i = (sigma_max^(1/rho) + i / (n - 1) (sigma_min^(1/rho) - sigma_max^(1/rho)))^rho

    and 0 at the end. Before a step noise is added, which raises sigma by the share `s_churn` / n
    (at most sqrt(2) - 1) where it lies in [s_min, s_max]; here that noise is added at the end of
    the step before, and x_T stands for a sample of the first raised level. The levels are cut to
    those of the trained chain. Of a grid of steps only the number and the ends are used.

    Attributes:
        s_churn: amount of noise added and removed again; 0 is deterministic.
        s_min: lowest sigma at which noise is added.
        s_max: highest sigma at which noise is added.
        s_noise: factor on the added noise; slightly above 1 makes up for lost detail.
        sigma_min: the last sigma before 0.
        sigma_max: the first sigma.
        rho: crowds levels towards `sigma_min`; 7 in the paper.
    """

    order: ClassVar[int] = 2

    s_churn: float = 0.0
    s_min: float = 0.0
    s_max: float = math.inf
    s_noise: float = 1.0
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0

    def __post_init__(self) -> None:
        in_range("s_churn", self.s_churn, 0.0, math.inf)
        in_range("s_noise", self.s_noise, 0.0, 2.0)
        in_range("s_min", self.s_min, 0.0, self.s_max)
        positive("sigma_min", self.sigma_min)
        positive("rho", self.rho)
        if not self.sigma_max > self.sigma_min:
            raise UserError(
                f"sigma_max is {self.sigma_max}, but sigma_min is {self.sigma_min}; the first "
                "level must be the higher one."
            )

    @property
    def stochastic(self) -> bool:
        """True unless `s_churn` is 0."""
        return self.s_churn > 0

    def plan(self, schedule: Schedule, *, steps: str | None = None) -> StepTable:
        """Returns two rows per level and one for the last.

        Raises:
            UserError: the grid has fewer than two steps, or all levels lie outside the chain.
        """
        short = schedule if steps is None else respace.strided(schedule, steps=steps)
        sigma = self._levels(short)
        share = np.where((sigma >= self.s_min) & (sigma <= self.s_max), self.s_churn, 0.0)
        raised = sigma * (1.0 + np.minimum(share / len(sigma), math.sqrt(2.0) - 1.0))
        raised = np.minimum(raised, np.exp(schedule.log_sigma[-1]))
        ends = np.append(sigma[1:], 0.0)
        signal, signal_end = 1.0 / np.sqrt(1.0 + raised**2), 1.0 / np.sqrt(1.0 + ends**2)
        table = _in_two_evaluations(
            StepTable(
                t=schedule.timesteps_at(raised),
                position=np.arange(len(sigma), dtype=np.int32)[::-1],
                signal_t=signal,
                noise_t=raised * signal,
                signal_s=signal_end,
                noise_s=ends * signal_end,
                begins=np.ones(len(sigma), bool),
                columns=self._columns(sigma, raised),
            )
        )
        # a second evaluation is at the end of its step, and its row ends where the next one begins
        second = np.flatnonzero(~table.begins)
        for column, following in (("signal_s", table.signal_t), ("noise_s", table.noise_t)):
            values = getattr(table, column).copy()
            values[second] = following[second + 1]
            table = table._replace(**{column: values})
        t = table.t.copy()
        t[second] = schedule.timesteps_at(ends[:-1])
        return table._replace(t=t)

    def _levels(self, short: Schedule) -> Float[np.ndarray, " n"]:
        """Returns sigma at the beginning of every step, before noise is added, descending."""
        least, most = np.exp(short.log_sigma[[0, -1]])
        low, high = max(self.sigma_min, least), min(self.sigma_max, most)
        if short.num_timesteps < 2 or low >= high:
            raise UserError(
                f"the sampler 'edm' has {short.num_timesteps} steps from sigma {high:g} to {low:g} "
                f"on a chain from {most:g} to {least:g}; give at least 2 steps and levels within "
                "the chain."
            )
        share = np.linspace(0.0, 1.0, short.num_timesteps)
        first, last = high ** (1 / self.rho), low ** (1 / self.rho)
        levels = (first + share * (last - first)) ** self.rho
        return np.clip(levels, low, high)

    def _columns(
        self, sigma: Float[np.ndarray, " n"], raised: Float[np.ndarray, " n"]
    ) -> EdmColumns:
        """Returns the columns of every step; those of the last, which ends at 0, are not used."""
        ends, next_raised = np.append(sigma[1:], 0.0), np.append(raised[1:], 0.0)
        signal, signal_end, signal_next = (
            1.0 / np.sqrt(1.0 + level**2) for level in (raised, ends, next_raised)
        )
        added = np.sqrt(np.maximum(next_raised**2 - ends**2, 0.0))
        return EdmColumns(
            gain=signal_end / signal,
            length=signal_end * (ends - raised),
            churn_gain=signal_next / signal_end,
            churn=self.s_noise * signal_next * added,
        )

    def start(self, x_T: X) -> _Predictor:
        """Returns a memory in which no step has begun."""
        return _no_step(x_T)

    def advance(
        self, x: X, memory: _Predictor, *, pred: Prediction, at: StepTable, noise: X
    ) -> tuple[X, _Predictor]:
        """Begins a step, or corrects the one that has begun and adds the noise of the next."""
        columns = at.columns
        trial, _ = Ddim().advance(x, (), pred=pred, at=at, noise=noise)
        mean_slope = 0.5 * (memory.slope + pred.eps)  # eps = d(x / signal) / d sigma
        corrected = columns.gain * memory.x_t + columns.length * mean_slope
        corrected = columns.churn_gain * corrected + columns.churn * noise
        return jnp.where(at.begins, trial, corrected), _Predictor(x, pred.eps, jnp.ones(()))
