"""Second-order solvers: their order, the published formulas, and what they cost."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

from tests.diffusion.gaussians import FULL, exact_denoiser, mixture_denoiser, mixture_flow
from unclip_jax.core import rng
from unclip_jax.diffusion.process import Prediction
from unclip_jax.diffusion.respace import strided
from unclip_jax.diffusion.samplers import ddim, evaluations, sample, step_inputs
from unclip_jax.diffusion.schedule import Schedule
from unclip_jax.diffusion.solvers import DpmSolver2M, Heun

MEAN, STD = 0.4, 0.5
RULES = {"ddim": ddim(0.0), "dpmpp_2m": DpmSolver2M(), "heun": Heun()}
ORDERS = {"ddim": 1, "dpmpp_2m": 2, "heun": 2}
X_T = norm.ppf((np.arange(16) + 0.5) / 16)  # quantiles of the noise


def even_chain(count: int) -> Schedule:
    """Levels even in log(signal / noise), so that halving the step means doubling the count."""
    alpha_bar = 1 / (1 + np.exp(-2 * np.linspace(4.0, -4.0, count)))
    return Schedule(1 - alpha_bar / np.append(1, alpha_bar[:-1]), np.arange(count))


def keys(count: int) -> jax.Array:
    return rng.per_example(jax.random.key(0), jnp.arange(count))


def run(rule, denoise, chain: Schedule, x_T=X_T) -> np.ndarray:
    x_T = jnp.asarray(x_T, jnp.float32).reshape(-1, 1)
    solve = jax.jit(functools.partial(sample, denoise, schedule=chain, step=rule))
    return np.float64(solve(x_T, keys=keys(len(x_T)))[:, 0])


def flow_of_the_gaussian(chain: Schedule) -> np.ndarray:
    spread = np.sqrt(STD**2 * chain.alpha_bar + 1 - chain.alpha_bar)
    gap = (X_T - chain.signal[-1] * MEAN) / spread[-1] * spread[0]
    return MEAN + STD**2 * chain.signal[0] / spread[0] ** 2 * gap


DATA = {
    "gaussian": (lambda chain: exact_denoiser(MEAN, STD, schedule=chain), flow_of_the_gaussian),
    "mixture": (
        lambda chain: mixture_denoiser(schedule=chain),
        lambda chain: mixture_flow(X_T, schedule=chain),
    ),
}


@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("name", RULES)
def test_the_error_falls_with_the_power_of_the_step_that_is_the_rule_s_order(name, data):
    denoiser, flow = DATA[data]
    errors = []
    for count in (32, 64, 128):
        chain = even_chain(count + 1)
        gap = run(RULES[name], denoiser(chain), chain) - flow(chain)
        errors.append(np.sqrt(np.mean(gap**2)))
    slopes = np.log2(np.array(errors[:-1]) / errors[1:])
    np.testing.assert_allclose(slopes, ORDERS[name], atol=0.3)
    assert slopes[1] == pytest.approx(ORDERS[name], abs=0.2)


@pytest.mark.parametrize(("name", "steps"), [("dpmpp_2m", "logsnr21"), ("heun", "11")])
def test_for_the_same_evaluations_of_a_cosine_chain_the_error_is_less_than_ddims(name, steps):
    exact = mixture_flow(X_T, schedule=FULL)
    by_ddim = run(ddim(0.0), mixture_denoiser(), strided(FULL, steps="21")) - exact
    chain = strided(FULL, steps=steps)
    assert evaluations(RULES[name], schedule=chain) == 21
    gap = run(RULES[name], mixture_denoiser(), chain) - exact
    assert np.mean(gap**2) < np.mean(by_ddim**2)


def multistep(denoise, chain: Schedule) -> np.ndarray:
    """DPM-Solver++(2M) as its paper's algorithm 2 has it, step by step in h, r and exp(-h)."""
    log_snr = np.log(chain.signal / chain.noise)
    x, before = X_T.copy(), None
    for k in range(chain.num_timesteps - 1, 0, -1):
        x_0 = denoise(x, k)
        h = log_snr[k - 1] - log_snr[k]
        mixed = x_0
        if before is not None:
            r = (log_snr[k] - log_snr[k + 1]) / h
            mixed = (1 + 1 / (2 * r)) * x_0 - 1 / (2 * r) * before
        x = chain.noise[k - 1] / chain.noise[k] * x - chain.signal[k - 1] * np.expm1(-h) * mixed
        before = x_0
    return denoise(x, 0)


