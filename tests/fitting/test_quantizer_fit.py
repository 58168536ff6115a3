"""Principal components and buckets against NumPy, brute force and Pythagoras."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from unclip_jax.core.checks import UserError
from unclip_jax.fitting import quantizer_fit
from unclip_jax.models.pca_quantizer import DotQuantizer, DotQuantizerConfig

DRAWS = np.random.default_rng(0)
CFG = DotQuantizerConfig(components=6, buckets=16, dot_buckets=8)


def embeddings(count=2000, dim=24, seed=0):
    """Unit-norm, float32, with variances that fall by a third from axis to axis of a rotation."""
    draws = np.random.default_rng(seed)
    spread = (2 / 3) ** np.arange(dim)
    turn = np.linalg.qr(draws.normal(size=(dim, dim)))[0]
    z = draws.normal(size=(count, dim)) * spread @ turn.T + 0.5 * turn[0]
    return (z / np.linalg.norm(z, axis=1, keepdims=True)).astype(np.float32)


Z_IMG, Z_TXT = embeddings(), embeddings(seed=1)


def rows(z_img=Z_IMG, z_txt=Z_TXT, *, size=300):
    def open_rows(most):
        assert most >= len(z_img)
        for start in range(0, len(z_img), size):
            span = slice(start, start + size)
            yield {"z_img": z_img[span], "z_txt": z_txt[span]}

    return open_rows


def unit(z):
    z = np.asarray(z, np.float64)
    return z / np.linalg.norm(z, axis=1, keepdims=True)


@pytest.mark.parametrize("size", [1, 7, 2000])
def test_moments_do_not_depend_on_blocks_and_are_numpys(size):
    blocks = (unit(Z_IMG[i : i + size]) for i in range(0, 2000, size))
    count, mean, scatter = quantizer_fit.moments(blocks)
    assert count == 2000
    np.testing.assert_allclose(mean, unit(Z_IMG).mean(0), rtol=0, atol=1e-15)
    want = np.cov(unit(Z_IMG), rowvar=False, bias=True)
    np.testing.assert_allclose(scatter / count, want, rtol=0, atol=1e-15)


def test_a_mean_far_larger_than_the_deviations_costs_no_digits():
    z = np.zeros((1000, 3))
    z[:, 0], z[:, 1] = 1.0, 1e-6 * DRAWS.normal(size=1000)
    result = quantizer_fit.moments(z[i : i + 10] for i in range(0, 1000, 10))
    np.testing.assert_allclose(result.scatter[1, 1] / 1000, z[:, 1].var(), rtol=1e-9)


def test_components_are_those_of_numpys_svd_by_decreasing_eigenvalue():
    pca = quantizer_fit.principal([unit(Z_IMG)])
    centred = unit(Z_IMG) - unit(Z_IMG).mean(0)
    _, singular, right = np.linalg.svd(centred, full_matrices=False)
    np.testing.assert_allclose(pca.eigenvalues, singular**2 / 2000, rtol=1e-6, atol=1e-16)
    assert (np.diff(pca.eigenvalues) <= 0).all()
    np.testing.assert_allclose(pca.basis @ pca.basis.T, np.eye(24), atol=1e-12)
    same = np.abs(np.sum(pca.basis * right, axis=1))  # up to sign
    np.testing.assert_allclose(same[:12], 1.0, atol=1e-6)  # later ones are closer than rounding
    top = np.abs(pca.basis).argmax(1)
    assert (pca.basis[np.arange(24), top] > 0).all()


def test_eigenvalues_are_numpys_eigh():
    pca = quantizer_fit.principal([unit(Z_IMG)])
    want = np.linalg.eigh(np.cov(unit(Z_IMG), rowvar=False, bias=True))[0][::-1]
    np.testing.assert_allclose(pca.eigenvalues, want, rtol=1e-9, atol=1e-16)
    np.testing.assert_allclose(pca.explained(), np.cumsum(want) / want.sum(), rtol=1e-9)


def test_directions_without_variance_have_eigenvalues_of_zero_not_below():
    rows = np.random.default_rng(0).normal(size=(50, 2)) @ np.random.default_rng(1).normal(
        size=(2, 24)
    )
    values = quantizer_fit.principal([rows]).eigenvalues
    assert (values >= 0).all() and (values[2:] < 1e-12).all()
    share = quantizer_fit.principal([rows]).explained()
    assert (np.diff(share) >= 0).all() and share[1] == pytest.approx(1.0)


@pytest.mark.parametrize(("values", "count"), [(100, 7), (16, 16), (33, 16), (5000, 1024)])
def test_buckets_hold_equally_many_and_know_their_means(values, count):
    x = np.sinh(DRAWS.permutation(np.linspace(-3, 4, values))).astype(np.float32)  # all different
    result = quantizer_fit.buckets(x, count=count, where="x")
    codes = np.array([np.sum(result.edges <= each) for each in x])
    counts = np.bincount(codes, minlength=count)
    assert counts.min() >= values // count and counts.max() <= -(-values // count)
    assert (np.diff(result.edges) > 0).all()
    means = [x[codes == i].astype(np.float64).mean() for i in range(count)]
    np.testing.assert_allclose(result.means, means, rtol=1e-12, atol=1e-15)
    error = np.mean((x - np.array(means)[codes]) ** 2)
    np.testing.assert_allclose(result.error, error, rtol=1e-9, atol=1e-18)


def test_edges_lie_in_the_middle_between_neighbours():
    result = quantizer_fit.buckets(np.float32([9, 0, 4, 1]), count=2, where="x")
    np.testing.assert_array_equal(result.edges, [2.5])


def test_neighbouring_floats_are_distinguished():
    x = np.array([1.0, np.nextafter(np.float32(1), np.float32(2))], np.float32)
    result = quantizer_fit.buckets(x, count=2, where="x")
    assert [np.sum(result.edges <= each) for each in x] == [0, 1]


def fit(cfg=CFG, **options):
    params = quantizer_fit.fit(cfg, rows(**options), components=cfg.components).params["codec"]
    module = DotQuantizer(cfg, cfg.components, Z_IMG.shape[1])
    codes = np.asarray(module.apply({"params": params}, jnp.asarray(Z_IMG)))
    back = module.apply({"params": params}, jnp.asarray(codes), method=DotQuantizer.decode)
    return params, codes, np.asarray(back, np.float64)


def test_codes_of_the_training_data_use_every_bucket_alike():
    params, codes, _ = fit()
    for each in codes.T:  # float32 in the model against float64 in the fit moves a few at edges
        counts = np.bincount(each, minlength=16)
        assert abs(counts - 125).max() <= 3
    dots = np.sum(unit(Z_IMG) * unit(Z_TXT), axis=1)
    counts = np.bincount(np.searchsorted(params["dot_edges"], dots, side="right"), minlength=8)
    assert abs(counts - 250).max() <= 3


def test_what_is_lost_is_the_left_out_variance_and_the_buckets_error():
    """Pythagoras: components left out are orthogonal to what the buckets round."""
    pca = quantizer_fit.principal([unit(Z_IMG)])
    coordinates = (unit(Z_IMG) - pca.mean) @ pca.basis[:6].T
    rounding = sum(
        quantizer_fit.buckets(x.astype(np.float32), count=16, where="x").error
        for x in coordinates.T
    )
    _, _, back = fit()
    error = np.mean(np.sum((back - unit(Z_IMG)) ** 2, axis=1))
    np.testing.assert_allclose(error, pca.eigenvalues[6:].sum() + rounding, rtol=1e-3)


def test_more_components_lose_less_down_to_one_percent():
    losses = []
    for count in (1, 6, 12):
        cfg = dataclasses.replace(CFG, components=count, buckets=128)
        losses.append(np.mean(np.sum((fit(cfg)[2] - unit(Z_IMG)) ** 2, axis=1)))
    assert (np.diff(losses) < 0).all() and losses[-1] < 0.01 < losses[0]


def test_the_note_says_what_a_reader_of_the_paper_asks():
    note = quantizer_fit.fit(CFG, rows(), components=6).note
    share = quantizer_fit.principal([unit(Z_IMG)]).explained()[5]
    assert note.startswith(f"6 of 24 principal components explain {share:.3%} of the variance of")
    assert "2,000 embeddings" in note and "16 buckets" in note


def test_the_fewest_components_that_explain_enough_are_counted():
    share = quantizer_fit.principal([unit(Z_IMG)]).explained()
    cfg = dataclasses.replace(CFG, components=0, explained_variance=0.9)
    count = quantizer_fit.count_components(cfg, rows(), most=24)
    assert share[count - 2] < 0.9 <= share[count - 1]
    every = dataclasses.replace(cfg, explained_variance=1.0)
    assert quantizer_fit.count_components(every, rows(), most=24) == 24
    with pytest.raises(UserError, match=r"components are needed to explain 90.000% .* holds 2,"):
        quantizer_fit.count_components(cfg, rows(), most=2)


def test_embeddings_that_cannot_be_used_are_rejected():
    with pytest.raises(UserError, match="there are no training embeddings"):
        quantizer_fit.principal([])
    for value in (np.nan, 0.0):
        broken = np.full((3, 4), value)
        with pytest.raises(UserError, match="a training embedding is zero or not finite"):
            quantizer_fit.unit_rows(broken)


def test_buckets_without_data_are_rejected():
    few = rows(Z_IMG[:10], Z_TXT[:10])
    with pytest.raises(UserError, match=r"6 of 16 buckets of component 0 hold none of the 10 tra"):
        quantizer_fit.fit(CFG, few, components=6)
    same = rows(Z_IMG[np.arange(2000) % 9], Z_TXT[:2000])
    with pytest.raises(UserError, match=r"buckets of component 0 .*\(9 different values\)"):
        quantizer_fit.fit(CFG, same, components=6)
    alike = rows(Z_IMG, Z_IMG)  # z_img . z_txt is 1 everywhere, but for rounding
    with pytest.raises(UserError, match=r"buckets of z_img . z_txt .* lower .*codec.dot_buckets"):
        quantizer_fit.fit(dataclasses.replace(CFG, dot_buckets=256), alike, components=6)


def test_more_components_than_the_data_span_are_rejected():
    flat = Z_IMG.copy()
    flat[:, 4:] = 0.0
    with pytest.raises(UserError, match=r"components is 6, but the 2000 .* vary in only 4 dimens"):
        quantizer_fit.fit(CFG, rows(flat), components=6)
