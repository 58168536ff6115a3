"""Sampling: one scan over the steps of a chain, and the rules of DDPM and DDIM.

A `Solver` turns predictions into the next x. It sees x_t, a `Prediction` and the numbers of its
step; it knows neither networks nor guidance nor thresholds. One iteration of the scan is one
evaluation of the network. Second-order solvers are in solvers.py. Sources: DDPM (arXiv 2006.11239),
DDIM (arXiv 2010.02502), improved DDPM (arXiv 2102.09672) for the learned variance; ADM appendix B
and F.
"""

import abc
import dataclasses
import itertools
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Real

from unclip_jax.core import checks, rng
from unclip_jax.core.types import Keys
from unclip_jax.diffusion import process, respace
from unclip_jax.diffusion.guidance import Denoiser
from unclip_jax.diffusion.process import Prediction
from unclip_jax.diffusion.schedule import Schedule

X = Float[Array, " b *s"]
VARIANCES = ("small", "large", "mix", "learned_range", "table")


class StepTable(NamedTuple):
    """The numbers of a chain: one row per evaluation of the network, most noise first.

    A table holds NumPy arrays; inside the scan the same class holds the scalars of one row. x
    enters a row at the level (signal_t, noise_t), where the network is evaluated, and leaves it at
    (signal_s, noise_s), which is where the next row begins.

    Attributes:
        t: timestep of the trained chain, as the network takes it; fractional for a level between
            two of the chain's.
        position: address of the step's random numbers, distinct for distinct steps; counts down to
            0 in a plain chain.
        signal_t: factor of x_0 on entry.
        noise_t: factor of eps on entry.
        signal_s: factor of x_0 on exit; 1 in the last row.
        noise_s: factor of eps on exit; 0 in the last row.
        begins: True at the first evaluation of a step; False where a solver evaluates the network
            again before the step is complete.
        columns: further columns, of the solver's own.
        resampling: further columns for `before` in `run`.
    """

    t: Real[Array | np.ndarray, "..."]
    position: Int[Array | np.ndarray, "..."]
    signal_t: Float[Array | np.ndarray, "..."]
    noise_t: Float[Array | np.ndarray, "..."]
    signal_s: Float[Array | np.ndarray, "..."]
    noise_s: Float[Array | np.ndarray, "..."]
    begins: Bool[Array | np.ndarray, "..."]
    columns: Any = ()
    resampling: Any = ()


def step_table(schedule: Schedule, *, columns: Any = ()) -> StepTable:
    """Returns the table with one row per step of `schedule`, in float64 or the schedule's type.

    Args:
        schedule: the chain, strided or full.
        columns: the solver's own, most noise first.
    """
    alpha_bar_prev, count = schedule.alpha_bar_prev, schedule.num_timesteps
    return StepTable(
        t=np.flip(schedule.timesteps),
        position=np.arange(count, dtype=np.int32)[::-1],
        signal_t=np.flip(schedule.signal),
        noise_t=np.flip(schedule.noise),
        signal_s=np.flip(np.sqrt(alpha_bar_prev)),
        noise_s=np.flip(np.sqrt(1.0 - alpha_bar_prev)),
        begins=np.ones(count, bool),
        columns=columns,
    )


