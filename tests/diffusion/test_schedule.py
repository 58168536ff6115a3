import jax.numpy as jnp
import numpy as np
import pytest

from unclip_jax.core.checks import UserError
from unclip_jax.diffusion.schedule import Schedule, at, make_schedule

COSINE = make_schedule("cosine", num_timesteps=1000)
LINEAR = make_schedule("linear", num_timesteps=1000)
BOTH = pytest.mark.parametrize("schedule", [COSINE, LINEAR], ids=["cosine", "linear"])

INDICES = [0, 249, 499, 749, 998, 999]


def g(u: float) -> float:
    """Improved DDPM equation 17, before division by its value at 0."""
    return np.cos((u + 0.008) / 1.008 * np.pi / 2) ** 2


def test_cosine_alpha_bar_is_the_closed_form():
    # up to the last step, where beta is capped
    u = (np.arange(999) + 1) / 1000
    np.testing.assert_allclose(COSINE.alpha_bar[:999], g(u) / g(0.0), rtol=1e-9)
    np.testing.assert_allclose(COSINE.alpha_bar[999], COSINE.alpha_bar[998] * 1e-3, rtol=1e-6)


@pytest.mark.parametrize(
    ("table", "expected", "digits"),
    [
        # printed with seven and five significant digits
        (
            COSINE.alpha_bar,
            [9.999587e-01, 8.470122e-01, 4.938436e-01, 1.442721e-01, 2.428767e-06, 2.428767e-09],
            7,
        ),
        (
            LINEAR.alpha_bar,
            [9.999000e-01, 5.240854e-01, 7.858724e-02, 3.350550e-03, 4.118194e-05, 4.035830e-05],
            7,
        ),
        (COSINE.beta, [4.1284e-05, 1.3215e-03, 3.1459e-03, 7.5457e-03, 7.5000e-01, 9.9900e-01], 5),
        (LINEAR.beta, [1.0000e-04, 5.0601e-03, 1.0040e-02, 1.5020e-02, 1.9980e-02, 2.0000e-02], 5),
    ],
    ids=["cosine alpha_bar", "linear alpha_bar", "cosine beta", "linear beta"],
)
def test_reference_values(table, expected, digits):
    got = [float(f"{value:.{digits - 1}e}") for value in table[INDICES]]
    assert got == pytest.approx(expected, rel=1e-12)


def test_only_the_last_cosine_step_is_capped():
    assert COSINE.beta[-1] == 0.999
    assert np.all(COSINE.beta[:-1] < 0.999)


def test_linear_chains_of_other_lengths_end_equally_noisy():
    half = make_schedule("linear", num_timesteps=500)
    assert half.beta[0] == pytest.approx(2e-4)
    assert half.beta[-1] == pytest.approx(0.04)


@BOTH
def test_tables_are_float64_and_agree_with_each_other(schedule):
    tables = "beta alpha_bar alpha_bar_prev beta_tilde log_beta log_beta_tilde_clipped signal noise"
    assert all(getattr(schedule, name).dtype == np.float64 for name in tables.split())
    np.testing.assert_allclose(schedule.signal**2 + schedule.noise**2, 1.0)
    np.testing.assert_allclose(1.0 - schedule.alpha_bar / schedule.alpha_bar_prev, schedule.beta)
    np.testing.assert_array_equal(schedule.timesteps, np.arange(1000))


@BOTH
def test_tables_fall_and_rise_as_they_must(schedule):
    assert np.all(np.diff(schedule.alpha_bar) < 0)
    assert np.all(np.diff(schedule.beta) > 0)
    assert np.all(schedule.beta_tilde < schedule.beta)


@BOTH
def test_the_chain_itself_is_what_alpha_bar_says(schedule):
    # variance and gain of x_t, one noising step at a time
    gain, variance = 1.0, 0.0
    for beta, signal, noise in zip(schedule.beta, schedule.signal, schedule.noise, strict=True):
        gain, variance = gain * np.sqrt(1 - beta), variance * (1 - beta) + beta
        assert gain == pytest.approx(signal, rel=1e-9)
        assert variance == pytest.approx(noise**2, rel=1e-9)


@BOTH
def test_posterior_is_bayes_rule_for_two_gaussians(schedule):
    # precision and mean of x_s given x_t ~ N(sqrt(1 - beta) x_s, beta) and the prior from x_0
    x_0, x_t = 0.7, -1.3
    s, beta = schedule.alpha_bar_prev[1:], schedule.beta[1:]
    precision = (1 - beta) / beta + 1 / (1 - s)
    mean = (np.sqrt(1 - beta) * x_t / beta + np.sqrt(s) * x_0 / (1 - s)) / precision
    np.testing.assert_allclose(schedule.beta_tilde[1:], 1 / precision, rtol=1e-9)
    got = schedule.posterior_x_0[1:] * x_0 + schedule.posterior_x_t[1:] * x_t
    np.testing.assert_allclose(got, mean, rtol=1e-9)


