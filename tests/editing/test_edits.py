"""The paths and neighbourhoods of latents, without any network."""

import jax.numpy as jnp
import numpy as np
import pytest

from unclip_jax.core.arrays import unit
from unclip_jax.core.checks import UserError
from unclip_jax.diffusion import spherical
from unclip_jax.editing import edits, pca_probe
from unclip_jax.editing.latents import Latent, take

RNG = np.random.default_rng(0)
Z = unit(jnp.asarray(RNG.normal(size=(3, 16)), jnp.float32))
X_T, DETAIL = (jnp.asarray(RNG.normal(size=(3, s, s, 3)), jnp.float32) for s in (4, 8))
LATENT = Latent(Z, X_T, (DETAIL,))
ONE = take(LATENT, [0])


def norms(z):
    return np.linalg.norm(np.float64(z).reshape(len(z), -1), axis=1)


def test_a_path_passes_through_every_image_exactly():
    path = edits.interpolate(LATENT, frames=5)
    np.testing.assert_allclose(path.theta, np.arange(9) / 4)
    np.testing.assert_array_equal(path.latent.z_img[::4], LATENT.z_img)
    np.testing.assert_array_equal(path.latent.x_T[::4], LATENT.x_T)
    np.testing.assert_array_equal(path.latent.details[0][::4], DETAIL)
    np.testing.assert_allclose(norms(path.latent.z_img), 1.0, atol=1e-6)


def test_the_path_back_is_the_same_path():
    there = edits.interpolate(LATENT, frames=4).latent
    back = edits.interpolate(take(LATENT, [2, 1, 0]), frames=4).latent
    np.testing.assert_allclose(back.z_img[::-1], there.z_img, atol=1e-6)
    np.testing.assert_allclose(back.x_T[::-1], there.x_T, atol=1e-5)
    np.testing.assert_allclose(back.details[0][::-1], there.details[0], atol=1e-5)


def test_a_shared_noise_is_the_same_in_every_frame():
    noise = LATENT.x_T[2:]
    path = edits.interpolate(LATENT, frames=3, x_T=noise).latent
    np.testing.assert_array_equal(path.x_T, np.repeat(noise, 5, axis=0))
    assert path.details == ()
    np.testing.assert_array_equal(path.z_img, edits.interpolate(LATENT, frames=3).latent.z_img)


def test_a_text_diff_starts_at_the_image_and_turns_by_theta_of_the_angle():
    thetas = np.array([0.0, 0.25, 0.5], np.float32)
    path = edits.text_diff(ONE, z_target=Z[1:2], z_source=Z[2:], thetas=thetas).latent
    np.testing.assert_array_equal(path.z_img[0], ONE.z_img[0])
    np.testing.assert_array_equal(path.x_T, np.repeat(ONE.x_T, 3, axis=0))
    np.testing.assert_array_equal(path.details[0], np.repeat(DETAIL[:1], 3, axis=0))
    z_d = np.float64(Z[1] - Z[2])
    z_d /= np.linalg.norm(z_d)
    whole = np.arccos(np.float64(Z[0]) @ z_d)
    for theta, z in zip(thetas, np.float64(path.z_img), strict=True):
        assert np.arccos(min(z @ np.float64(Z[0]), 1.0)) == pytest.approx(theta * whole, abs=1e-3)
        assert np.arccos(z @ z_d) == pytest.approx((1 - theta) * whole, abs=1e-3)


def test_a_text_diff_without_a_source_turns_to_the_caption_itself():
    thetas = np.array([0.3, 1.0], np.float32)
    path = edits.text_diff(ONE, z_target=5.0 * Z[1:2], z_source=None, thetas=thetas).latent
    np.testing.assert_allclose(path.z_img[1], Z[1], atol=1e-6)
    np.testing.assert_allclose(path.z_img[0], spherical.slerp(Z[:1], Z[1:2], 0.3)[0], atol=1e-6)


@pytest.mark.parametrize("z_source", [None, Z[2:]])
def test_a_text_diff_keeps_the_norm_of_raw_embeddings(z_source):
    raw, thetas = ONE._replace(z_img=7.0 * ONE.z_img), np.array([0.0, 0.3, 1.0], np.float32)
    path = edits.text_diff(raw, z_target=Z[1:2], z_source=z_source, thetas=thetas).latent
    np.testing.assert_allclose(norms(path.z_img), 7.0, rtol=1e-5)


def test_variations_repeat_the_image_for_every_eta():
    variations = edits.variations(ONE, etas=[0.0, 0.5], copies=2)
    np.testing.assert_array_equal(variations.eta, [0.0, 0.0, 0.5, 0.5])
    np.testing.assert_array_equal(variations.latent.x_T, np.repeat(ONE.x_T, 4, axis=0))
    np.testing.assert_array_equal(variations.latent.details[0], np.repeat(DETAIL[:1], 4, axis=0))


def test_a_blend_of_two_is_a_slerp_and_of_one_is_itself():
    two = edits.blend(Z[:2], weights=[3.0, 1.0])
    np.testing.assert_allclose(two, spherical.slerp(Z[:1], Z[1:2], 0.25), atol=2e-6)
    raw = edits.blend(3.0 * Z[:2], weights=[3.0, 1.0])  # decoders of raw embeddings read the norm
    np.testing.assert_allclose(raw, 3.0 * two, atol=6e-6)
    np.testing.assert_allclose(edits.blend(Z, weights=[0.0, 2.0, 0.0])[0], Z[1], atol=2e-6)
    many = edits.blend(jnp.abs(Z), weights=[0.2, 0.3, 0.5])
    np.testing.assert_allclose(norms(many), 1.0, atol=1e-6)


