"""The search for timesteps: known minima, its limits, and fewer errors with an exact denoiser."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.diffusion import gaussians, solvers
from unclip_jax.diffusion import grid_search, respace, samplers

T = 1000


@pytest.mark.parametrize("target", [[0, 30, 500, 999], [3, 40, 90, 999], [700, 800, 990, 999]])
def test_the_minimum_of_a_bowl_is_its_centre(target):
    def error(grid):
        return float(np.sum((grid - np.array(target)) ** 2))

    result = grid_search.search(error, start=np.array([249, 499, 749, 999]), num_timesteps=T)
    assert np.abs(result.indices - target).max() <= 4  # the length of the last moves
    assert result.error == error(result.indices)


def test_no_move_leaves_the_chain_or_the_order_and_the_last_index_stays():
    tried = []

    def error(grid):
        tried.append(grid)
        return float(grid.sum())  # pulls every index below 0

    result = grid_search.search(error, start=np.array([100, 200, 999]), num_timesteps=T)
    for grid in tried:
        assert grid[0] >= 0 and np.all(np.diff(grid) > 0) and grid[-1] == 999
    assert result.indices[0] < 4 and result.indices[1] < 8
    assert result.evaluations == len(tried)


def test_grids_of_many_steps_are_searched_too():
    start = np.arange(200) * 5 + 4
    result = grid_search.search(lambda grid: float(-grid[0]), start=start, num_timesteps=T)
    assert result.indices[0] > start[0] and result.evaluations > 1


def test_the_search_ends_after_as_many_evaluations_as_allowed():
    values = iter(range(1000, 0, -1))  # every move seems to help

    def error(grid):
        return float(next(values))

    result = grid_search.search(error, start=np.array([400, 999]), num_timesteps=T, most=7)
    assert result.evaluations == 7 and result.error == 994.0


@pytest.mark.parametrize(("sampler", "share"), [("ddim", 0.95), ("dpmpp_2m", 0.7)])
def test_a_searched_grid_has_a_lower_error_on_a_mixture(sampler, share):
    """The end of the exact flow is known, and the comparison has other noise than the search."""
    solver, denoise = solvers.of(sampler), gaussians.mixture_denoiser()
    quantiles = np.linspace(-2.5, 2.5, 800)
    noise = {"search": quantiles[::2], "other": quantiles[1::2]}
    ends = {name: gaussians.mixture_flow(x) for name, x in noise.items()}

    @jax.jit
    def sample(x_T, table):
        keys = jax.random.split(jax.random.key(0), len(x_T))
        return samplers.run(denoise, x_T, table=table, solver=solver, keys=keys).x

    def error(grid, name):
        table = samplers.on_device(solver.plan(gaussians.FULL, steps=respace.listed(grid)))
        x_0 = sample(jnp.asarray(noise[name], jnp.float32)[:, None], table)[:, 0]
        return float(np.sqrt(np.mean((x_0 - ends[name]) ** 2)))

    usual = [
        respace.strided(gaussians.FULL, steps=steps).timesteps
        for steps in ("5", "logsnr5", "trailing5")
    ]
    start = min(usual, key=lambda grid: error(grid, "search"))
    result = grid_search.search(
        lambda grid: error(grid, "search"), start=start, num_timesteps=T, most=120
    )
    assert error(result.indices, "other") < share * min(error(grid, "other") for grid in usual)
