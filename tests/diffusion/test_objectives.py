import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unclip_jax.core.checks import UserError
from unclip_jax.diffusion import objectives, process
from unclip_jax.diffusion.objectives import Weighting
from unclip_jax.diffusion.process import Target
from unclip_jax.diffusion.schedule import make_schedule

COSINE = make_schedule("cosine", num_timesteps=1000)
T = jnp.array([0, 1, 500, 999])
SHAPE = (4, 3, 3, 2)
GREYS = (jnp.arange(256) - 127.5) / 127.5  # the 8-bit values in [-1, 1]
X_0 = GREYS[jax.random.randint(jax.random.key(0), SHAPE, 0, 256)]
EPS = jax.random.normal(jax.random.key(1), SHAPE)
OUT = jax.random.normal(jax.random.key(2), SHAPE)
FRAC = jax.random.uniform(jax.random.key(3), SHAPE, minval=-1.0)
LEVEL = COSINE.level(T, ndim=4)


def hybrid(out: jax.Array, var_frac: jax.Array, **changes) -> objectives.HybridLoss:
    options = {"target": Target.EPS, "x_0": X_0, "eps": EPS, "t": T, "schedule": COSINE}
    return objectives.hybrid_loss(out, var_frac, **(options | changes))


@functools.partial(jax.jit, static_argnums=0)
def gradients(part: str, t: jax.Array) -> tuple[jax.Array, jax.Array]:
    """With respect to the mean half and the variance half."""
    return jax.grad(lambda *a: getattr(hybrid(*a, t=t), part).sum(), (0, 1))(OUT, FRAC)


log_likelihood = jax.jit(objectives.discretised_log_likelihood)
bound = jax.jit(functools.partial(objectives.variational_bound_term, schedule=COSINE))


@pytest.mark.parametrize("target", list(Target))
def test_uniform_loss_is_the_mean_squared_error_of_the_target(target):
    exact = process.target_value(target, x_0=X_0, eps=EPS, alpha_bar=LEVEL)
    options = {"target": target, "x_0": X_0, "eps": EPS, "alpha_bar": LEVEL}
    np.testing.assert_array_equal(objectives.prediction_loss(exact, **options), 0.0)
    offset = jnp.arange(4.0).reshape(-1, 1, 1, 1)
    got = objectives.prediction_loss(exact + offset, **options)
    np.testing.assert_allclose(got, jnp.arange(4.0) ** 2, rtol=1e-5)


@pytest.mark.parametrize("target", list(Target))
def test_snr_weights_count_the_same_x_0_error_whatever_the_target(target):
    t = jnp.array([10, 200, 500, 800])
    level = COSINE.level(t, ndim=4)
    x_t = process.q_sample(X_0, EPS, alpha_bar=level)
    guess = X_0 + 0.1 * OUT
    pred = process.from_x_0(guess, x_t, alpha_bar=level)
    out = process.target_value(target, x_0=guess, eps=pred.eps, alpha_bar=level)
    got = objectives.prediction_loss(
        out, target=target, x_0=X_0, eps=EPS, alpha_bar=level,
        weighting=Weighting("snr_clip", snr_min=0.5, snr_max=5.0),
    )  # fmt: skip
    snr = COSINE.alpha_bar[t] / (1 - COSINE.alpha_bar[t])
    assert snr.max() > 5 and snr.min() < 0.5  # both ends of the clip are reached
    expected = np.clip(snr, 0.5, 5.0) * np.mean((0.1 * np.float64(OUT)) ** 2, axis=(1, 2, 3))
    np.testing.assert_allclose(got, expected, rtol=2e-4)


def test_an_unclipped_snr_weight_of_x_0_is_the_plain_eps_loss():
    t = jnp.array([100, 200, 500, 800])
    options = {"x_0": X_0, "eps": EPS, "alpha_bar": COSINE.level(t, ndim=4), "target": Target.EPS}
    wide = Weighting("snr_clip", snr_min=0.0, snr_max=1e9)
    got = objectives.prediction_loss(OUT, **options, weighting=wide)
    np.testing.assert_allclose(got, objectives.prediction_loss(OUT, **options), rtol=1e-5)


def test_only_the_variance_half_feels_the_variational_term():
    grad_out, grad_frac = gradients("variational", T)
    np.testing.assert_array_equal(grad_out, 0.0)
    assert np.all(np.any(grad_frac.reshape(4, -1) != 0, axis=1))


def test_only_the_mean_half_feels_the_prediction_loss():
    grad_out, grad_frac = gradients("prediction", T)
    np.testing.assert_array_equal(grad_frac, 0.0)
    np.testing.assert_allclose(grad_out, 2 * (OUT - EPS) / OUT[0].size, atol=1e-6)


@pytest.mark.parametrize("num_timesteps", [1000, 250])
def test_the_variational_term_weighs_a_thousandth_of_the_bound(num_timesteps):
    schedule = make_schedule("cosine", num_timesteps=num_timesteps)
    t = jnp.array([0, 1, 100, 249])
    loss = jax.jit(functools.partial(hybrid, schedule=schedule))(OUT, FRAC, t=t)
    weighted = loss.prediction + 0.001 * num_timesteps * loss.variational
    np.testing.assert_allclose(loss.total, weighted, rtol=1e-6)


