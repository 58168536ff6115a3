"""DDPM inversion: exact under the same condition, known in closed form under another."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.diffusion.gaussians import FULL, exact_denoiser, mixture_denoiser
from tests.diffusion.solvers import VARIANTS
from unclip_jax.core import rng
from unclip_jax.core.checks import UserError
from unclip_jax.diffusion import ddpm_inversion, samplers
from unclip_jax.diffusion.ddpm_inversion import NoiseMaps
from unclip_jax.diffusion.guidance import Denoiser
from unclip_jax.diffusion.process import Prediction
from unclip_jax.diffusion.samplers import Ddim, Solver

X_0 = jnp.linspace(-1.0, 1.0, 12).reshape(2, 6)
DDIM = Ddim()
KEYS = rng.per_example(jax.random.key(0), jnp.arange(2))


def rows(spec: str, strength: float = 1.0, *, solver: Solver = DDIM):
    return ddpm_inversion.last_steps(solver.plan(FULL, steps=spec), strength=strength)


def round_trip(source: Denoiser, target: Denoiser, table, solver, x_0=X_0, keys=KEYS):
    options = {"table": table, "solver": solver}
    noise = ddpm_inversion.encode(source, x_0, keys=keys, **options)
    return ddpm_inversion.decode(target, noise, **options).x


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("strength", [1.0, 0.4, 0.0])
def test_the_same_condition_gives_the_sample_back_whatever_model_and_solver(name, strength):
    solver = VARIANTS[name]

    def denoise(x_t, t):  # far from linear, and X_0 far from its data
        return mixture_denoiser()(x_t, t)._replace(var_frac=jnp.sin(x_t))

    back = round_trip(denoise, denoise, rows("10", strength, solver=solver), solver)
    np.testing.assert_allclose(back, X_0, atol=1e-5)


def test_rounding_of_another_program_does_not_add_up():
    # a network in bfloat16 whose other batch rounds otherwise
    def rounded(denoise, noise):
        def run(x_t, t):
            pred = denoise(x_t.astype(jnp.bfloat16).astype(jnp.float32) * (1 + noise), t)
            return Prediction(*(part.astype(jnp.bfloat16).astype(jnp.float32) for part in pred[:2]))

        return run

    exact, steps = exact_denoiser(0.3, 0.5), rows("50")
    one, other = rounded(exact, 0.0), rounded(exact, 1e-3)
    back = round_trip(one, other, steps, Ddim(1.0))
    np.testing.assert_allclose(back, X_0, atol=0.03)
    np.testing.assert_allclose(round_trip(one, one, steps, Ddim(1.0)), X_0, atol=1e-5)


@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_the_first_noise_map_is_the_sample_at_the_first_level(strength: float):
    table = rows("10", strength)
    options = {"keys": KEYS, "table": table, "solver": DDIM}
    one, other = (
        ddpm_inversion.encode(exact_denoiser(0.3, 0.5), x, **options).x_t for x in (X_0, 3.0 * X_0)
    )
    level = FULL.level(jnp.asarray(table.t[:1]), ndim=2)
    np.testing.assert_allclose(other - one, 2.0 * level.signal * X_0, atol=1e-5)
    assert float(jnp.std((one - level.signal * X_0) / level.noise)) == pytest.approx(1.0, abs=0.5)


@pytest.mark.parametrize("strength", [1.0, 0.6, 0.2])
@pytest.mark.parametrize("spec", ["5", "50"])
def test_another_mean_shifts_a_gaussian_by_what_the_first_level_hides(spec, strength):
    # the slopes of E[x_s | x_t] telescope: the shift is (1 - alpha_bar) / Var(x_t) of the means'
    mean, other, std = 0.3, -0.4, 0.5
    steps = rows(spec, strength)
    output = round_trip(exact_denoiser(mean, std), exact_denoiser(other, std), steps, Ddim(1.0))
    noise, signal = float(steps.noise_t[0]), float(steps.signal_t[0])
    share = noise**2 / (std**2 * signal**2 + noise**2)
    np.testing.assert_allclose(output - X_0, (other - mean) * share, atol=2e-5)


def test_without_noise_the_shift_is_that_of_the_probability_flow():
    mean, other, std = 0.3, -0.4, 0.5
    steps = rows("1000", 0.6)
    output = round_trip(exact_denoiser(mean, std), exact_denoiser(other, std), steps, Ddim())
    noise, signal = float(steps.noise_t[0]), float(steps.signal_t[0])
    share = 1.0 - signal * std / np.sqrt(std**2 * signal**2 + noise**2)
    np.testing.assert_allclose(output - X_0, (other - mean) * share, rtol=1e-2)


def test_the_noises_of_all_levels_are_independent():
    def nothing(x_t, t):
        return Prediction(jnp.zeros_like(x_t), jnp.zeros_like(x_t))

    steps, x_0 = rows("4"), jnp.full((1, 20_000), 0.5)
    noise = ddpm_inversion.encode(nothing, x_0, table=steps, solver=Ddim(1.0), keys=KEYS[:1])
    # a mean of zero: maps are the noisy samples themselves
    levels = jnp.concatenate([noise.x_t, noise.maps[0]])
    signal, level = ([*a, b] for a, b in ((steps.signal_t, 1.0), (steps.noise_t, 0.0)))
    np.testing.assert_array_equal(levels[-1], x_0[0])
    noises = (levels[:-1] - jnp.asarray(signal[:-1])[:, None] * 0.5) / jnp.asarray(level[:-1])[
        :, None
    ]
    np.testing.assert_allclose(np.cov(noises), np.eye(4), atol=0.04)


@pytest.mark.parametrize("name", VARIANTS)
def test_parts_run_in_turn_are_the_whole(name):
    solver = VARIANTS[name]
    table = rows("8", solver=solver)
    source, target = exact_denoiser(0.3, 0.5, var_frac=0.0), mixture_denoiser()
    options = {"solver": solver}

    def denoise(x_t, t):
        return target(x_t, t)._replace(var_frac=jnp.zeros_like(x_t))

    noise = ddpm_inversion.encode(source, X_0, table=table, keys=KEYS, **options)
    whole = ddpm_inversion.decode(denoise, noise, table=table, **options)
    x_t, memory = noise.x_t, None
    for part in (slice(0, 3), slice(3, None)):
        remainder = NoiseMaps(x_t, noise.maps[:, part])
        some = samplers.take(table, part)
        state = ddpm_inversion.decode(denoise, remainder, table=some, memory=memory, **options)
        x_t, memory = state.x, state.memory
    np.testing.assert_array_equal(x_t, whole.x)
    np.testing.assert_array_equal(state.previews, whole.previews)


def test_an_example_does_not_depend_on_its_batch():
    denoise, options = mixture_denoiser(), {"table": rows("6"), "solver": Ddim(1.0)}
    both = ddpm_inversion.encode(denoise, X_0, keys=KEYS, **options)
    one = ddpm_inversion.encode(denoise, X_0[1:], keys=KEYS[1:], **options)
    np.testing.assert_allclose(one.maps[0], both.maps[1], atol=1e-6)
    assert np.abs(both.x_t[0] - both.x_t[1]).min() > 0


def test_a_strength_beyond_the_chain_is_rejected():
    for strength in (-0.1, 1.1):
        with pytest.raises(UserError, match=rf"strength is {strength}; it must lie in \[0.0, 1.0"):
            rows("10", strength)
