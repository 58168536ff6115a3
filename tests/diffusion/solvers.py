"""The samplers of the registry, with variants of their options, for tests that hold for all."""

from unclip_jax.diffusion.samplers import Solver
from unclip_jax.objectives.gaussian import SAMPLERS, SamplingConfig


def of(sampler: str, **settings) -> Solver:
    """Returns a solver as a config selects it."""
    return SamplingConfig(sampler=sampler, **settings).solver()


# of those that need the end of a path, test_distillation.py has the theorems
SOLVERS = {name: of(name) for name, solver in SAMPLERS.items() if not solver.endpoints}
VARIANTS = {
    **SOLVERS,
    "ddim, eta 0.5": of("ddim", eta=0.5),
    "ddim, eta 1": of("ddim", eta=1.0),
    "ancestral, large": of("ancestral", variance="large"),
    "ancestral, learned_range": of("ancestral", variance="learned_range"),
    "edm, churn": of("edm:s_churn=20"),
}
DETERMINISTIC = {name: solver for name, solver in VARIANTS.items() if not solver.stochastic}
STOCHASTIC = {name: solver for name, solver in VARIANTS.items() if solver.stochastic}
