"""The analytic reverse variance: exact on Gaussians, the paper's theorem, bounds, rejections."""

import dataclasses

import jax
import numpy as np
import pytest

from tests.diffusion.gaussians import FULL, exact_denoiser
from unclip_jax.core.checks import UserError
from unclip_jax.diffusion import analytic
from unclip_jax.diffusion.analytic import ChainSignature, VarianceTable, reverse_variance
from unclip_jax.diffusion.respace import strided

STD = 0.5
ORIGIN = ChainSignature(schedule="cosine", num_timesteps=1000, target="x_0", data_variance=STD**2)
CHAINS = [strided(FULL, steps=steps) for steps in ("64", "7", "ddim25", "fast27", "logsnr20")]


def power_of_a_gaussian(alpha_bar: np.ndarray) -> np.ndarray:
    """E[eps^2] of the best denoiser of N(mean, STD^2)."""
    return (1 - alpha_bar) / (alpha_bar * STD**2 + 1 - alpha_bar)


def table(chain, **changes) -> VarianceTable:
    return VarianceTable(
        origin=dataclasses.replace(ORIGIN, **changes),
        timesteps=tuple(chain.timesteps.tolist()),
        eps_power=tuple(power_of_a_gaussian(chain.alpha_bar).tolist()),
        examples=1,
    )


@pytest.mark.parametrize("chain", CHAINS, ids=lambda chain: str(chain.num_timesteps))
def test_it_is_the_variance_of_x_s_given_x_t_when_data_are_gaussian(chain):
    got = table(chain).variances(chain, origin=ORIGIN)
    # conditioning of two jointly Gaussian variables: x_t = sqrt(ratio) x_s + noise
    marginal = chain.alpha_bar * STD**2 + 1 - chain.alpha_bar
    marginal_s, ratio = marginal[:-1], (chain.alpha_bar / chain.alpha_bar_prev)[1:]
    expected = marginal_s - ratio * marginal_s**2 / marginal[1:]
    np.testing.assert_allclose(got[1:], expected, rtol=1e-5)


@pytest.mark.parametrize("chain", CHAINS, ids=lambda chain: str(chain.num_timesteps))
def test_it_is_theorem_1_of_the_analytic_dpm_paper(chain):
    eps_power = np.random.default_rng(0).uniform(0.1, 1.0, chain.num_timesteps)
    got = reverse_variance(chain, eps_power, data_variance=np.inf)[1:]
    # in the paper's letters: lambda^2, alpha of the stride, and the score, which is -eps / noise
    score = (eps_power / (1 - chain.alpha_bar))[1:]
    beta_bar, beta_bar_s = 1 - chain.alpha_bar[1:], 1 - chain.alpha_bar_prev[1:]
    small, stride = chain.beta_tilde[1:], (chain.alpha_bar / chain.alpha_bar_prev)[1:]
    gap = np.sqrt(beta_bar / stride) - np.sqrt(beta_bar_s - small)
    np.testing.assert_allclose(got, small + gap**2 * (1 - beta_bar * score), rtol=1e-7)


@pytest.mark.parametrize("chain", CHAINS, ids=lambda chain: str(chain.num_timesteps))
def test_it_lies_between_lambda_squared_and_the_papers_upper_bound(chain):
    stride = chain.alpha_bar / chain.alpha_bar_prev
    gap = np.sqrt((1 - chain.alpha_bar) / stride)
    gap -= np.sqrt(1 - chain.alpha_bar_prev - chain.beta_tilde)
    for eps_power in (np.zeros, np.ones, lambda n: np.full(n, 5.0), lambda n: np.linspace(0, 1, n)):
        power = eps_power(chain.num_timesteps)
        got = reverse_variance(chain, power, data_variance=np.inf)[1:]
        assert np.all(got >= chain.beta_tilde[1:] * (1 - 1e-12))
        assert np.all(got <= (chain.beta_tilde + gap**2)[1:] * (1 + 1e-9))


def test_what_an_estimate_overshoots_is_bounded_by_the_variance_of_the_data():
    chain = CHAINS[0]
    noisy = power_of_a_gaussian(chain.alpha_bar) - 1e-3  # an error that 1 / alpha_bar multiplies
    got = reverse_variance(chain, noisy, data_variance=STD**2)
    most = np.exp(chain.log_beta_tilde_clipped) + chain.posterior_x_0**2 * STD**2
    assert np.all(got <= most * (1 + 1e-12)) and np.all(got > 0)


def test_the_power_of_eps_is_measured_on_data():
    count, timesteps = 20_000, np.array([0, 300, 700, 999])
    x_0 = 0.4 + STD * jax.random.normal(jax.random.key(1), (count, 2))
    got = analytic.eps_power(
        exact_denoiser(0.4, STD), x_0, schedule=FULL, timesteps=timesteps, key=jax.random.key(0)
    )
    expected = power_of_a_gaussian(FULL.alpha_bar[timesteps])
    np.testing.assert_allclose(got, expected, rtol=4 * np.sqrt(2 / (2 * count)))


@pytest.mark.parametrize(
    ("name", "value"),
    [("schedule", "linear"), ("num_timesteps", 500), ("target", "eps"), ("data_variance", 1.0)],
)
def test_a_table_of_another_model_is_rejected_by_the_field_that_differs(name, value):
    match = f"{name} is '?{value}'? in the table .* unclip_jax.analytic"
    with pytest.raises(UserError, match=match):
        table(CHAINS[0], **{name: value}).variances(CHAINS[0], origin=ORIGIN)


def test_a_table_for_other_strides_is_rejected():
    with pytest.raises(UserError, match="lacks 54 of the 64 timesteps, the first 16; make it"):
        table(strided(FULL, steps="10")).variances(strided(FULL, steps="64"), origin=ORIGIN)


def test_a_table_of_all_steps_fits_every_stride():
    whole = table(FULL)
    for chain in CHAINS:
        part = table(chain).variances(chain, origin=ORIGIN)
        np.testing.assert_array_equal(whole.variances(chain, origin=ORIGIN), part)


@pytest.mark.parametrize("eps_power", [(1.0,), (1.0, float("nan"))])
def test_a_damaged_table_is_rejected(eps_power):
    with pytest.raises(UserError, match=r"values for 2 timesteps, or one that is not finite"):
        VarianceTable(origin=ORIGIN, timesteps=(0, 999), eps_power=eps_power, examples=1)
