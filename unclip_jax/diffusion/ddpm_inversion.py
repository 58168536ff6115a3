"""DDPM inversion: a sample as the noise of every step, which preserves its form under edits.

x_T of DDIM inversion is one noise for the whole chain, and an edit of the condition has the whole
chain to move things in. Here x_t is drawn at every level independently, and the differences from
the model's mean to the x of the next level are stored: the noise maps. Under the same condition
they give the sample back up to rounding, whatever the model; under another one they resist the
change. Source: Huberman-Spiegelglas, Kulikov & Michaeli, CVPR 2024 (arXiv 2304.06140).

Three things differ from theirs: eta may be less than 1, which preserves more; the last step has a
map too, the error of the model's last x_0, where they add nothing; and any solver can be used, as
in LEDITS++ (Brack et al. 2024, arXiv 2311.16711) with DPM-Solver++.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from unclip_jax.core import rng
from unclip_jax.core.checks import in_range
from unclip_jax.core.types import Keys
from unclip_jax.diffusion import samplers
from unclip_jax.diffusion.guidance import Denoiser
from unclip_jax.diffusion.process import Prediction
from unclip_jax.diffusion.samplers import ChainState, Solver, StepTable

X = Float[Array, " b *s"]


class NoiseMaps(NamedTuple):
    """A sample as x_t at some level and everything that later steps add; float32.

    Attributes:
        x_t: the sample with noise at the first level.
        maps: the additions to the model's mean, one per row of the table, most noise first; at
            rows with noise, sigma_t z_t in the paper's notation.
    """

    x_t: X
    maps: Float[Array, " b k *s"]


@dataclasses.dataclass(frozen=True)
class Replay(Solver):
    """A solver without its own noise, whose `noise` is a map added to the result as it is.

    Attributes:
        solver: gives the means.
    """

    solver: Solver

    def plan(self, schedule: Any, *, steps: str | None = None) -> StepTable:
        """Returns the plan of the solver."""
        return self.solver.plan(schedule, steps=steps)

    def start(self, x_T: X) -> Any:
        """Returns the memory of the solver."""
        return self.solver.start(x_T)

    def advance(
        self, x: X, memory: Any, *, pred: Prediction, at: StepTable, noise: X
    ) -> tuple[X, Any]:
        """Adds the map to the solver's mean."""
        silent = jnp.zeros_like(x)
        mean, memory = self.solver.advance(x, memory, pred=pred, at=at, noise=silent)
        return mean + noise, memory


def last_steps(table: StepTable, *, strength: float) -> StepTable:
    """Returns the rows of the last `strength` of a chain's steps; at least one step.

    Raises:
        UserError: `strength` is outside [0, 1].
    """
    in_range("strength", strength, 0.0, 1.0)
    begins = np.flatnonzero(table.begins)
    count = max(1, round(strength * len(begins)))
    return samplers.take(table, slice(begins[-count], None))


def encode(denoise: Denoiser, x_0: X, *, table: StepTable, solver: Solver, keys: Keys) -> NoiseMaps:
    """Finds the noise maps of samples.

        x_t = signal_t x_0 + noise_t n_t,   map_t = x_s - mean(x_t),   x_s = x_0 at the end

    with the n_t of all levels independent.

    Args:
        denoise: (x_t, timesteps) -> Prediction, under the condition of the samples.
        x_0: the samples.
        table: a plan of the solver, or the last rows of one.
        solver: gives the means; `Ddim(1.0)` is the paper's, a smaller eta preserves more.
        keys: one per example.
    """
    x_0 = x_0.astype(jnp.float32)
    table = samplers.on_device(table)

    def body(carry: tuple[X, Any], at: StepTable) -> tuple[tuple[X, Any], X]:
        x_t, memory = carry
        # at the last step noise_s is 0 and signal_s is 1
        x_s = jnp.asarray(at.signal_s) * x_0 + at.noise_s * _normal(keys, at.position - 1, x_0)
        pred = denoise(x_t, jnp.broadcast_to(at.t, x_t.shape[:1]))
        silent = jnp.zeros_like(x_t)
        mean, memory = solver.advance(x_t, memory, pred=pred, at=at, noise=silent)
        x_next = mean + (x_s - mean)  # as `decode` will add it up, so that errors do not
        return (x_next, memory), x_s - mean

    x_t = table.signal_t[0] * x_0 + table.noise_t[0] * _normal(keys, table.position[0], x_0)
    _, maps = jax.lax.scan(body, (x_t, solver.start(x_t)), table)
    return NoiseMaps(x_t, jnp.moveaxis(maps, 0, 1))


def decode(
    denoise: Denoiser,
    noise: NoiseMaps,
    *,
    table: StepTable,
    solver: Solver,
    memory: Any = None,
) -> ChainState:
    """Runs the chain again with stored noise, under any condition.

    Args:
        denoise: as for `encode`, under the condition of the result.
        noise: of `encode`, or x_t and the remaining maps after a part of the table.
        table: the rows to which the maps belong.
        solver: that of `encode`.
        memory: the solver's, after a part of the table.

    Returns:
        The state after these rows; its one preview is the clean sample predicted at the last.
    """
    return samplers.run(
        denoise,
        noise.x_t,
        table=table,
        solver=Replay(solver),
        memory=memory,
        noise=jnp.moveaxis(noise.maps, 1, 0),
        previews=1,
    )


def _normal(keys: Keys, position: Array | np.ndarray, like: X) -> X:
    return rng.normal_each(rng.fold_each(keys, "noise_map", jnp.asarray(position)), like.shape[1:])
