"""Errors of grids against data whose flow is known in closed form."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.diffusion import gaussians
from unclip_jax.core import rng
from unclip_jax.diffusion import respace
from unclip_jax.experiment import sampling_grid
from unclip_jax.objectives import gaussian
from unclip_jax.objectives.gaussian import DiffusionConfig, SamplingConfig
from unclip_jax.parallel.mesh import MeshConfig, make_mesh
from unclip_jax.stages import registry

STD = 0.5


def errors(sampler, **sampling):
    """Errors of a stage whose data are Gaussian, with a sixth of the guidance as deviation."""
    entry = dataclasses.replace(
        registry.stage_entry("decoder"),
        denoiser=lambda cfg, params, conditions, *, keys, scale: gaussians.exact_denoiser(
            params["mean"], scale / 6
        ),
        latent=lambda cfg, params, batch: batch["image"],
    )
    cfg = types.SimpleNamespace(
        diffusion=DiffusionConfig(schedule="cosine", num_timesteps=1000),
        sampling=SamplingConfig(**sampling),
    )
    mesh = make_mesh(MeshConfig(), devices=jax.local_devices()[:1])
    return sampling_grid._Errors(entry, cfg, sampler, mesh)


def test_the_error_is_the_distance_from_the_closed_form_with_guidance():
    """DDIM's first-order path of a Gaussian against its exact flow x_0 = mean + std x_T."""
    measured = errors("ddim", guidance_scale=3.0)
    params, batch = {"mean": jnp.float32(3.25)}, {"image": jnp.zeros((6, 4, 4, 3))}
    plan = measured.plan("trailing4")
    error = measured.on(params, [batch, batch], seed=5)(plan)
    expected = []
    for index in range(2):
        key = rng.fold(jax.random.key(5), index)
        x_T = gaussian.x_T(rng.per_example(key, jnp.arange(6)), (4, 4, 3))
        chain, x = gaussians.FULL, np.float64(x_T)
        exact = 3.25 + STD * (x - chain.signal[-1] * 3.25) / np.hypot(
            STD * chain.signal[-1], chain.noise[-1]
        )
        signal, noise = chain.signal[plan.indices], chain.noise[plan.indices]
        for k in range(3, -1, -1):
            gain = STD**2 * signal[k] / (STD**2 * signal[k] ** 2 + noise[k] ** 2)
            x_0 = 3.25 + gain * (x - signal[k] * 3.25)
            eps = (x - signal[k] * x_0) / noise[k]
            x = x_0 if k == 0 else signal[k - 1] * x_0 + noise[k - 1] * eps
        expected.append(np.sqrt(np.mean((x - exact) ** 2, axis=(1, 2, 3))))
    assert error == pytest.approx(np.mean(expected), rel=5e-3)  # of Heun's 40 steps


def test_all_grids_and_examples_share_two_programs():
    """One for the ends of the paths, one for the distances; a trace asks for the denoiser once."""
    measured, traces = errors("ddim", guidance_scale=3.0), []
    denoiser = measured.entry.denoiser

    def counted(*args, **options):
        traces.append(args)
        return denoiser(*args, **options)

    entry = dataclasses.replace(measured.entry, denoiser=counted)
    measured = dataclasses.replace(measured, entry=entry)
    params, batch = {"mean": jnp.float32(0.5)}, {"image": jnp.zeros((2, 4, 4, 3))}
    for seed in (0, 1):
        error = measured.on(params, [batch], seed=seed)
        assert error(measured.plan("at:200-999")) != error(measured.plan("at:300-999"))
    assert len(traces) == 2


def test_samples_are_thresholded():
    measured = errors("ddim", guidance_scale=3.0, threshold="static", limit=0.1)
    params, batch = {"mean": jnp.float32(5.0)}, {"image": jnp.zeros((2, 4, 4, 3))}
    key = jax.random.key(0)
    ends = measured._exact(params, batch, key)
    assert np.abs(ends).max() < 0.5  # without the limit about 5


def test_the_result_is_compared_on_other_examples():
    """The search sees one function, the table of errors the other."""
    grids = {"search": [], "other": []}

    def error(name):
        def value(plan):
            grids[name].append(tuple(plan.indices))
            return float(np.sum((plan.indices - np.array([50, 400, 999])) ** 2))

        return value

    result = sampling_grid._search(
        error("search"), error("other"), errors("ddim"), count=3, examples=7
    )
    indices = tuple(respace.timesteps(result.steps, num_timesteps=1000))
    assert np.abs(np.array(indices) - [50, 400, 999]).max() <= 4
    usual = [tuple(errors("ddim").plan(steps).indices) for steps in ("3", "logsnr3", "trailing3")]
    assert grids["other"] == [indices, *usual]
    assert grids["search"][3] == usual[1]  # it begins at the best of them, logsnr3
    assert [*result.errors] == [result.steps, "3", "logsnr3", "trailing3"]
    assert result.evaluations == len(grids["search"]) - 3 and result.examples == 7


def test_a_usual_grid_is_the_result_if_it_is_better_on_other_examples():
    def against(indices):
        return lambda plan: float(np.sum((plan.indices - np.array(indices)) ** 2))

    trailing = errors("ddim").plan("trailing3").indices
    result = sampling_grid._search(
        against([50, 400, 999]), against(trailing), errors("ddim"), count=3, examples=7
    )
    assert result.steps == "trailing3" and result.errors["trailing3"] == 0.0