def trapezoid(denoise, chain: Schedule) -> np.ndarray:
    """Heun's method on dx / d angle = cos(angle) eps - sin(angle) x_0, with eps from x_0."""
    angle = np.arctan2(chain.noise, chain.signal)

    def slope(x: np.ndarray, k: int) -> np.ndarray:
        x_0 = denoise(x, k)
        return (
            np.cos(angle[k]) * (x - np.cos(angle[k]) * x_0) / np.sin(angle[k])
            - np.sin(angle[k]) * x_0
        )

    x = X_T.copy()
    for k in range(chain.num_timesteps - 1, 0, -1):
        turn, first = angle[k - 1] - angle[k], slope(x, k)
        # to first order, along the circle instead of its tangent: what DDIM does
        tried = np.cos(turn) * x + np.sin(turn) * first
        x = x + turn / 2 * (first + slope(tried, k - 1))
    return denoise(x, 0)


@pytest.mark.parametrize(("name", "reference"), [("dpmpp_2m", multistep), ("heun", trapezoid)])
@pytest.mark.parametrize("steps", ["12", "logsnr12"])
def test_whole_chains_are_those_of_the_published_algorithm_in_float64(name, reference, steps):
    chain = strided(FULL, steps=steps)

    def x_0(x: np.ndarray, k: int) -> np.ndarray:
        signal, noise = chain.signal[k], chain.noise[k]
        gain = STD**2 * signal / (STD**2 * signal**2 + noise**2)
        return MEAN + gain * (x - signal * MEAN)

    got = run(RULES[name], exact_denoiser(MEAN, STD), chain)
    np.testing.assert_allclose(got, reference(x_0, chain), atol=2e-5)


@pytest.mark.parametrize("name", RULES)
def test_a_denoiser_that_knows_x_0_is_solved_exactly_in_any_number_of_steps(name):
    def knows(x_t, t):
        level = FULL.level(t, ndim=x_t.ndim)
        return Prediction(jnp.full_like(x_t, 0.7), (x_t - 0.7 * level.signal) / level.noise)

    for steps in ("2", "5"):
        np.testing.assert_allclose(run(RULES[name], knows, strided(FULL, steps=steps)), 0.7)


@pytest.mark.parametrize("name", ["dpmpp_2m", "heun"])
def test_nothing_is_drawn_and_examples_do_not_mix(name):
    chain = strided(FULL, steps="7")
    whole = run(RULES[name], mixture_denoiser(), chain)
    np.testing.assert_allclose(
        run(RULES[name], mixture_denoiser(), chain, X_T[3:5]), whole[3:5], atol=1e-6
    )


@pytest.mark.parametrize(
    ("name", "positions"),
    [("ddim", [3, 2, 1, 0]), ("dpmpp_2m", [3, 2, 1, 0]), ("heun", [3, 2, 2, 1, 1, 0, 0])],
)
def test_every_evaluation_of_the_network_is_counted_and_seen(name, positions):
    chain = strided(FULL, steps="4")
    seen = []

    def denoise(x_t, t):
        jax.debug.callback(lambda t: seen.append(int(t[0])), t, ordered=True)
        return mixture_denoiser()(x_t, t)

    run(RULES[name], denoise, chain)
    jax.effects_barrier()
    assert seen == chain.timesteps[positions].tolist()
    assert evaluations(RULES[name], schedule=chain) == len(seen)


def test_the_network_is_traced_once_whatever_the_rule():
    for rule in RULES.values():
        traces = []

        def denoise(x_t, t, traces=traces):
            traces.append(x_t.shape)
            return mixture_denoiser()(x_t, t)

        run(rule, denoise, strided(FULL, steps="4"))
        assert len(traces) == 1


def test_on_two_steps_the_multistep_rule_has_nothing_to_extrapolate_from():
    chain = strided(FULL, steps="2")
    plain = run(ddim(0.0), mixture_denoiser(), chain)
    # the same numbers but for how XLA contracts multiplications and additions
    got = run(DpmSolver2M(), mixture_denoiser(), chain)
    np.testing.assert_allclose(got, plain, atol=1e-6)
    np.testing.assert_array_equal(step_inputs(chain).extrapolate, 0.0)