def test_posterior_of_a_two_step_chain_by_brute_force():
    # q(x_1 | x_2, x_0) on a grid, nothing assumed but the two noising steps
    schedule = Schedule(np.array([0.3, 0.6]), np.arange(2, dtype=np.int32))
    x_0, x_2 = 0.8, -0.5
    x_1 = np.linspace(-8, 8, 20001)
    first = np.exp(-0.5 * (x_1 - np.sqrt(0.7) * x_0) ** 2 / 0.3)
    second = np.exp(-0.5 * (x_2 - np.sqrt(0.4) * x_1) ** 2 / 0.6)
    mass = first * second / np.sum(first * second)
    mean = np.sum(mass * x_1)
    variance = np.sum(mass * (x_1 - mean) ** 2)
    assert schedule.beta_tilde[1] == pytest.approx(variance, rel=1e-9)
    got = schedule.posterior_x_0[1] * x_0 + schedule.posterior_x_t[1] * x_2
    assert got == pytest.approx(mean, rel=1e-9)


@BOTH
def test_the_last_step_to_the_data_is_certain(schedule):
    assert schedule.alpha_bar_prev[0] == 1.0
    assert schedule.beta_tilde[0] == 0.0
    assert schedule.posterior_x_0[0] == pytest.approx(1.0)
    assert schedule.posterior_x_t[0] == 0.0
    assert schedule.log_beta_tilde_clipped[0] == np.log(schedule.beta_tilde[1])
    np.testing.assert_allclose(np.exp(schedule.log_beta_tilde_clipped[1:]), schedule.beta_tilde[1:])


def test_a_chain_of_one_step_has_finite_tables():
    one = Schedule(np.array([0.5]), np.zeros(1, np.int32))
    assert one.log_beta_tilde_clipped == pytest.approx(np.log(0.5))


def test_at_gathers_in_float32_and_broadcasts():
    got = at(LINEAR.alpha_bar, jnp.array([0, 999]), ndim=4)
    assert got.shape == (2, 1, 1, 1)
    assert got.dtype == jnp.float32
    np.testing.assert_array_equal(got.ravel(), LINEAR.alpha_bar[[0, 999]].astype(np.float32))


def test_level_keeps_the_digits_that_alpha_bar_loses():
    level = COSINE.level(jnp.array([0]), ndim=1)
    assert float(level.noise[0]) == pytest.approx(COSINE.noise[0], rel=1e-7)
    rounded = np.sqrt(1 - np.float32(COSINE.alpha_bar[0]))
    assert rounded != pytest.approx(COSINE.noise[0], rel=1e-5)


def test_an_unknown_schedule_gets_a_suggestion():
    with pytest.raises(UserError, match="unknown noise schedule 'cosin'. Did you mean 'cosine'"):
        make_schedule("cosin", num_timesteps=10)


def test_no_steps_are_rejected():
    with pytest.raises(UserError, match="num_timesteps is 0; it must be greater than 0"):
        make_schedule("cosine", num_timesteps=0)


def test_a_linear_chain_too_short_for_its_betas_is_rejected():
    with pytest.raises(UserError, match=r"betas lie in \[0.01, 2\]; each must be .* less than 1"):
        make_schedule("linear", num_timesteps=10)


@pytest.mark.parametrize(("betas", "steps"), [(2, 3), (0, 0)])
def test_tables_of_different_lengths_are_rejected(betas, steps):
    with pytest.raises(UserError, match=f"{betas} betas and {steps} timesteps; give one timestep"):
        Schedule(np.full(betas, 0.1), np.arange(steps, dtype=np.int32))


@pytest.mark.parametrize("name", ["cosine", "linear"])
def test_fractional_levels_lie_between_those_of_the_chain_and_are_found_again(name):
    schedule = make_schedule(name, num_timesteps=1000)
    sigma = np.exp(np.linspace(schedule.log_sigma[0], schedule.log_sigma[-1], 50))
    t = schedule.timesteps_at(sigma)
    assert (np.diff(t) > 0).all() and t[0] == 0.0 and t[-1] == 999.0
    level = schedule.level(jnp.asarray(t, jnp.float32), ndim=1)
    np.testing.assert_allclose(level.noise / level.signal, sigma, rtol=2e-3)
    np.testing.assert_allclose(level.signal**2 + level.noise**2, 1.0, atol=1e-6)


def test_whole_timesteps_as_fractions_have_the_levels_of_the_chain():
    schedule = make_schedule("cosine", num_timesteps=1000)
    t = jnp.arange(0, 1000, 37)
    exact, fractional = (schedule.level(x, ndim=3) for x in (t, t.astype(jnp.float32)))
    assert fractional.noise.shape == (28, 1, 1)
    np.testing.assert_allclose(fractional.noise, exact.noise, rtol=1e-5)
    np.testing.assert_allclose(fractional.signal, exact.signal, rtol=1e-4)


def test_timesteps_of_a_short_chain_are_interpolated_in_the_original_ones():
    schedule = make_schedule("cosine", num_timesteps=1000)
    short = schedule.keep(np.array([100, 500, 900]))
    sigma = np.exp((short.log_sigma[:-1] + short.log_sigma[1:]) / 2)
    np.testing.assert_allclose(short.timesteps_at(sigma), [300.0, 700.0])