def test_a_perfect_model_diverges_from_nothing():
    x_t = process.q_sample(X_0, EPS, alpha_bar=LEVEL)
    pred = process.from_x_0(X_0, x_t, alpha_bar=LEVEL, var_frac=jnp.full(SHAPE, -1.0))
    bits = bound(pred, x_0=X_0, t=T)
    np.testing.assert_allclose(bits[1:], 0.0, atol=1e-7)


def test_the_divergence_is_that_of_two_gaussians_by_quadrature():
    # one dimension; the integral of p log(p / q) with nothing assumed but the two densities
    t, x_0, guess, frac, x_t = 400, 0.4, 0.1, 0.3, -0.7
    pred = process.Prediction(jnp.full((1, 1), guess), jnp.zeros((1, 1)), jnp.full((1, 1), frac))
    steps = jnp.array([t])
    got = bound(pred, x_0=jnp.full((1, 1), x_0), t=steps)
    means = [COSINE.posterior_x_0[t] * x + COSINE.posterior_x_t[t] * x_t for x in (x_0, guess)]
    share = (frac + 1) / 2
    variances = [
        COSINE.beta_tilde[t],
        COSINE.beta[t] ** share * COSINE.beta_tilde[t] ** (1 - share),
    ]
    x = np.linspace(means[0] - 0.6, means[0] + 0.6, 200_001)
    log_p, log_q = (
        -0.5 * (x - m) ** 2 / v - 0.5 * np.log(2 * np.pi * v)
        for m, v in zip(means, variances, strict=True)
    )
    expected = np.sum(np.exp(log_p) * (log_p - log_q)) * (x[1] - x[0]) / math.log(2)
    assert float(got[0]) == pytest.approx(expected, rel=1e-4)


def test_at_step_0_it_is_the_code_length_of_8_bit_values():
    pred = process.Prediction(X_0 + 0.01, EPS, FRAC)
    t = jnp.zeros(4, jnp.int32)
    got = bound(pred, x_0=X_0, t=t)
    share = (np.float64(FRAC) + 1) / 2
    log_var = share * COSINE.log_beta[0] + (1 - share) * COSINE.log_beta_tilde_clipped[0]
    erf = np.vectorize(math.erf)
    std = np.exp(0.5 * log_var) * math.sqrt(2)
    gap, x = -0.01, np.float64(X_0)
    upper = np.where(x > 0.999, 1.0, erf((gap + 1 / 255) / std))
    lower = np.where(x < -0.999, -1.0, erf((gap - 1 / 255) / std))
    mass = np.maximum(0.5 * (upper - lower), 1e-12)
    np.testing.assert_allclose(got, np.mean(-np.log2(mass), axis=(1, 2, 3)), rtol=2e-4)


@pytest.mark.parametrize("std", [0.005, 0.1, 2.0])
@pytest.mark.parametrize("mean", [-1.0, -0.3, 0.9])
def test_the_likelihood_of_the_256_values_sums_to_one(mean, std):
    log_mass = log_likelihood(
        GREYS[None], mean=jnp.full((1, 256), mean), log_std=jnp.full((1, 256), math.log(std))
    )
    assert float(jnp.sum(jnp.exp(log_mass))) == pytest.approx(1.0, abs=1e-5)


def test_gradients_stay_finite_where_the_likelihood_vanishes():
    def value(mean, log_std):
        x = jnp.ones((1, 1))
        return objectives.discretised_log_likelihood(x, mean=mean, log_std=log_std).sum()

    far = (jnp.full((1, 1), -40.0), jnp.full((1, 1), -5.0))
    assert float(value(*far)) == pytest.approx(math.log(1e-12), rel=1e-6)
    grads = jax.jit(jax.grad(value, (0, 1)))(*far)
    assert np.all(np.isfinite(np.array(grads)))


def test_gradients_of_the_hybrid_loss_are_finite_at_every_step():
    t = jnp.array([0, 1, 998, 999])
    grads = gradients("total", t)
    assert all(np.all(np.isfinite(grad)) for grad in grads)


def test_low_precision_outputs_are_compared_in_float32():
    got = objectives.prediction_loss(
        OUT.astype(jnp.bfloat16), target=Target.EPS, x_0=X_0, eps=EPS, alpha_bar=LEVEL
    )
    assert got.dtype == jnp.float32


def test_examples_do_not_mix():
    whole = jax.jit(hybrid)(OUT, FRAC)
    alone = jax.jit(hybrid)(OUT[2:3], FRAC[2:3], x_0=X_0[2:3], eps=EPS[2:3], t=T[2:3])
    np.testing.assert_allclose(alone.total[0], whole.total[2], rtol=1e-6)


def test_an_unknown_weighting_gets_a_suggestion():
    with pytest.raises(UserError, match="unknown loss weighting 'snr'. Known: snr_clip, uniform"):
        Weighting("snr")


@pytest.mark.parametrize(("low", "high"), [(2.0, 1.0), (-1.0, 1.0)])
def test_weights_out_of_order_are_rejected(low, high):
    with pytest.raises(UserError, match=f"snr_min {low} and snr_max {high}; it needs 0 <= snr_min"):
        dataclasses.replace(Weighting(), snr_min=low, snr_max=high)