@dataclasses.dataclass(frozen=True)
class Solver(abc.ABC):
    """Discretises a chain and moves x from one evaluation of the network to the next.

    Subclasses are frozen dataclasses whose fields are their options. What a solver remembers
    between evaluations is a pytree of its own, the memory, so that a chain can be cut anywhere.

    Attributes:
        order: power of the step size with which the error of the mean path falls.
        endpoints: True if it needs a model that predicts the end of the path (`Consistency`).
    """

    order: ClassVar[int] = 1
    endpoints: ClassVar[bool] = False

    @property
    def stochastic(self) -> bool:
        """True if steps add random noise."""
        return False

    def plan(self, schedule: Schedule, *, steps: str | None = None) -> StepTable:
        """Returns the evaluations that take pure noise to x_0.

        Args:
            schedule: the trained chain.
            steps: grid on it (`respace.strided`); None = every step of `schedule`.

        Raises:
            UserError: the grid has no meaning on this chain.
        """
        short = schedule if steps is None else respace.strided(schedule, steps=steps)
        return step_table(short, columns=self.columns(short))

    def columns(self, schedule: Schedule) -> Any:
        """Returns the solver's own columns for a strided chain, most noise first."""
        return ()

    def start(self, x_T: X) -> Any:
        """Returns the memory before the first evaluation, and after x was moved by others."""
        return ()

    @abc.abstractmethod
    def advance(
        self, x: X, memory: Any, *, pred: Prediction, at: StepTable, noise: X
    ) -> tuple[X, Any]:
        """Moves x after the evaluation of one row.

        Args:
            x: where the network was evaluated.
            memory: of the row before.
            pred: the network's prediction at x.
            at: the row.
            noise: standard normal.

        Returns:
            x on exit from the row, and the memory.
        """


@dataclasses.dataclass(frozen=True)
class Ddim(Solver):
    """x_s = signal_s x_0 + sqrt(noise_s^2 - sigma^2) eps + sigma n (DDIM equations 12 and 16).

    Attributes:
        eta: 0 is deterministic, 1 has the variance of ancestral sampling with beta_tilde. One for
            all, or an array of one per example, so that a sweep is one program.
    """

    eta: float | Float[Array, ""] | Float[Array, " b"] = 0.0

    def __post_init__(self) -> None:
        if isinstance(self.eta, float):
            checks.in_range("eta", self.eta, 0.0, 1.0)

    @property
    def stochastic(self) -> bool:
        """True unless eta is 0."""
        return not (isinstance(self.eta, float) and self.eta == 0.0)

    def columns(self, schedule: Schedule) -> Float[np.ndarray, " n"]:
        """Returns the log of the strided beta."""
        return np.flip(schedule.log_beta)

    def advance(
        self, x: X, memory: Any, *, pred: Prediction, at: StepTable, noise: X
    ) -> tuple[X, Any]:
        """Takes one step."""
        if not self.stochastic:
            return jnp.asarray(at.signal_s) * pred.x_0 + at.noise_s * pred.eps, memory
        # beta_tilde unclipped, so that the last step adds no noise; 1 - alpha_bar_t / alpha_bar_s
        # would keep three digits of beta in float32 near t = 0
        beta = jnp.exp(at.columns)
        eta = jnp.asarray(self.eta, jnp.float32)
        eta = eta.reshape(eta.shape + (1,) * (x.ndim - 1)) if eta.ndim else eta
        variance = eta**2 * beta * (at.noise_s / at.noise_t) ** 2
        remainder = jnp.sqrt(jnp.maximum(at.noise_s**2 - variance, 0.0))
        mean = jnp.asarray(at.signal_s) * pred.x_0 + remainder * pred.eps
        return mean + jnp.sqrt(variance) * noise, memory


@dataclasses.dataclass(frozen=True)
class Consistency(Solver):
    """x_s = signal_s x_0 + noise_s n with fresh noise n (consistency models, algorithm 1).

    For models whose x_0 is the end of the deterministic path through x_t, not the mean of all x_0
    (arXiv 2303.01469); with such a mean, samples would lack variance.
    """

    endpoints: ClassVar[bool] = True

    @property
    def stochastic(self) -> bool:
        """True."""
        return True

    def advance(
        self, x: X, memory: Any, *, pred: Prediction, at: StepTable, noise: X
    ) -> tuple[X, Any]:
        """Takes one step."""
        return jnp.asarray(at.signal_s) * pred.x_0 + at.noise_s * noise, memory


