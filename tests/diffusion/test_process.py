import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unclip_jax.core.checks import UserError
from unclip_jax.diffusion import process
from unclip_jax.diffusion.process import Target
from unclip_jax.diffusion.schedule import make_schedule

COSINE = make_schedule("cosine", num_timesteps=1000)
T = jnp.array([0, 10, 500, 900])
X_0 = jax.random.uniform(jax.random.key(0), (4, 3, 3, 2), minval=-1.0)
EPS = jax.random.normal(jax.random.key(1), (4, 3, 3, 2))
LEVEL = COSINE.level(T, ndim=4)
X_T = process.q_sample(X_0, EPS, alpha_bar=LEVEL)


def test_q_sample_is_equation_4():
    for i, t in enumerate(T.tolist()):
        expected = COSINE.signal[t] * np.float64(X_0[i]) + COSINE.noise[t] * np.float64(EPS[i])
        np.testing.assert_allclose(X_T[i], expected, atol=1e-6)


def test_q_sample_has_the_variance_that_the_chain_builds_up():
    # unit-variance data keep their variance at every level
    draws = jax.random.normal(jax.random.key(2), (2, 4, 5000))
    x_t = process.q_sample(draws[0], draws[1], alpha_bar=COSINE.level(T, ndim=2))
    np.testing.assert_allclose(jnp.var(x_t, axis=1), 1.0, atol=5 * np.sqrt(2 / 5000))


@pytest.mark.parametrize(("source", "destination"), list(itertools.product(Target, Target)))
def test_every_conversion_round_trips(source, destination):
    out = process.target_value(source, x_0=X_0, eps=EPS, alpha_bar=LEVEL)
    pred = process.to_prediction(out, X_T, target=source, alpha_bar=LEVEL)
    again = process.target_value(destination, x_0=pred.x_0, eps=pred.eps, alpha_bar=LEVEL)
    expected = process.target_value(destination, x_0=X_0, eps=EPS, alpha_bar=LEVEL)
    # float32 of x_t, divided by the noise at t = 0 (0.0064) or the signal at t = 900 (0.16)
    np.testing.assert_allclose(again, expected, atol=5e-5)


@pytest.mark.parametrize("target", list(Target))
def test_a_prediction_is_consistent_with_x_t(target):
    out = jax.random.normal(jax.random.key(3), X_0.shape)
    pred = process.to_prediction(out, X_T, target=target, alpha_bar=LEVEL)
    again = process.q_sample(pred.x_0, pred.eps, alpha_bar=LEVEL)
    np.testing.assert_allclose(again, X_T, atol=1e-5)


def test_v_is_the_rotation_of_x_0_and_eps():
    v = process.target_value(Target.V, x_0=X_0, eps=EPS, alpha_bar=LEVEL)
    before, after = X_0**2 + EPS**2, X_T**2 + v**2
    np.testing.assert_allclose(after, before, rtol=1e-5)


@pytest.mark.parametrize("target", list(Target))
def test_alpha_bar_as_an_array_or_as_a_level(target):
    alpha_bar = jnp.full((4, 1, 1, 1), 0.3)
    level = process.Level(jnp.sqrt(alpha_bar), jnp.sqrt(1 - alpha_bar))
    by_array = process.to_prediction(EPS, X_0, target=target, alpha_bar=alpha_bar)
    by_level = process.to_prediction(EPS, X_0, target=target, alpha_bar=level)
    np.testing.assert_allclose(by_array.x_0, by_level.x_0, rtol=1e-6)
    np.testing.assert_allclose(by_array.eps, by_level.eps, rtol=1e-6)


def test_low_precision_outputs_become_float32():
    out = EPS.astype(jnp.bfloat16)
    pred = process.to_prediction(
        out, X_T.astype(jnp.bfloat16), target=Target.EPS, alpha_bar=LEVEL, var_frac=out
    )
    assert {leaf.dtype for leaf in jax.tree.leaves(pred)} == {jnp.dtype("float32")}


def test_with_x_0_keeps_x_t_and_the_variance():
    pred = process.to_prediction(EPS, X_T, target=Target.EPS, alpha_bar=LEVEL, var_frac=X_0)
    clipped = process.static_threshold(pred.x_0, limit=0.5)
    prediction = process.with_x_0(pred, clipped, X_T, alpha_bar=LEVEL)
    np.testing.assert_array_equal(prediction.x_0, clipped)
    np.testing.assert_array_equal(prediction.var_frac, X_0)
    again = process.q_sample(prediction.x_0, prediction.eps, alpha_bar=LEVEL)
    np.testing.assert_allclose(again, X_T, atol=1e-6)


