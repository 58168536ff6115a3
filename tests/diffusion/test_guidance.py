import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.diffusion.gaussians import FULL, exact_denoiser
from unclip_jax.core.checks import UserError
from unclip_jax.diffusion import process
from unclip_jax.diffusion.guidance import classifier_free, guided, keep_mask
from unclip_jax.diffusion.process import Prediction

X_T = jax.random.normal(jax.random.key(0), (3, 4))
T = jnp.array([100, 500, 900])
LEVEL = FULL.level(T, ndim=2)


def branch(seed: int) -> Prediction:
    eps, frac = jax.random.normal(jax.random.key(seed), (2, 3, 4))
    return process.from_eps(eps, X_T, alpha_bar=LEVEL, var_frac=frac)


COND, UNCOND = branch(1), branch(2)


def guide(scale, cond: Prediction = COND, uncond: Prediction = UNCOND) -> Prediction:
    return classifier_free(cond, uncond, scale=scale)


def test_scale_1_is_the_conditional_branch_and_scale_0_the_other():
    for scale, expected in ((1.0, COND), (0.0, UNCOND)):
        np.testing.assert_allclose(guide(scale).eps, expected.eps, atol=1e-6)
        np.testing.assert_allclose(guide(scale).x_0, expected.x_0, atol=1e-5)


def test_guidance_is_affine_in_the_scale():
    at = {scale: guide(scale) for scale in (0.0, 1.0, 3.0)}
    for form in ("x_0", "eps"):
        zero, one, three = (getattr(at[scale], form) for scale in (0.0, 1.0, 3.0))
        np.testing.assert_allclose(three, zero + 3.0 * (one - zero), atol=1e-4)


def test_branches_that_agree_are_unaffected():
    np.testing.assert_array_equal(guide(7.5, COND, COND).eps, COND.eps)
    np.testing.assert_array_equal(guide(7.5, COND, COND).x_0, COND.x_0)


def test_guiding_x_0_is_guiding_eps():
    got = guide(4.0)
    expected = process.from_eps(got.eps, X_T, alpha_bar=LEVEL)
    np.testing.assert_allclose(got.x_0, expected.x_0, rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(process.q_sample(got.x_0, got.eps, alpha_bar=LEVEL), X_T, atol=1e-5)


def test_the_variance_is_the_conditional_branch_s():
    np.testing.assert_array_equal(guide(4.0).var_frac, COND.var_frac)
    plain = guide(4.0, COND._replace(var_frac=None), UNCOND._replace(var_frac=None))
    assert plain.var_frac is None


def test_one_scale_per_example():
    got = guide(jnp.array([0.0, 1.0, 5.0]))
    for i, scale in enumerate((0.0, 1.0, 5.0)):
        np.testing.assert_allclose(got.eps[i], guide(scale).eps[i], atol=1e-6)
        np.testing.assert_allclose(got.x_0[i], guide(scale).x_0[i], atol=1e-6)


@pytest.mark.parametrize("var_frac", [None, 0.5])
def test_one_doubled_batch_gives_both_branches(var_frac):
    # two Gaussians of equal width: the guided mean lies `scale` times as far from the second's
    sizes = []

    def denoise_both(x_t, t):
        sizes.append(x_t.shape[0])
        half = x_t.shape[0] // 2
        np.testing.assert_array_equal(x_t[:half], x_t[half:])
        np.testing.assert_array_equal(t[:half], t[half:])
        with_it = exact_denoiser(1.0, 0.5, var_frac=var_frac)(x_t[:half], t[:half])
        without = exact_denoiser(0.2, 0.5, var_frac=var_frac)(x_t[half:], t[half:])
        return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), with_it, without)

    got = guided(denoise_both, scale=3.0)(X_T, T)
    expected = exact_denoiser(0.2 + 3.0 * (1.0 - 0.2), 0.5, var_frac=var_frac)(X_T, T)
    assert sizes == [6]
    np.testing.assert_allclose(got.x_0, expected.x_0, atol=1e-5)
    np.testing.assert_allclose(got.eps, expected.eps, atol=1e-5)
    assert (got.var_frac is None) == (var_frac is None)


@pytest.mark.parametrize("drop", [0.1, 0.45, 0.5])
def test_conditions_are_dropped_as_often_as_asked(drop):
    mask = keep_mask(jax.random.key(3), batch_size=20_000, drop=drop)
    bound = 4 * np.sqrt(drop * (1 - drop) / 20_000)
    assert float(jnp.mean(~mask)) == pytest.approx(drop, abs=bound)


def test_two_masks_of_different_keys_are_independent():
    a, b = (keep_mask(jax.random.key(seed), batch_size=20_000, drop=0.5) for seed in (4, 5))
    assert float(jnp.mean(a & b)) == pytest.approx(0.25, abs=4 * np.sqrt(0.25 * 0.75 / 20_000))


def test_never_and_always():
    assert keep_mask(jax.random.key(0), batch_size=1000, drop=0.0).all()
    assert not keep_mask(jax.random.key(0), batch_size=1000, drop=1.0).any()


@pytest.mark.parametrize("drop", [-0.1, 1.5])
def test_a_drop_that_is_no_probability_is_rejected(drop):
    with pytest.raises(UserError, match=f"drop is {drop}; it must lie in .0.0, 1.0."):
        keep_mask(jax.random.key(0), batch_size=2, drop=drop)