class AncestralColumns(NamedTuple):
    """The columns of `Ancestral`.

    Attributes:
        posterior_x_0: weight of x_0 in the posterior mean.
        posterior_x_t: weight of x_t in the posterior mean.
        low: log of the variance, or of its lower bound.
        high: log of its upper bound.
    """

    posterior_x_0: Float[Array | np.ndarray, "..."]
    posterior_x_t: Float[Array | np.ndarray, "..."]
    low: Float[Array | np.ndarray, "..."]
    high: Float[Array | np.ndarray, "..."]


@dataclasses.dataclass(frozen=True)
class Ancestral(Solver):
    """x_s ~ N(posterior mean, variance) (DDPM algorithm 2); no noise on the last step.

    Attributes:
        variance: "small" beta_tilde, "large" beta, "mix" between them by `gamma`, "learned_range"
            by the model, or "table".
        table: the reverse variance per position of the strided chain, least noise first, for
            variance "table" (`analytic`).
        gamma: of the variance beta_tilde^(1 - gamma) beta^gamma, for "mix" (Imagen, arXiv
            2205.11487, eq. 6).
    """

    variance: str = "small"
    table: tuple[float, ...] | None = None
    gamma: float = 0.0

    def __post_init__(self) -> None:
        checks.one_of("variance", self.variance, VARIANCES)
        checks.in_range("gamma", self.gamma, 0.0, 1.0)

    @property
    def stochastic(self) -> bool:
        """True."""
        return True

    def columns(self, schedule: Schedule) -> AncestralColumns:
        """Returns weights of the posterior mean, and log variances.

        Raises:
            UserError: the variance table is missing, has another length than the chain, or a value
                that is not positive.
        """
        small, large = schedule.log_beta_tilde_clipped, schedule.log_beta
        bounds = {
            "small": lambda: (small, small),
            "large": lambda: (large, large),
            "mix": lambda: 2 * (self.gamma * large + (1.0 - self.gamma) * small,),
            "learned_range": lambda: (small, large),
            "table": lambda: 2 * (self._log_table(schedule),),
        }[self.variance]()
        tables = (schedule.posterior_x_0, schedule.posterior_x_t, *bounds)
        return AncestralColumns(*map(np.flip, tables))

    def _log_table(self, schedule: Schedule) -> Float[np.ndarray, " n"]:
        if self.table is None:
            raise checks.UserError(
                "variance 'table' needs a variance table, which is None; give one or use 'small'."
            )
        table = np.asarray(self.table)
        if len(table) != schedule.num_timesteps or not np.all(table > 0):
            raise checks.UserError(
                f"the variance table has {len(table)} values, the least {table.min():g}, for a "
                f"chain of {schedule.num_timesteps} steps; it needs one value greater than 0 per "
                "step."
            )
        return np.log(table)

    def advance(
        self, x: X, memory: Any, *, pred: Prediction, at: StepTable, noise: X
    ) -> tuple[X, Any]:
        """Takes one step."""
        mean = at.columns.posterior_x_0 * pred.x_0 + at.columns.posterior_x_t * x
        std = jnp.exp(0.5 * self.log_variance(pred, at.columns))
        return mean + jnp.where(at.noise_s > 0, std, 0.0) * noise, memory

    def log_variance(self, pred: Prediction, columns: AncestralColumns) -> Array:
        """Returns the log of the variance of a step."""
        if self.variance != "learned_range":
            return jnp.asarray(columns.low)
        if pred.var_frac is None:
            raise checks.UserError(
                "variance 'learned_range' needs a model with a learned variance; use 'small'."
            )
        low, high = jnp.asarray(columns.low), jnp.asarray(columns.high)
        return process.log_variance(pred.var_frac, log_beta=high, log_beta_tilde=low)


# (x, memory, row) -> x and memory before the network is evaluated
Before = Callable[[X, Any, StepTable], tuple[X, Any]]


class ChainState(NamedTuple):
    """The state of a chain after some of its rows.

    Attributes:
        x: on exit from the last row; x_0 after all of them.
        memory: the solver's.
        previews: clean samples predicted on the way, the last one at the last row.
    """

    x: X
    memory: Any
    previews: Float[Array, " p b *s"]


