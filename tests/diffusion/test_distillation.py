"""Targets, losses and the sampler of distillation, against closed forms of Gaussian data."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.diffusion.gaussians import FULL, exact_denoiser
from unclip_jax.core import rng
from unclip_jax.diffusion import distillation, samplers
from unclip_jax.diffusion.distillation import Grid
from unclip_jax.diffusion.process import Prediction
from unclip_jax.diffusion.samplers import Consistency

STD = 0.5
SIGNAL, NOISE = np.append(1.0, FULL.signal), np.append(0.0, FULL.noise)  # 0 = the data


def constant(value):
    """A denoiser of data that are one point."""

    def denoise(x, t):
        level = FULL.level(t, ndim=x.ndim)
        return Prediction(jnp.full_like(x, value), (x - level.signal * value) / level.noise)

    return denoise


def draw_at(grid, interval, x):
    x = jnp.asarray(x, jnp.float32)
    interval = jnp.full(len(x), interval, jnp.int32)
    return distillation.NoisedIntervals(interval, grid.point(interval, 0, ndim=x.ndim), x)


def indices(grid, interval):
    """Positions on the chain, from 1, of the points of an interval; 0 = the data."""
    return [
        round(1000 * ((interval + 1) * grid.substeps - k) / (grid.steps * grid.substeps))
        for k in range(grid.substeps + 1)
    ]


def ddim_gain(a, b):
    """Factor of one DDIM step from index a to b on N(0, STD^2), in float64."""
    share = SIGNAL[a] * STD**2 / (SIGNAL[a] ** 2 * STD**2 + NOISE[a] ** 2)
    return SIGNAL[b] * share + NOISE[b] * (1 - SIGNAL[a] * share) / NOISE[a]


@pytest.mark.parametrize(("steps", "substeps"), [(4, 2), (3, 5), (1, 8)])
def test_intervals_join_and_end_at_the_data(steps, substeps):
    grid = Grid(FULL, steps, substeps)
    for interval in range(steps):
        at = jnp.array([interval])
        for k, index in enumerate(indices(grid, interval)):
            point = grid.point(at, k, ndim=3)
            assert point.signal.shape == (1, 1, 1)
            np.testing.assert_allclose(point.signal.item(), SIGNAL[index], rtol=1e-6)
            np.testing.assert_allclose(point.noise.item(), NOISE[index], rtol=1e-6)
            assert point.t.item() == max(index - 1, 0)
    assert grid.point(jnp.array([steps - 1]), 0, ndim=1).t.item() == 999
    assert grid.point(jnp.array([0]), substeps, ndim=1).noise.item() == 0.0


def test_the_teacher_takes_the_ddim_steps_of_its_interval():
    grid, x = Grid(FULL, 4, 3), np.array([[1.0], [-2.0]])
    for interval in range(4):
        end = distillation.teacher_end(
            exact_denoiser(0.0, STD), draw_at(grid, interval, x), grid=grid
        )
        gain = np.prod([ddim_gain(a, b) for a, b in itertools.pairwise(indices(grid, interval))])
        np.testing.assert_allclose(end, gain * x, rtol=1e-4)


def test_one_step_with_the_target_ends_where_the_teacher_ended():
    grid, x, end = Grid(FULL, 4, 2), np.array([[0.7, -1.2]]), jnp.array([[0.3, 0.4]])
    for interval in range(4):
        target = distillation.progressive_target(draw_at(grid, interval, x), end, grid=grid)
        a, *_, b = indices(grid, interval)
        eps = (x - SIGNAL[a] * np.float64(target)) / NOISE[a]
        np.testing.assert_allclose(SIGNAL[b] * target + NOISE[b] * eps, end, atol=1e-5)
    np.testing.assert_array_equal(target[0] != end[0], [True, True])


def test_the_progressive_loss_is_the_weighted_error_of_x_0():
    grid, x = Grid(FULL, 4, 2), np.array([[0.3, -0.8]])
    for interval in range(4):
        noised = draw_at(grid, interval, x)
        loss = distillation.progressive_loss(constant(0.9), constant(0.4), noised, grid=grid)
        a = indices(grid, interval)[0]
        weight = max(SIGNAL[a] ** 2 / NOISE[a] ** 2, 1.0)
        np.testing.assert_allclose(loss, weight * 0.25, rtol=1e-3)


def scaled(factor):
    """A student whose x_0 is a multiple of x that depends on t."""
    return lambda x, t: Prediction(factor * (1 + t[:, None] / 1000.0) * x, x)


@pytest.mark.parametrize("interval", [0, 2])
def test_the_consistency_loss_and_its_gradient_are_those_written_by_hand(interval):
    grid, x = Grid(FULL, 4, 2), np.array([[0.3, -0.8, 0.5]])
    noised, teacher = draw_at(grid, interval, x), exact_denoiser(0.0, STD)

    def loss(factor):
        return distillation.consistency_loss(scaled(factor), teacher, noised, grid=grid)[0]

    value, gradient = jax.value_and_grad(loss)(0.8)
    a, *_, b = points = indices(grid, interval)
    end = np.prod([ddim_gain(*pair) for pair in itertools.pairwise(points)]) * x
    nearer = 0.8 * (1 + (b - 1) / 1000) * end if b else end
    slope = (1 + (a - 1) / 1000) * x
    error, c = 0.8 * slope - nearer, 0.00054 * np.sqrt(3)
    norm = np.sqrt(np.sum(error**2) + c**2)
    np.testing.assert_allclose(value, norm - c, rtol=1e-4)
    np.testing.assert_allclose(gradient, np.sum(error * slope) / norm, rtol=1e-4)


def endpoint(x, t):
    """The end of the probability flow of N(0, STD^2) through x, in closed form."""
    level = FULL.level(t, ndim=x.ndim)
    x_0 = STD * x / jnp.sqrt(level.signal**2 * STD**2 + level.noise**2)
    return Prediction(x_0, (x - level.signal * x_0) / level.noise)


def test_the_end_of_the_flow_is_consistent_with_a_teacher_of_small_steps():
    x = np.array([[1.0], [-0.4]])
    losses = [
        distillation.consistency_loss(
            endpoint,
            exact_denoiser(0.0, STD),
            draw_at(Grid(FULL, 4, n), 2, x),
            grid=Grid(FULL, 4, n),
        )
        for n in (2, 8, 32)
    ]
    assert np.all(losses[1] < losses[0] / 3) and np.all(losses[2] < losses[1] / 3)


def test_intervals_are_uniform_and_x_is_noised_to_where_they_begin():
    count, grid = 8000, Grid(FULL, 4, 2)
    noised = distillation.noise_intervals(grid, jnp.full((count, 1), 2.0), key=jax.random.key(0))
    shares = np.bincount(noised.interval, minlength=4) / count
    assert np.all(abs(shares - 0.25) < 4 * np.sqrt(0.25 * 0.75 / count))
    for interval in range(4):
        x, index = np.ravel(noised.x)[noised.interval == interval], indices(grid, interval)[0]
        assert abs(x.mean() - 2.0 * SIGNAL[index]) < 4 * NOISE[index] / np.sqrt(len(x))
        assert abs(x.std() / NOISE[index] - 1) < 4 / np.sqrt(2 * len(x))


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_consistency_samples_have_the_variance_of_the_data(steps):
    count = 8000
    keys = rng.per_example(jax.random.key(0), jnp.arange(count))
    x_T = jax.random.normal(jax.random.key(1), (count, 1))
    grid = distillation.trailing(steps)
    options = {"schedule": FULL, "solver": Consistency(), "keys": keys, "steps": grid}
    of_endpoints, of_means = (
        np.asarray(samplers.sample(model, x_T, **options)).std()
        for model in (endpoint, exact_denoiser(0.0, STD))
    )
    tolerance = 4 * STD / np.sqrt(2 * count)
    assert abs(of_endpoints - STD) < tolerance
    assert of_means < STD - tolerance  # why other models are rejected
