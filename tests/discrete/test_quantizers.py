"""Three quantizers against their definitions: Gumbel-softmax, finite scalars, a codebook."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from scipy import stats

from unclip_jax.core.checks import UserError
from unclip_jax.discrete import relaxation, vq
from unclip_jax.discrete.fsq import Levels

RNG = np.random.default_rng(0)


def test_the_largest_relaxed_code_is_a_draw_from_the_softmax():
    logits = jnp.asarray([1.0, 0.0, -1.0, 0.5])
    many = jnp.broadcast_to(logits, (1, 150, 150, 4))
    relaxed = relaxation.gumbel_softmax(many, jax.random.key(0), temperature=0.5)
    np.testing.assert_allclose(relaxed.sum(-1), 1.0, atol=1e-5)
    counts = np.bincount(np.asarray(relaxed.argmax(-1)).ravel(), minlength=4)
    expected = np.asarray(jax.nn.softmax(logits)) * counts.sum()
    assert stats.chisquare(counts, expected, sum_check=False).pvalue > 1e-3


def test_a_low_temperature_leaves_one_code_and_each_example_has_its_own():
    logits = jnp.asarray(RNG.normal(size=(2, 3, 3, 5)), jnp.float32)
    tau = jnp.array([1e-4, 1e4])
    cold, hot = relaxation.gumbel_softmax(logits, jax.random.key(0), temperature=tau)
    np.testing.assert_allclose(cold.max(-1), 1.0, atol=1e-6)
    np.testing.assert_allclose(hot, 0.2, atol=1e-3)


def test_divergence_from_uniform_is_the_missing_entropy():
    logits = jnp.asarray(RNG.normal(size=(1, 2, 2, 7)), jnp.float32)
    q = np.asarray(jax.nn.softmax(logits), np.float64)
    expected = np.log(7) - stats.entropy(q, axis=-1)
    np.testing.assert_allclose(relaxation.kl_to_uniform(logits), expected, atol=1e-6)
    assert float(relaxation.kl_to_uniform(jnp.zeros((1, 1, 1, 8192)))[0, 0, 0]) == pytest.approx(
        0.0, abs=1e-5
    )
    certain = jnp.zeros((1, 1, 1, 8192)).at[..., 3].set(1e4)
    assert float(relaxation.kl_to_uniform(certain)[0, 0, 0]) == pytest.approx(np.log(8192))


@pytest.mark.parametrize(
    ("step", "value"), [(0, 1.0), (500, 0.53125), (1000, 0.0625), (9999, 0.0625)]
)
def test_annealing_is_half_a_cosine_that_then_rests(step, value):
    got = relaxation.annealed(step, start=1.0, end=1 / 16, steps=1000)
    assert float(got) == pytest.approx(value, abs=1e-6)


def test_code_statistics_of_counted_codes():
    codes = jnp.array([[[0, 0], [3, 3]]])
    got = relaxation.code_statistics(codes, count=8)
    assert float(got["usage"]) == 0.25 and float(got["perplexity"]) == pytest.approx(2.0)


@pytest.mark.parametrize("counts", [(3, 4), (5, 4, 6), (8, 5, 5, 5)])
def test_finite_scalars_number_every_combination_of_levels(counts):
    levels = Levels(counts)
    codes = jnp.arange(levels.size)
    values = levels.values(codes)
    np.testing.assert_array_equal(levels.codes(values), codes)
    grids = [(np.arange(n) - n // 2) / (n // 2) for n in counts]
    expected = [point[::-1] for point in itertools.product(*grids[::-1])]  # first digit fastest
    np.testing.assert_allclose(values, expected, atol=1e-6)
    z = jnp.asarray(RNG.uniform(-2, 2, (40_000, len(counts))), jnp.float32)
    quantised = levels.quantise(z)
    numbers = np.unique(np.asarray(levels.codes(quantised)))
    np.testing.assert_array_equal(numbers, codes)
    np.testing.assert_allclose(levels.values(levels.codes(quantised)), quantised, atol=1e-6)


def test_zero_is_a_level_and_the_gradient_is_that_of_the_bound():
    levels = Levels((8, 5))
    np.testing.assert_allclose(levels.quantise(jnp.zeros((1, 2))), 0.0, atol=1e-6)
    x = jnp.array([0.3, -0.7])
    slope = jax.grad(lambda x: levels.quantise(x).sum())(x)
    half = np.array([7, 4]) * (1 - 1e-3) / 2
    shift = np.array([np.arctanh(0.5 / half[0]), 0.0])
    expected = half / np.cosh(np.asarray(x) + shift) ** 2 / np.array([4, 2])
    np.testing.assert_allclose(slope, expected, rtol=1e-5)


@pytest.mark.parametrize("counts", [(), (8, 2), (256, 257)])
def test_levels_that_cannot_be_are_rejected(counts):
    with pytest.raises(UserError, match=r"levels are \[.*give at least three levels per channel"):
        Levels(counts)


FEATURES = jnp.asarray(RNG.normal(size=(2, 3, 3, 4)), jnp.float32)
CODEBOOK = jnp.asarray(RNG.normal(size=(6, 4)), jnp.float32)


def test_a_codebook_gives_the_nearest_row_and_passes_gradients():
    result = vq.quantise(FEATURES, CODEBOOK)
    nearest = ((np.asarray(FEATURES)[..., None, :] - np.asarray(CODEBOOK)) ** 2).sum(-1).argmin(-1)
    np.testing.assert_array_equal(result.codes, nearest)
    np.testing.assert_allclose(result.values, CODEBOOK[nearest], atol=1e-6)
    weight = jnp.asarray(RNG.normal(size=FEATURES.shape), jnp.float32)
    slope = jax.grad(lambda z: (weight * vq.quantise(z, CODEBOOK).values).sum())(FEATURES)
    np.testing.assert_allclose(slope, weight, atol=1e-6)


def test_each_term_moves_its_own_side_and_only_rows_in_use():
    def of(name):
        return jax.grad(lambda z, e: getattr(vq.quantise(z, e), name), argnums=(0, 1))

    to_z, to_rows = of("codebook_loss")(FEATURES, CODEBOOK)
    assert not np.any(to_z)
    in_use = np.zeros(6, bool)
    in_use[np.unique(vq.quantise(FEATURES, CODEBOOK).codes)] = True
    np.testing.assert_array_equal(np.any(np.asarray(to_rows) != 0, axis=1), in_use)
    to_z, to_rows = of("commitment_loss")(FEATURES, CODEBOOK)
    assert np.any(to_z) and not np.any(to_rows)


def test_entropy_is_lowest_for_certain_codes_in_equal_use():
    spread = 50.0 * jnp.eye(6, 4)[:4]
    equal = vq.quantise(spread.reshape(1, 2, 2, 4), spread).entropy_loss
    same = vq.quantise(jnp.broadcast_to(spread[0], (1, 2, 2, 4)), spread).entropy_loss
    assert float(equal) == pytest.approx(-np.log(4), abs=1e-4)
    assert float(same) == pytest.approx(0.0, abs=1e-4)


def test_losses_of_a_codebook_are_means_of_squares():
    result = vq.quantise(FEATURES, CODEBOOK)
    rows = np.asarray(CODEBOOK, np.float64)[np.asarray(result.codes)]
    expected = np.mean((np.asarray(FEATURES, np.float64) - rows) ** 2)
    assert float(result.codebook_loss) == pytest.approx(expected, rel=1e-5)
    assert float(result.commitment_loss) == pytest.approx(expected, rel=1e-5)


def test_entropy_loss_is_that_of_soft_assignments():
    distances = (
        (np.asarray(FEATURES, np.float64)[..., None, :] - np.asarray(CODEBOOK, np.float64)) ** 2
    ).sum(-1)
    p = scipy.special.softmax(-distances, axis=-1).reshape(-1, 6)
    expected = stats.entropy(p, axis=1).mean() - stats.entropy(p.mean(axis=0))
    loss = vq.quantise(FEATURES, CODEBOOK).entropy_loss
    assert float(loss) == pytest.approx(expected, rel=1e-4)