def run(
    denoise: Denoiser,
    x: X,
    *,
    table: StepTable,
    solver: Solver,
    keys: Keys | None = None,
    memory: Any = None,
    before: Before | None = None,
    noise: Float[Array, " n b *s"] | None = None,
    previews: int = 0,
) -> ChainState:
    """Runs a chain, or a part of one, in a single `lax.scan`.

    The noise of step k of example i comes from keys[i] alone, so an example does not depend on the
    batch it is in. All parts one after the other, each with the x and memory of the one before, are
    the whole chain.

    Args:
        denoise: (x_t, timesteps) -> Prediction.
        x: where to start.
        table: the solver's plan, or a slice of its rows.
        solver: moves x.
        keys: one key per example; None if `noise` is not.
        memory: the solver's, of the part before; None at the start of a chain.
        before: changes x and the memory before each evaluation, as inpainting does.
        noise: the noise given to the solver at each row; None = drawn from `keys`.
        previews: number of predicted clean samples to return, evenly spaced.

    Raises:
        UserError: there are fewer rows than previews.
    """
    rows = len(table.t)
    checks.in_range("number of previews", previews, 0, rows)
    table = on_device(table)
    slots = jnp.asarray(preview_slots(rows, previews)) if previews else None
    x_0s = jnp.zeros((previews, *x.shape), x.dtype)

    def body(carry: ChainState, inputs: tuple[StepTable, X | None, Array | None]):
        (x, memory, x_0s), (at, noise, slot) = carry, inputs
        if before is not None:
            x, memory = before(x, memory, at)
        pred = denoise(x, jnp.broadcast_to(jnp.asarray(at.t), x.shape[:1]))
        if noise is None:
            assert keys is not None
            noise = rng.normal_each(
                rng.fold_each(keys, "step", jnp.asarray(at.position)), x.shape[1:]
            )
        x, memory = solver.advance(x, memory, pred=pred, at=at, noise=noise)
        if slot is not None:
            x_0s = x_0s.at[slot].set(pred.x_0)  # the last row of a slot is what stays in it
        return ChainState(x, memory, x_0s), None

    start = ChainState(x, solver.start(x) if memory is None else memory, x_0s)
    return jax.lax.scan(body, start, (table, noise, slots))[0]


def sample(
    denoise: Denoiser,
    x_T: X,
    *,
    schedule: Schedule,
    solver: Solver,
    keys: Keys,
    steps: str | None = None,
) -> X:
    """Samples x_0 from x_T; arguments as for `run` and `Solver.plan`.

    Raises:
        UserError: the solver cannot plan these steps.
    """
    table = solver.plan(schedule, steps=steps)
    return run(denoise, x_T, table=table, solver=solver, keys=keys).x


def evaluations(solver: Solver, *, schedule: Schedule, steps: str | None = None) -> int:
    """Returns how often `sample` evaluates the network per sample (guidance doubles it)."""
    return len(solver.plan(schedule, steps=steps).t)


def preview_slots(rows: int, count: int) -> Int[np.ndarray, " n"]:
    """Returns the number of the part of `count` nearly equal ones that each row lies in.

    Five rows in two parts are [0, 0, 0, 1, 1].
    """
    return (np.arange(rows) * count // rows).astype(np.int32)


def parts(table: StepTable, count: int) -> list[StepTable]:
    """Cuts a table into `count` parts of nearly equal length for `run`, most noise first."""
    slots = preview_slots(len(table.t), count)
    edges = [*np.searchsorted(slots, np.arange(count)), len(slots)]
    return [take(table, slice(a, b)) for a, b in itertools.pairwise(edges)]


def take(table: StepTable, rows: int | slice | Int[np.ndarray, " n"]) -> StepTable:
    """Returns one row of a table, or several."""
    return jax.tree.map(lambda column: column[rows], table)


def on_device(table: StepTable) -> StepTable:
    """Returns a table as JAX arrays: float32, int32 and bool."""
    return jax.tree.map(jnp.asarray, table)
