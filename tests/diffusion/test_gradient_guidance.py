"""Guidance by gradients where every probability is known: Gaussians and a mixture of two."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.diffusion.gaussians import FULL, MEANS, STDS, WEIGHTS, exact_denoiser, mixture_denoiser
from unclip_jax.core import rng
from unclip_jax.core.checks import UserError
from unclip_jax.diffusion import samplers
from unclip_jax.diffusion.gradient_guidance import ShiftedMean, gradient_of, shifted
from unclip_jax.diffusion.guidance import classifier_free
from unclip_jax.diffusion.samplers import Ancestral, Ddim

T = jnp.array([5, 300, 700])
X_T = jax.random.normal(jax.random.key(0), (3, 4))


def component_log_share(which):
    """log p(component | x_t) of the mixture, summed over independent elements."""

    def log_share(x_t, t):
        level = FULL.level(t, ndim=x_t.ndim)
        scores = []
        for weight, mean, std in zip(WEIGHTS, MEANS, STDS, strict=True):
            variance = std**2 * level.signal**2 + level.noise**2
            gap = x_t - level.signal * mean
            scores.append(jnp.log(weight / jnp.sqrt(variance)) - gap**2 / (2 * variance))
        shares = jax.nn.log_softmax(jnp.stack(scores), axis=0)
        share = shares[which] if isinstance(which, int) else jnp.where(which, shares[1], shares[0])
        return jnp.sum(share, axis=tuple(range(1, x_t.ndim)))

    return log_share


def test_scale_1_of_a_gaussian_likelihood_is_the_exact_posterior():
    mean, std, observation, noise = 0.4, 0.7, -0.3, 0.5
    prior = exact_denoiser(mean, std)

    def log_likelihood(x_t, t):  # y | x_0 ~ N(x_0, noise^2), so y | x_t ~ N(E[x_0], Var + noise^2)
        level = FULL.level(t, ndim=x_t.ndim)
        variance = (std * level.noise) ** 2 / ((std * level.signal) ** 2 + level.noise**2)
        gap = observation - prior(x_t, t).x_0
        return -jnp.sum(gap**2 / (2 * (variance + noise**2)), axis=1)

    precision = 1 / std**2 + 1 / noise**2
    posterior = (mean / std**2 + observation / noise**2) / precision
    expected = exact_denoiser(posterior, precision**-0.5)(X_T, T)
    guided = shifted(prior, gradient_of(log_likelihood), schedule=FULL, scale=1.0)(X_T, T)
    np.testing.assert_allclose(guided.x_0, expected.x_0, rtol=2e-4, atol=2e-4)
    np.testing.assert_allclose(guided.eps, expected.eps, rtol=2e-4, atol=2e-4)
    twice = shifted(prior, gradient_of(log_likelihood), schedule=FULL, scale=2.0)(X_T, T)
    doubled = 1 / std**2 + 2 / noise**2  # the posterior of two such observations
    other = exact_denoiser((mean / std**2 + 2 * observation / noise**2) / doubled, doubled**-0.5)
    assert float(jnp.abs(twice.x_0 - other(X_T, T).x_0).max()) > 0.05  # is not what scale 2 gives


@pytest.mark.parametrize("which", [0, 1])
def test_scale_1_turns_a_mixture_into_its_component(which):
    gradient = gradient_of(component_log_share(which))
    guided = shifted(mixture_denoiser(), gradient, schedule=FULL, scale=1.0)(X_T, T)
    expected = exact_denoiser(MEANS[which], STDS[which])(X_T, T)
    np.testing.assert_allclose(guided.x_0, expected.x_0, atol=2e-3)


def test_classifier_free_guidance_is_that_of_the_implied_classifier():
    gradient = gradient_of(component_log_share(1))
    uncond, cond = mixture_denoiser(), exact_denoiser(MEANS[1], STDS[1])
    for scale in (0.0, 0.5, 3.0):
        guided = shifted(uncond, gradient, schedule=FULL, scale=scale)(X_T, T)
        free = classifier_free(cond(X_T, T), uncond(X_T, T), scale=scale)
        np.testing.assert_allclose(guided.eps, free.eps, rtol=1e-3, atol=2e-3)


def test_rows_have_their_own_condition_and_scale():
    labels = jnp.array([True, False, True])[:, None]
    scale = jnp.array([1.0, 2.0, 0.0])
    run = lambda which, s: shifted(  # noqa: E731
        mixture_denoiser(), gradient_of(component_log_share(which)), schedule=FULL, scale=s
    )(X_T, T)
    both = run(labels, scale)
    for row, (which, s) in enumerate(((1, 1.0), (0, 2.0), (0, 0.0))):
        np.testing.assert_allclose(both.eps[row], run(which, s).eps[row], atol=1e-5)
    np.testing.assert_array_equal(both.eps[2], mixture_denoiser()(X_T, T).eps[2])


@pytest.mark.parametrize("variance", ["small", "large"])
def test_algorithm_1_moves_the_mean_by_the_variance_of_the_step(variance):
    rule, gradient = Ancestral(variance), gradient_of(component_log_share(0))
    table = rule.plan(FULL)
    row = jax.tree.map(lambda x: jnp.asarray(x[400]), table)
    denoise, t = mixture_denoiser(), jnp.full(3, row.t)
    still = jnp.zeros_like(X_T)

    def step(solver, denoise):
        return solver.advance(X_T, (), pred=denoise(X_T, t), at=row, noise=still)[0]

    plain = step(rule, denoise)
    g = gradient(X_T, t)
    by_mean = step(ShiftedMean(rule, gradient, 2.0), denoise) - plain
    index = FULL.num_timesteps - 401
    beta = float(FULL.beta[index])
    sigma2 = beta if variance == "large" else float(np.exp(FULL.log_beta_tilde_clipped[index]))
    np.testing.assert_allclose(by_mean, 2.0 * sigma2 * g, rtol=1e-3, atol=1e-6)
    by_eps = step(rule, shifted(denoise, gradient, schedule=FULL, scale=2.0)) - plain
    np.testing.assert_allclose(by_eps, 2.0 * beta / np.sqrt(1 - beta) * g, rtol=2e-3, atol=1e-6)
    np.testing.assert_array_equal(step(ShiftedMean(rule, gradient, 0.0), denoise), plain)


def test_guided_chains_reach_the_component_that_is_asked_for():
    gradient = gradient_of(component_log_share(0))
    keys = rng.per_example(jax.random.key(1), jnp.arange(400))
    start = jax.random.normal(jax.random.key(2), (400, 1))

    def end(solver, denoise):
        table = solver.plan(FULL, steps="100")
        return samplers.run(denoise, start, table=table, solver=solver, keys=keys).x

    denoise = mixture_denoiser()
    one = jax.jit(lambda: end(ShiftedMean(Ancestral(), gradient, 1.0), denoise))()
    two = jax.jit(lambda: end(Ddim(), shifted(denoise, gradient, schedule=FULL, scale=1.0)))()
    for x in (one, two):
        assert float(x.mean()) == pytest.approx(MEANS[0], abs=0.03)
        assert float(x.std()) == pytest.approx(STDS[0], abs=0.03)


def test_the_mean_of_a_rule_without_variance_is_rejected():
    with pytest.raises(UserError, match="needs ancestral sampling, not Ddim; guide eps instead"):
        ShiftedMean(Ddim(), gradient_of(component_log_share(0)), 1.0)