def test_a_blended_noise_keeps_the_norm_of_noise():
    noise = edits.blend_noise(LATENT.x_T, weights=[1.0, 1.0, 2.0])
    expected = norms(LATENT.x_T) @ [0.25, 0.25, 0.5]
    np.testing.assert_allclose(norms(noise), [expected], rtol=1e-5)
    for each in edits.blend_details((LATENT.x_T, DETAIL), weights=[1.0, 1.0, 2.0]):
        assert each.shape[0] == 1
    assert edits.blend_details((), weights=[1.0]) == ()


def test_a_composite_keeps_known_pixels_bit_for_bit():
    samples = RNG.integers(0, 256, (2, 4, 4, 3)).astype(np.uint8)
    original = RNG.integers(0, 256, (4, 4, 3)).astype(np.uint8)
    mask = np.zeros((4, 4), np.float32)
    mask[1] = 1.0
    whole = edits.composite(samples, original, mask=mask)
    np.testing.assert_array_equal(whole[:, 1], np.stack([original[1]] * 2))
    np.testing.assert_array_equal(whole[:, [0, 2, 3]], samples[:, [0, 2, 3]])


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda: edits.interpolate(ONE, frames=3), "at least two images, not 1"),
        (lambda: edits.interpolate(LATENT, frames=1), r"frames is 1; it must lie in \[2, 1000\]"),
        (lambda: edits.variations(LATENT, etas=[0.0], copies=1), "takes one image, not 3"),
        (lambda: edits.variations(ONE, etas=[1.5], copies=1), "eta is 1.5"),
        (lambda: edits.variations(ONE, etas=[1.0], copies=0), "copies is 0"),
        (lambda: diff(Z[1:2], Z[1:2], 0.5), "mean the same to CLIP"),
        (lambda: diff(Z[1:2], None, 1.5), r"theta is 1.5; it must lie in \[0.0, 1.0\]"),
        (lambda: edits.blend(Z, weights=[1.0]), r"weights are \[1.0\] for 3 embeddings"),
        (lambda: edits.blend(Z, weights=[1.0, -1.0, 1.0]), "none negative"),
        (lambda: edits.blend(Z, weights=[0.0] * 3), "at least one positive"),
        (lambda: edits.blend(jnp.concatenate([Z[:1], -Z[:1]]), weights=[1.0, 1.0]), "cancel out"),
    ],
)
def test_what_has_no_meaning_is_rejected(edit, message):
    with pytest.raises(UserError, match=message):
        edit()


def diff(z_target, z_source, theta):
    thetas = np.array([theta], np.float32)
    return edits.text_diff(ONE, z_target=z_target, z_source=z_source, thetas=thetas)


def random_embeddings():
    """Embeddings along known directions: variance 9, 4 and 1 along three orthonormal rows."""
    basis = np.linalg.qr(RNG.normal(size=(6, 6)))[0]
    share = RNG.normal(size=(20_000, 3)) * [3.0, 2.0, 1.0]
    return 5.0 * basis[5] + share @ basis[:3], basis


def test_principal_components_are_the_directions_the_data_was_made_of():
    z, basis = random_embeddings()
    pca = pca_probe.fit(z)
    np.testing.assert_allclose(pca.variance[:3], [9, 4, 1], rtol=0.05)
    np.testing.assert_allclose(pca.variance[3:], 0.0, atol=1e-9)
    cosines = np.abs(np.sum(pca.components[:3] * basis[:3], axis=1))
    np.testing.assert_allclose(cosines, 1.0, atol=1e-3)


def test_more_components_come_nearer_and_all_of_them_give_the_embedding_back():
    z, _ = random_embeddings()
    pca, one = pca_probe.fit(z), z[0] / np.linalg.norm(z[0])
    rebuilt = pca_probe.keep_first(pca, one, counts=(0, 1, 2, 3, 6))
    np.testing.assert_allclose(rebuilt[-1], one, atol=1e-6)
    np.testing.assert_allclose(norms(rebuilt), 1.0, atol=1e-6)
    np.testing.assert_allclose(rebuilt[0], pca.mean / np.linalg.norm(pca.mean), atol=1e-6)


def test_figure_7s_counts_or_doubling_ones():
    assert pca_probe.default_counts(1024)[-1] == pca_probe.default_counts(320)[-1] == 320
    assert pca_probe.default_counts(319)[-2:] == (256, 319)
    assert pca_probe.default_counts(32) == (2, 4, 8, 16, 32)
    assert pca_probe.default_counts(128)[-2:] == (64, 128)


def test_impossible_probes_are_rejected():
    with pytest.raises(UserError, match="at least 2 embeddings, not 1"):
        pca_probe.fit(np.zeros((1, 4)))
    with pytest.raises(UserError, match=r"number of components is 5; it must lie in \[0, 4\]"):
        pca_probe.keep_first(pca_probe.fit(np.eye(4)), np.ones(4), counts=(5,))
