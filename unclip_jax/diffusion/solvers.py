"""Second-order solvers of the probability flow: DPM-Solver++(2M) and Heun's method.

Both walk the deterministic path that DDIM walks with eta 0, with an error that falls with the
square of the step instead of the step itself. They go beyond the paper: unCLIP samples with
`samplers.Ddim` and `samplers.Ancestral`. What they reach is plotted in docs/samplers.md.
Sources: DPM-Solver++ (arXiv 2211.01095, algorithm 2), Heun's method for diffusion from EDM
(arXiv 2206.00364, algorithm 1), the flow as a rotation from arXiv 2202.00512, appendix D.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from unclip_jax.diffusion.process import Prediction
from unclip_jax.diffusion.samplers import Ddim, StepInputs

X = Float[Array, " b *s"]


@dataclasses.dataclass(frozen=True)
class DpmSolver2M:
    """DDIM whose x_0 is extrapolated from this step's and the last one's: two steps, second order.

    One evaluation per step. The first step and the last, which ends at noise 0 and so is infinitely
    long in log(signal / noise), are DDIM's. It wants steps of even length there: "logsnr20".
    """

    def rounds(self, steps: StepInputs) -> StepInputs:
        """The steps themselves: one evaluation each."""
        return steps

    def start(self, x_T: X) -> X:
        """No x_0 yet; the first step's weight for it is 0."""
        return jnp.zeros_like(x_T)

    def advance(
        self, x: X, memory: X, *, pred: Prediction, at: StepInputs, noise: X
    ) -> tuple[X, X]:
        """Take one step and remember its x_0."""
        # along the ray to x_0 a DDIM step moves by this much per unit of x_0 at fixed x_t
        gain = at.signal_s - at.noise_s * at.signal_t / at.noise_t
        change = at.extrapolate * (pred.x_0 - memory)
        return Ddim()(x, pred, at, noise) + gain * change, pred.x_0


class _Half(NamedTuple):
    """What Heun's method remembers of a step that it has begun."""

    x_t: Float[Array, " b *s"]
    velocity: Float[Array, " b *s"]
    begun: Bool[Array, ""]


@dataclasses.dataclass(frozen=True)
class Heun:
    """Heun's method: try a DDIM step, then walk the mean of the velocities at its two ends.

    Time is the angle of (signal, noise), in which the flow is dx / d angle = v = signal eps -
    noise x_0: bounded and smooth on every schedule, while in EDM's noise / signal the first step of
    a cosine chain is longer than all others together and spoils the result.

    Two evaluations per step but for the last, which is DDIM's: the network knows no noise 0.
    """

    def rounds(self, steps: StepInputs) -> StepInputs:
        """Every step twice, the second time evaluated where it ends; the last step once."""
        twice = jax.tree.map(lambda row: jnp.repeat(row, 2, axis=0)[:-1], steps)
        # t_0, t_1 | t_1, t_2 | ... | t_last
        return twice._replace(t=jnp.append(steps.t[:1], jnp.repeat(steps.t[1:], 2, axis=0)))

    def start(self, x_T: X) -> _Half:
        """No step is begun."""
        return _Half(x_T, jnp.zeros_like(x_T), jnp.zeros((), bool))

    def advance(
        self, x: X, memory: _Half, *, pred: Prediction, at: StepInputs, noise: X
    ) -> tuple[X, _Half]:
        """Begin a step, or correct the one that is begun."""
        here = _Half(x, _velocity(pred, at.signal_t, at.noise_t), jnp.ones((), bool))
        tried = Ddim()(x, pred, at, noise)
        there = _velocity(pred, at.signal_s, at.noise_s)
        turn = jnp.arctan2(at.noise_s, at.signal_s) - jnp.arctan2(at.noise_t, at.signal_t)
        corrected = memory.x_t + turn * 0.5 * (memory.velocity + there)
        after = here._replace(begun=~memory.begun)
        return jnp.where(memory.begun, corrected, tried), after


def _velocity(pred: Prediction, signal: Array, noise: Array) -> X:
    return signal * pred.eps - noise * pred.x_0
