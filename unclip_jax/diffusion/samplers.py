"""Sampling: one scan over a strided chain, and the rules that take one step of it.

A rule sees x_t, a `Prediction` and the numbers of its step; it knows neither networks nor guidance
nor thresholds. A round of the scan is one evaluation of the network, whatever the rule. Rules that
remember earlier rounds are in solvers.py. Sources: DDPM (arXiv 2006.11239), DDIM
(arXiv 2010.02502), improved DDPM (arXiv 2102.09672) for the learned variance; ADM appendix B and F.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from unclip_jax.core import checks, rng
from unclip_jax.core.types import Keys
from unclip_jax.diffusion import process
from unclip_jax.diffusion.guidance import Denoiser
from unclip_jax.diffusion.process import Prediction
from unclip_jax.diffusion.schedule import Schedule

X = Float[Array, " b *s"]
VARIANCES = ("small", "large", "learned_range", "table")


class StepInputs(NamedTuple):
    """The numbers of one step t -> s of a (strided) chain; scalars inside the scan.

    Attributes:
        t: original timestep, which the network is given.
        position: in the chain, T' - 1 .. 0.
        signal_t: square root of alpha_bar at t; noise_t of 1 - alpha_bar.
        noise_t: see signal_t.
        signal_s: the same one step nearer to the data; 1 on the last step.
        noise_s: 0 on the last step.
        posterior_x_0: weight of x_0 in the posterior mean.
        posterior_x_t: weight of x_t in the posterior mean.
        log_beta: log of the strided beta.
        log_beta_tilde: log of the strided beta_tilde, clipped at index 0.
        log_table: log variance from a table (analytic variance); equals log_beta_tilde without.
        extrapolate: half this step's length over the length of the step before, in log(signal /
            noise); 0 on the first and the last step (DPM-Solver++ 2M).
    """

    t: Int[Array, "..."]
    position: Int[Array, "..."]
    signal_t: Float[Array, "..."]
    noise_t: Float[Array, "..."]
    signal_s: Float[Array, "..."]
    noise_s: Float[Array, "..."]
    posterior_x_0: Float[Array, "..."]
    posterior_x_t: Float[Array, "..."]
    log_beta: Float[Array, "..."]
    log_beta_tilde: Float[Array, "..."]
    log_table: Float[Array, "..."]
    extrapolate: Float[Array, "..."]


# (x_t, prediction at x_t, numbers of the step, noise) -> x_s
StepRule = Callable[[X, Prediction, StepInputs, X], X]


@runtime_checkable
class Solver(Protocol):
    """A rule that remembers: what it keeps between rounds is a pytree of its own."""

    def rounds(self, steps: StepInputs) -> StepInputs:
        """One row per evaluation of the network, from one row per step; `t` is what it is given."""
        ...

    def start(self, x_T: X) -> Any:
        """The memory before the first round."""
        ...

    def advance(
        self, x: X, memory: Any, *, pred: Prediction, at: StepInputs, noise: X
    ) -> tuple[X, Any]:
        """After one evaluation at x: where to evaluate next, or x_0 at the end; and the memory."""
        ...


@dataclasses.dataclass(frozen=True)
class Memoryless:
    """A step rule as a solver: one round per step and nothing to remember."""

    rule: StepRule

    def rounds(self, steps: StepInputs) -> StepInputs:
        """The steps themselves."""
        return steps

    def start(self, x_T: X) -> Any:
        """Nothing."""
        return ()

    def advance(
        self, x: X, memory: Any, *, pred: Prediction, at: StepInputs, noise: X
    ) -> tuple[X, Any]:
        """Take one step."""
        return self.rule(x, pred, at, noise), memory


@dataclasses.dataclass(frozen=True)
class Ddim:
    """x_s = signal_s x_0 + sqrt(noise_s^2 - sigma^2) eps + sigma n (DDIM equations 12 and 16).

    Attributes:
        eta: 0 is deterministic, 1 has the variance of ancestral sampling with beta_tilde. One for
            all, or an array of one per example, so that a sweep is one program.
    """

    eta: float | Float[Array, " b"] = 0.0

    def __call__(self, x_t: X, pred: Prediction, at: StepInputs, noise: X) -> X:
        """Take one step."""
        if isinstance(self.eta, float) and self.eta == 0.0:
            return at.signal_s * pred.x_0 + at.noise_s * pred.eps
        # beta_tilde unclipped, so that the last step adds no noise; 1 - alpha_bar_t / alpha_bar_s
        # would keep three digits of beta in float32 near t = 0
        beta = jnp.exp(at.log_beta)
        eta = jnp.asarray(self.eta, jnp.float32)
        eta = eta.reshape(eta.shape + (1,) * (x_t.ndim - 1)) if eta.ndim else eta
        variance = eta**2 * beta * (at.noise_s / at.noise_t) ** 2
        rest = jnp.sqrt(jnp.maximum(at.noise_s**2 - variance, 0.0))
        return at.signal_s * pred.x_0 + rest * pred.eps + jnp.sqrt(variance) * noise


@dataclasses.dataclass(frozen=True)
class Ancestral:
    """x_s ~ N(posterior mean, variance) (DDPM algorithm 2); no noise on the last step.

    Attributes:
        variance: "small" beta_tilde, "large" beta, "learned_range" between them by the model, or
            "table" from the table given to `sample`.
    """

    variance: str = "small"

    def __call__(self, x_t: X, pred: Prediction, at: StepInputs, noise: X) -> X:
        """Take one step."""
        mean = at.posterior_x_0 * pred.x_0 + at.posterior_x_t * x_t
        std = jnp.exp(0.5 * self._log_variance(pred, at))
        return mean + jnp.where(at.position > 0, std, 0.0) * noise

    def _log_variance(self, pred: Prediction, at: StepInputs) -> Array:
        if self.variance == "large":
            return at.log_beta
        if self.variance == "table":
            return at.log_table
        if self.variance == "small":
            return at.log_beta_tilde
        if pred.var_frac is None:
            raise checks.UserError(
                "variance 'learned_range' needs a model with a learned variance; use 'small'."
            )
        return process.log_variance(
            pred.var_frac, log_beta=at.log_beta, log_beta_tilde=at.log_beta_tilde
        )


def ddim(eta: float) -> StepRule:
    """The DDIM rule.

    Raises:
        UserError: `eta` is outside [0, 1].
    """
    return Ddim(checks.in_range("eta", eta, 0.0, 1.0))


def ancestral(variance: str) -> StepRule:
    """The ancestral rule with one of `VARIANCES`.

    Raises:
        UserError: an unknown variance.
    """
    return Ancestral(checks.one_of("variance", variance, VARIANCES))


def sample(
    denoise: Denoiser,
    x_T: X,
    *,
    schedule: Schedule,
    step: StepRule | Solver,
    keys: Keys,
    variance_table: Float[np.ndarray, " T"] | None = None,
) -> X:
    """Run the chain from x_T to x_0 in one `lax.scan`.

    The noise of step k of example i comes from keys[i] alone, so an example does not depend on the
    batch it is in.

    Args:
        denoise: (x_t, original timesteps) -> Prediction.
        x_T: where to start; standard normal for a fresh sample.
        schedule: the chain to walk, strided or full.
        step: `ddim(...)`, `ancestral(...)`, or a solver of solvers.py.
        keys: one key per example.
        variance_table: reverse variance per position of `schedule`, for ancestral("table").

    Raises:
        UserError: ancestral("table") without a table, or a table that does not fit the chain.
    """
    if step == Ancestral("table") and variance_table is None:
        raise checks.UserError(
            "variance 'table' needs a variance_table, which is None; give one or use 'small'."
        )
    solver = _solver(step)
    rounds = solver.rounds(step_inputs(schedule, variance_table=variance_table))

    def body(carry: tuple[X, Any], at: StepInputs) -> tuple[tuple[X, Any], None]:
        x, memory = carry
        pred = denoise(x, jnp.broadcast_to(at.t, x.shape[:1]))
        noise = rng.normal_each(rng.fold_each(keys, "step", at.position), x.shape[1:])
        return solver.advance(x, memory, pred=pred, at=at, noise=noise), None

    return jax.lax.scan(body, (x_T, solver.start(x_T)), rounds)[0][0]


def evaluations(step: StepRule | Solver, *, schedule: Schedule) -> int:
    """How often `sample` evaluates the network per sample on this chain (guidance doubles it)."""
    return len(_solver(step).rounds(step_inputs(schedule)).t)


def step_inputs(
    schedule: Schedule, *, variance_table: Float[np.ndarray, " T"] | None = None
) -> StepInputs:
    """The numbers of every step, most noise first, in float32 from float64.

    Raises:
        UserError: the table has another length than the chain, or a value that is not positive.
    """
    log_table = schedule.log_beta_tilde_clipped
    if variance_table is not None:
        if len(variance_table) != schedule.num_timesteps or not np.all(variance_table > 0):
            raise checks.UserError(
                f"the variance table has {len(variance_table)} values, the least "
                f"{variance_table.min():g}, for a chain of {schedule.num_timesteps} steps; "
                "it needs one value greater than 0 per step."
            )
        log_table = np.log(variance_table)
    alpha_bar_prev = schedule.alpha_bar_prev
    return StepInputs(
        t=_reversed(schedule.timesteps),
        position=_reversed(np.arange(schedule.num_timesteps)),
        signal_t=_reversed(schedule.signal),
        noise_t=_reversed(schedule.noise),
        signal_s=_reversed(np.sqrt(alpha_bar_prev)),
        noise_s=_reversed(np.sqrt(1.0 - alpha_bar_prev)),
        posterior_x_0=_reversed(schedule.posterior_x_0),
        posterior_x_t=_reversed(schedule.posterior_x_t),
        log_beta=_reversed(schedule.log_beta),
        log_beta_tilde=_reversed(schedule.log_beta_tilde_clipped),
        log_table=_reversed(log_table),
        extrapolate=_reversed(_extrapolation(schedule)),
    )


def _extrapolation(schedule: Schedule) -> Float[np.ndarray, " T"]:
    """Half of h over the h before, per position: h is a step's length in log(signal / noise)."""
    lengths = -np.diff(np.log(schedule.signal / schedule.noise))  # of the step from k + 1 to k
    weights = np.zeros(schedule.num_timesteps)
    weights[1:-1] = lengths[:-1] / (2.0 * lengths[1:])
    return weights


def _solver(step: StepRule | Solver) -> Solver:
    return step if isinstance(step, Solver) else Memoryless(step)


def _reversed(table: np.ndarray) -> Array:
    whole = np.issubdtype(table.dtype, np.integer)
    return jnp.asarray(np.flip(table), jnp.int32 if whole else jnp.float32)