def test_posterior_mean_in_terms_of_eps():
    # DDPM equation 11 is the same mean written with the noise
    pred = process.from_eps(EPS, X_T, alpha_bar=LEVEL)
    weight_0, weight_t = (
        table[T].reshape(-1, 1, 1, 1) for table in (COSINE.posterior_x_0, COSINE.posterior_x_t)
    )
    got = weight_0 * np.float64(pred.x_0) + weight_t * np.float64(X_T)
    beta = COSINE.beta[T].reshape(-1, 1, 1, 1)
    noise = COSINE.noise[T].reshape(-1, 1, 1, 1)
    expected = (np.float64(X_T) - beta / noise * np.float64(EPS)) / np.sqrt(1 - beta)
    np.testing.assert_allclose(got, expected, atol=1e-5)


@pytest.mark.parametrize(("var_frac", "name"), [(1.0, "beta"), (-1.0, "beta_tilde")])
def test_the_ends_of_the_variance_range_are_exact(var_frac, name):
    t = T[1:]  # where beta_tilde is not clipped
    log_beta = jnp.float32(COSINE.log_beta[t]).reshape(-1, 1)
    log_beta_tilde = jnp.float32(COSINE.log_beta_tilde_clipped[t]).reshape(-1, 1)
    got = process.log_variance(
        jnp.full((3, 2), var_frac), log_beta=log_beta, log_beta_tilde=log_beta_tilde
    )
    exact = {"beta": log_beta, "beta_tilde": log_beta_tilde}[name]
    np.testing.assert_array_equal(got, jnp.broadcast_to(exact, got.shape))
    expected = getattr(COSINE, name)[t].reshape(-1, 1)
    np.testing.assert_allclose(jnp.exp(got), np.broadcast_to(expected, got.shape), rtol=2e-6)


def test_the_middle_of_the_variance_range_is_the_geometric_mean():
    got = process.log_variance(
        jnp.zeros((1, 1)), log_beta=jnp.log(4.0), log_beta_tilde=jnp.log(1.0)
    )
    assert float(jnp.exp(got[0, 0])) == pytest.approx(2.0)


def test_the_variance_range_is_not_squashed():
    got = process.log_variance(
        jnp.full((1, 1), 3.0), log_beta=jnp.log(4.0), log_beta_tilde=jnp.log(1.0)
    )
    assert float(jnp.exp(got[0, 0])) == pytest.approx(16.0)


def test_static_threshold_clips():
    x = jnp.array([[-3.0, -0.5, 0.5, 2.0]])
    np.testing.assert_array_equal(process.static_threshold(x), [[-1.0, -0.5, 0.5, 1.0]])
    np.testing.assert_array_equal(process.static_threshold(x, limit=2.5)[0, 0], -2.5)


def test_dynamic_threshold_of_what_is_in_range_changes_nothing():
    np.testing.assert_array_equal(process.dynamic_threshold(X_0, percentile=100.0), X_0)
    # a percentile below 1 still clips the few values beyond
    x = X_0.at[0, 0, 0, 0].set(7.0)
    np.testing.assert_array_equal(process.dynamic_threshold(x, percentile=50.0)[0, 0, 0, 0], 1.0)


def test_dynamic_threshold_divides_by_the_percentile_of_each_image():
    x = jnp.stack([jnp.linspace(-4.0, 4.0, 101), jnp.linspace(-0.5, 0.5, 101)])
    got = process.dynamic_threshold(x, percentile=50.0)
    # the median of |x| of the first is 2; the second is in range already
    np.testing.assert_allclose(got[0], np.clip(x[0], -2, 2) / 2, atol=1e-6)
    np.testing.assert_array_equal(got[1], x[1])


def test_a_percentile_out_of_range_is_rejected():
    with pytest.raises(UserError, match="percentile is 101.0; it must lie in .0, 100."):
        process.dynamic_threshold(X_0, percentile=101.0)


def test_targets_have_names():
    assert [Target.parse(name) for name in ("x_0", "eps", "v")] == list(Target)
    with pytest.raises(UserError, match="unknown prediction target 'epsilon'. Did you mean 'eps'"):
        Target.parse("epsilon")
