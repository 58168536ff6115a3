"""Plots each sampler's error against its evaluations of the network.

    python -m studies.sampler_error --out=docs/samplers.png

The data are a one-dimensional mixture of two narrow Gaussians, for which both the optimal denoiser
and the end of the probability flow have closed forms, so the error is due to the sampler alone. It
is the root mean square distance between the quantiles of the samples and of the end of the exact
flow.
"""

import functools
import pathlib

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from matplotlib import pyplot as plt
from scipy.stats import norm

from tests.diffusion.gaussians import mixture_denoiser, mixture_flow
from unclip_jax.cli import entry
from unclip_jax.cli.parser import Parser
from unclip_jax.core import rng
from unclip_jax.diffusion.samplers import Ancestral, Ddim, evaluations, sample
from unclip_jax.diffusion.schedule import make_schedule
from unclip_jax.diffusion.solvers import DpmSolver2M, DpmSolver3M, Edm, Heun

COUNTS = (5, 8, 12, 18, 27, 50, 100, 250)
LEVELS, SAMPLES = 200, 20_000
CURVES = {  # name: solver, grid, style
    "ancestral, small variance": (Ancestral("small"), "{}", "C7-"),
    "ddim": (Ddim(), "{}", "C0-"),
    "dpmpp_2m": (DpmSolver2M(), "{}", "C1--"),
    "dpmpp_2m, logsnr steps": (DpmSolver2M(), "logsnr{}", "C1-"),
    "dpmpp_3m, logsnr steps": (DpmSolver3M(), "logsnr{}", "C4-"),
    "heun": (Heun(), "{}", "C2-"),
    "heun, logsnr steps": (Heun(), "logsnr{}", "C2--"),
    "edm": (Edm(), "{}", "C3-"),
}


def main() -> None:
    """Computes and plots both schedules."""
    parser = Parser("sampler_error", prog="python -m studies.sampler_error", description=__doc__)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("docs/samplers.png"))
    out = parser.parse_args().out
    matplotlib.use("Agg")
    figure, axes = plt.subplots(1, 2, figsize=(10, 4.2), sharey=True, layout="constrained")
    for axis, name in zip(axes, ("cosine", "linear"), strict=True):
        schedule = make_schedule(name, num_timesteps=1000)
        for label, (solver, grid, style) in CURVES.items():
            axis.loglog(*curve(solver, grid, schedule), style, marker=".", label=label)
        axis.set(title=f"{name} schedule", xlabel="evaluations of the network")
        axis.grid(which="both", alpha=0.2)
    axes[0].set_ylabel("error of quantiles (root mean square)")
    axes[0].legend(fontsize=8)
    figure.savefig(out, dpi=110)


def curve(solver, grid, schedule):
    """Computes (evaluations, errors) over the step counts."""
    levels = (np.arange(LEVELS) + 0.5) / LEVELS
    x_T = norm.ppf(levels)
    exact = mixture_flow(x_T, schedule=schedule)
    if isinstance(solver, Ancestral):  # not a path, so the ends of many samples are compared
        x_T = np.random.default_rng(0).normal(size=SAMPLES)
    keys = rng.per_example(jax.random.key(0), jnp.arange(len(x_T)))
    costs, errors = [], []
    for count in COUNTS:
        chain = {"schedule": schedule, "steps": grid.format(count)}
        denoise = mixture_denoiser(schedule=schedule)
        run = jax.jit(functools.partial(sample, denoise, solver=solver, **chain))
        x_0 = np.float64(run(jnp.float32(x_T[:, None]), keys=keys)[:, 0])
        costs.append(evaluations(solver, **chain))
        errors.append(np.sqrt(np.mean((np.quantile(x_0, levels, method="hazen") - exact) ** 2)))
    return costs, errors


if __name__ == "__main__":
    entry.run(main)
