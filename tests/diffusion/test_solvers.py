"""Solvers of higher order: their order, the published formulas, and their cost."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import norm

from tests.diffusion.gaussians import FULL, exact_denoiser, mixture_denoiser, mixture_flow
from tests.diffusion.solvers import DETERMINISTIC, SOLVERS
from unclip_jax.core import rng
from unclip_jax.core.checks import UserError
from unclip_jax.diffusion import samplers
from unclip_jax.diffusion.process import Prediction
from unclip_jax.diffusion.respace import strided
from unclip_jax.diffusion.samplers import Ddim, evaluations, sample
from unclip_jax.diffusion.schedule import Schedule
from unclip_jax.diffusion.solvers import DpmSolver2M, DpmSolver3M, Edm

MEAN, STD = 0.4, 0.5
X_T = norm.ppf((np.arange(16) + 0.5) / 16)  # quantiles of the noise


def even_chain(count: int) -> Schedule:
    """Levels even in log(signal / noise), so that halving the step means doubling the count."""
    alpha_bar = 1 / (1 + np.exp(-2 * np.linspace(4.0, -4.0, count)))
    return Schedule(1 - alpha_bar / np.append(1, alpha_bar[:-1]), np.arange(count))


def keys(count: int) -> jax.Array:
    return rng.per_example(jax.random.key(0), jnp.arange(count))


def run(solver, denoise, chain: Schedule, x_T=X_T, steps=None) -> np.ndarray:
    x_T = jnp.asarray(x_T, jnp.float32).reshape(-1, 1)
    solve = jax.jit(functools.partial(sample, denoise, schedule=chain, solver=solver, steps=steps))
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
@pytest.mark.parametrize("name", DETERMINISTIC)
def test_error_falls_with_the_power_of_the_step_that_is_the_order(name, data):
    denoiser, flow = DATA[data]
    solver = DETERMINISTIC[name]
    errors = []
    for count in (32, 64, 128):
        chain = even_chain(count + 1)
        gap = run(solver, denoiser(chain), chain) - flow(chain)
        errors.append(np.sqrt(np.mean(gap**2)))
    slopes = np.log2(np.array(errors[:-1]) / errors[1:])
    if solver.order == 3:  # whose first error terms nearly cancel on these data
        assert slopes.min() > 2.8
        return
    np.testing.assert_allclose(slopes, solver.order, atol=0.3)
    assert slopes[1] == pytest.approx(solver.order, abs=0.2)


@pytest.mark.parametrize(
    ("name", "steps"), [("dpmpp_2m", "logsnr21"), ("dpmpp_3m", "logsnr21"), ("heun", "11")]
)
def test_for_the_same_evaluations_of_a_cosine_chain_the_error_is_less_than_ddims(name, steps):
    exact = mixture_flow(X_T, schedule=FULL)
    by_ddim = run(Ddim(), mixture_denoiser(), strided(FULL, steps="21")) - exact
    chain = strided(FULL, steps=steps)
    assert evaluations(SOLVERS[name], schedule=chain) == 21
    gap = run(SOLVERS[name], mixture_denoiser(), chain) - exact
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


def integrand(u: float, power: int, length: float) -> float:
    return np.exp(u - length) * u**power


def parabola(denoise, chain: Schedule) -> np.ndarray:
    """The flow with x_0 as the polynomial through the last three points, by quadrature."""
    log_snr = np.log(chain.signal / chain.noise)
    x, points = X_T.copy(), []
    for k in range(chain.num_timesteps - 1, 0, -1):
        points = [*points[-2:], (log_snr[k], denoise(x, k))]
        start, end = log_snr[k], log_snr[k - 1]
        places = [place - start for place, _ in points]
        coefficients = np.polyfit(places, np.stack([x_0 for _, x_0 in points]), len(points) - 1)
        powers = range(len(points) - 1, -1, -1)
        length = end - start
        weights = [quad(integrand, 0, length, args=(n, length))[0] for n in powers]
        integral = np.tensordot(weights, coefficients, 1)
        x = chain.noise[k - 1] / chain.noise[k] * x + chain.signal[k - 1] * integral
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
        predictor = np.cos(turn) * x + np.sin(turn) * first
        x = x + turn / 2 * (first + slope(predictor, k - 1))
    return denoise(x, 0)


@pytest.mark.parametrize(
    ("name", "reference"),
    [("dpmpp_2m", multistep), ("dpmpp_3m", parabola), ("heun", trapezoid)],
)
@pytest.mark.parametrize("steps", ["12", "logsnr12"])
def test_whole_chains_are_those_of_the_published_algorithm_in_float64(name, reference, steps):
    chain = strided(FULL, steps=steps)

    def x_0(x: np.ndarray, k: int) -> np.ndarray:
        signal, noise = chain.signal[k], chain.noise[k]
        gain = STD**2 * signal / (STD**2 * signal**2 + noise**2)
        return MEAN + gain * (x - signal * MEAN)

    got = run(SOLVERS[name], exact_denoiser(MEAN, STD), chain)
    np.testing.assert_allclose(got, reference(x_0, chain), atol=2e-5)


@pytest.mark.parametrize(("name", "reference"), [("dpmpp_2m", multistep), ("dpmpp_3m", parabola)])
def test_after_a_restart_only_later_steps_are_extrapolated_from(name, reference):
    """The last seven levels of a longer chain are solved as a chain of their own."""
    chain, count = strided(FULL, steps="logsnr12"), 7
    later = types.SimpleNamespace(
        signal=chain.signal[:count], noise=chain.noise[:count], num_timesteps=count
    )

    def x_0(x: np.ndarray, k: int) -> np.ndarray:
        signal, noise = chain.signal[k], chain.noise[k]
        gain = STD**2 * signal / (STD**2 * signal**2 + noise**2)
        return MEAN + gain * (x - signal * MEAN)

    solver = SOLVERS[name]
    table = samplers.take(solver.plan(chain), np.arange(12 - count, 12))
    options = {"table": table, "solver": solver, "keys": keys(len(X_T))}
    x_T = jnp.asarray(X_T, jnp.float32)[:, None]
    got = jax.jit(lambda x: samplers.run(exact_denoiser(MEAN, STD), x, **options).x)(x_T)
    np.testing.assert_allclose(got[:, 0], reference(x_0, later), atol=2e-5)


@pytest.mark.parametrize("name", SOLVERS)
def test_a_denoiser_that_knows_x_0_is_solved_exactly_in_any_number_of_steps(name):
    def knows(x_t, t):
        level = FULL.level(t, ndim=x_t.ndim)
        return Prediction(jnp.full_like(x_t, 0.7), (x_t - 0.7 * level.signal) / level.noise)

    for steps in ("2", "5"):
        np.testing.assert_allclose(run(SOLVERS[name], knows, FULL, steps=steps), 0.7, rtol=1e-6)


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_deterministic_solvers_draw_nothing_and_examples_do_not_mix(name):
    solver = DETERMINISTIC[name]
    whole = run(solver, mixture_denoiser(), FULL, steps="7")
    alone = run(solver, mixture_denoiser(), FULL, X_T[3:5], steps="7")
    np.testing.assert_allclose(alone, whole[3:5], atol=1e-6)


@pytest.mark.parametrize(
    ("name", "positions"),
    [
        ("ddim", [3, 2, 1, 0]),
        ("dpmpp_2m", [3, 2, 1, 0]),
        ("dpmpp_3m", [3, 2, 1, 0]),
        ("heun", [3, 2, 2, 1, 1, 0, 0]),
    ],
)
def test_every_evaluation_of_the_network_is_counted_and_seen(name, positions):
    chain = strided(FULL, steps="4")
    network_steps = []

    def denoise(x_t, t):
        jax.debug.callback(lambda t: network_steps.append(int(t[0])), t, ordered=True)
        return mixture_denoiser()(x_t, t)

    run(SOLVERS[name], denoise, chain)
    jax.effects_barrier()
    assert network_steps == chain.timesteps[positions].tolist()
    assert evaluations(SOLVERS[name], schedule=chain) == len(network_steps)


@pytest.mark.parametrize("name", SOLVERS)
def test_the_network_is_traced_once(name):
    traces = []

    def denoise(x_t, t):
        traces.append(x_t.shape)
        return mixture_denoiser()(x_t, t)

    run(SOLVERS[name], denoise, FULL, steps="4")
    assert len(traces) == 1


def test_on_two_steps_the_multistep_rule_has_nothing_to_extrapolate_from():
    chain = strided(FULL, steps="2")
    plain = run(Ddim(), mixture_denoiser(), chain)
    # the same numbers but for how XLA contracts multiplications and additions
    got = run(DpmSolver2M(), mixture_denoiser(), chain)
    np.testing.assert_allclose(got, plain, atol=1e-6)
    np.testing.assert_array_equal(DpmSolver2M().plan(chain).columns, 0.0)
    np.testing.assert_array_equal(DpmSolver3M().plan(chain).columns, 0.0)


def karras(denoise, *, count: int, noise: np.ndarray, s_churn: float, s_noise: float) -> np.ndarray:
    """EDM's algorithm 2 in the paper's variables, as float64: x in units of the data, t = sigma.

    `noise[i]` is the epsilon_i of step i; that of step 0 belongs to x_T.
    """
    low, high, rho = np.exp(FULL.log_sigma[0]), 80.0, 7
    i = np.arange(count)
    t = (high ** (1 / rho) + i / (count - 1) * (low ** (1 / rho) - high ** (1 / rho))) ** rho
    t = np.append(t, 0.0)
    gamma = min(s_churn / count, np.sqrt(2) - 1)
    x = X_T * np.sqrt(1 + (t[0] * (1 + gamma)) ** 2)  # x_T has norm 1 where it is noisiest
    for i in range(count):
        t_hat = t[i] + gamma * t[i]
        if i:
            x = x + np.sqrt(t_hat**2 - t[i] ** 2) * s_noise * noise[i]
        d = (x - denoise(x, t_hat)) / t_hat
        x_next = x + (t[i + 1] - t_hat) * d
        if t[i + 1] != 0:
            d_next = (x_next - denoise(x_next, t[i + 1])) / t[i + 1]
            x_next = x + (t[i + 1] - t_hat) * (d + d_next) / 2
        x = x_next
    return x


@pytest.mark.parametrize(("s_churn", "s_noise"), [(0.0, 1.0), (4.0, 1.003), (40.0, 1.0)])
def test_edm_is_algorithm_2_of_its_paper(s_churn, s_noise):
    count = 9
    solver = Edm(s_churn=s_churn, s_noise=s_noise)
    table = solver.plan(FULL, steps=str(count))
    noise = np.random.default_rng(0).normal(size=(count, len(X_T)))
    rows = np.zeros((len(table.t), len(X_T), 1))
    second = np.flatnonzero(~table.begins)  # the noise of step i is added at the end of step i - 1
    rows[second, :, 0] = noise[1:]
    x_T = jnp.asarray(X_T, jnp.float32)[:, None]

    def solve(x, noise):
        options = {"table": table, "solver": solver, "keys": keys(len(X_T))}
        return samplers.run(exact_denoiser(MEAN, STD), x, noise=noise, **options).x

    x_0 = jax.jit(solve)(x_T, jnp.asarray(rows, jnp.float32))[:, 0]

    def denoise(x: np.ndarray, sigma: float) -> np.ndarray:
        return MEAN + STD**2 / (STD**2 + sigma**2) * (x - MEAN)

    options = {"noise": noise, "s_churn": s_churn, "s_noise": s_noise}
    np.testing.assert_allclose(x_0, karras(denoise, count=count, **options), atol=3e-5)


def test_edm_adds_noise_within_its_bounds_only():
    solver = Edm(s_churn=4.0, s_min=0.05, s_max=50.0)
    table = solver.plan(FULL, steps="9")
    second = ~table.begins
    sigma = table.noise_t[second] / table.signal_t[second]  # where a step ends and the next begins
    inside = (sigma >= 0.05) & (sigma <= 50.0)
    assert 0 < inside.sum() < len(sigma)
    np.testing.assert_array_equal(table.columns.churn[:-1][second[:-1]] > 0, inside)


def test_edm_levels_stay_within_the_chain():
    table = Edm(sigma_min=1e-6, sigma_max=1e9, s_churn=1e3).plan(FULL, steps="20")
    sigma = table.noise_t / table.signal_t
    assert sigma.max() <= np.exp(FULL.log_sigma[-1]) * (1 + 1e-9)
    assert sigma.min() >= np.exp(FULL.log_sigma[0]) * (1 - 1e-9)
    assert (table.t.min(), table.t.max()) == (pytest.approx(0.0, abs=1e-9), 999.0)
    shorter = Edm().plan(FULL, steps="22@140")  # its last level is that of index 140
    assert shorter.t[-1] == pytest.approx(140.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"s_churn": -1.0}, "s_churn is -1.0; it must lie in"),
        ({"s_noise": 3.0}, "s_noise is 3.0; it must lie in"),
        ({"s_min": 2.0, "s_max": 1.0}, "s_min is 2.0; it must lie in"),
        ({"sigma_min": 0.0}, "sigma_min is 0.0; it must be greater than 0"),
        ({"rho": 0.0}, "rho is 0.0; it must be greater than 0"),
        ({"sigma_max": 0.001}, "sigma_max is 0.001, but sigma_min is 0.002"),
    ],
)
def test_impossible_options_of_edm_are_rejected(options, message):
    with pytest.raises(UserError, match=message):
        Edm(**options)


def test_edm_levels_outside_the_chain_are_rejected():
    with pytest.raises(UserError, match="steps from sigma 1e-05 to .* levels within the chain"):
        Edm(sigma_min=1e-6, sigma_max=1e-5).plan(FULL, steps="4")


def test_a_segment_restarted_by_others_is_extrapolated_from_nothing():
    solver, x = DpmSolver2M(), jnp.ones((1, 3))
    at = samplers.take(samplers.on_device(solver.plan(FULL, steps="10")), 5)
    pred = mixture_denoiser()(x, jnp.asarray([500]))
    fresh, memory = solver.advance(x, solver.start(x), pred=pred, at=at, noise=x)
    plain, _ = Ddim().advance(x, (), pred=pred, at=at, noise=x)
    np.testing.assert_array_equal(fresh, plain)
    again, _ = solver.advance(x, memory._replace(x_0=memory.x_0 + 1.0), pred=pred, at=at, noise=x)
    assert np.abs(again - plain).min() > 0
