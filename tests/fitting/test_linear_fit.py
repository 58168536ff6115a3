"""The ridge regression of pairs, and moments in one pass, against closed forms."""

import numpy as np
import pytest

from unclip_jax.core.checks import UserError
from unclip_jax.fitting import linear_fit

RNG = np.random.default_rng(3)


def blocks(monkeypatch, rows, *arrays):
    """A pass over arrays in blocks of `rows`, the last of which is shorter."""
    monkeypatch.setattr(linear_fit, "FIT_ROWS", rows)

    def open_pass(size):
        return (tuple(a[i : i + size] for a in arrays) for i in range(0, len(arrays[0]), size))

    return open_pass


@pytest.mark.parametrize("noise", [0.1, 3.0])
def test_the_ridge_minimises_generalised_cross_validation(monkeypatch, noise):
    """Golub, Heath and Wahba (1979): n RSS / (n - freedom)^2, the mean being one freedom."""
    n = 40
    x = RNG.normal(size=(n, 6)) * [1, 2, 3, 1, 1, 5] + 4.0
    y = x @ RNG.normal(size=(6, 3)) + noise * RNG.normal(size=(n, 3)) - 2.0
    fit = linear_fit.ridge(blocks(monkeypatch, 16, x, y), lambda block: block)
    centred, target = x - x.mean(0), y - y.mean(0)
    gram = centred.T @ centred
    scores = {}
    for strength in linear_fit.GRID:
        inverse = np.linalg.inv(gram + strength * np.trace(gram) / 6 * np.eye(6))
        hat = centred @ inverse @ centred.T
        rss = np.sum((target - hat @ target) ** 2)
        scores[strength] = n * rss / (n - 1 - np.trace(hat)) ** 2
    best = min(scores, key=lambda strength: scores[strength])
    assert fit.strength == best
    penalised = gram + best * np.trace(gram) / 6 * np.eye(6)
    weights = np.linalg.solve(penalised, centred.T @ target)
    np.testing.assert_allclose(fit.weights, weights, rtol=1e-8)
    np.testing.assert_allclose(x.mean(0) @ fit.weights + fit.bias, y.mean(0), rtol=1e-8)
    np.testing.assert_allclose(fit.root.T @ fit.root, np.linalg.inv(penalised), rtol=1e-6)
    assert fit.explained == pytest.approx(1 - scores[best] * n / np.sum(target**2), rel=1e-8)


def test_the_largest_regression_has_4096_features_and_2_to_the_26_weights():
    linear_fit.check_size(4096, 2**14)
    linear_fit.check_size(1, 2**26)
    for features, outputs in ((4096, 2**14 + 1), (4097, 1), (2, 2**25 + 1)):
        with pytest.raises(UserError, match="it takes at most 4,096 and 67,108,864 weights"):
            linear_fit.check_size(features, outputs)
    with pytest.raises(UserError, match="there is no ridge regression"):
        linear_fit.check_size(0, 5)


def test_moments_are_of_the_real_tokens_of_all_blocks(monkeypatch):
    x = RNG.normal(2.0, 3.0, size=(50, 3))
    tokens = RNG.normal(-1.0, 0.5, size=(50, 4, 2))
    mask = np.arange(4)[None] < RNG.integers(0, 4, size=(50, 1))
    mask[16:32] = False  # a block without any
    names = ("x", "tokens", "mask")
    open_pass = blocks(monkeypatch, 16, x, tokens, mask)

    def rows(size):
        return (dict(zip(names, block, strict=True)) for block in open_pass(size))

    result = linear_fit.moments(rows, {"x": None, "tokens": "mask"})
    for name, values in (("x", x), ("tokens", tokens[mask])):
        np.testing.assert_allclose(result[name].mean, values.mean(0), rtol=1e-9)
        np.testing.assert_allclose(result[name].std, values.std(0), rtol=1e-9)
