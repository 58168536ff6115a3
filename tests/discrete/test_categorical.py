import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unclip_jax.core import rng
from unclip_jax.core.checks import UserError
from unclip_jax.discrete import categorical
from unclip_jax.discrete.categorical import CodeSamplingConfig

LOGITS = np.random.default_rng(0).normal(size=(5, 9)).astype(np.float32) * 2


def shares(logits):
    weights = np.exp(np.float64(logits) - logits.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


@pytest.mark.parametrize("top_p", [0.05, 0.3, 0.9, 0.999])
def test_the_nucleus_is_the_smallest_set_that_holds_enough_by_brute_force(top_p):
    nucleus = np.isfinite(categorical.nucleus(jnp.asarray(LOGITS), top_p))
    for row, weights in zip(nucleus, shares(LOGITS), strict=True):
        mass = 0.0
        for index in np.argsort(-weights):
            assert row[index] == (mass < top_p)
            mass += weights[index]


def test_all_is_kept_at_one_and_ties_stay_together():
    np.testing.assert_array_equal(categorical.nucleus(jnp.asarray(LOGITS), 1.0), LOGITS)
    logits = jnp.array([[1.0, 1.0, 1.0, 0.0]])
    assert np.isfinite(categorical.nucleus(logits, 0.01)).tolist() == [[True, True, True, False]]


@pytest.mark.parametrize(("temperature", "top_p"), [(0.5, 1.0), (2.0, 0.7)])
def test_draws_follow_the_tempered_nucleus(temperature, top_p):
    count = 20_000
    keys = rng.per_example(jax.random.key(0), jnp.arange(count))
    logits = jnp.tile(LOGITS[:1], (count, 1))
    run = jax.jit(lambda x, k: categorical.choose(x, k, temperature=temperature, top_p=top_p))
    result = np.bincount(run(logits, keys), minlength=9)
    want = shares(LOGITS[:1] / temperature)[0]
    order = np.argsort(-want)
    want[order[np.cumsum(want[order]) - want[order] >= top_p]] = 0.0
    want /= want.sum()
    assert (result[want == 0] == 0).all()
    deviation = np.sqrt(count * want * (1 - want))
    assert (np.abs(result - count * want) <= 5 * deviation + 1e-9).all()


def test_top_k_leaves_the_most_probable_and_meets_the_nucleus():
    for k in (1, 4, 9, 20):
        mask = np.isfinite(categorical.most_probable(jnp.asarray(LOGITS), k))
        ranks = np.argsort(np.argsort(-LOGITS, axis=1), axis=1)
        np.testing.assert_array_equal(mask, ranks < k)
    count = 2000
    keys = rng.per_example(jax.random.key(1), jnp.arange(count))
    run = jax.jit(categorical.choose, static_argnames=("temperature", "top_p", "top_k"))

    def support(**options):
        return set(
            np.unique(run(jnp.tile(LOGITS[:1], (count, 1)), keys, temperature=2.0, **options))
        )

    by_rank = list(np.argsort(-LOGITS[0]))
    assert support(top_p=1.0, top_k=3) == set(by_rank[:3])
    assert support(top_p=1e-6, top_k=3) == {by_rank[0]} == support(top_p=0.99, top_k=1)


def test_cross_entropy_is_the_nats_of_each_code():
    logits = np.random.default_rng(1).normal(size=(3, 4, 9)).astype(np.float32) * 3
    codes = np.random.default_rng(2).integers(0, 9, (3, 4))
    expected = -np.log(np.take_along_axis(shares(logits), codes[..., None], axis=-1))[..., 0]
    result = categorical.cross_entropy(jnp.asarray(logits), jnp.asarray(codes))
    np.testing.assert_allclose(result, expected, rtol=1e-4)


@pytest.mark.parametrize(
    ("count", "runs"),
    [
        (16, [(i, i + 1) for i in range(0, 16, 2)]),
        (20, [(0, 1), (2, 4), (5, 6), (7, 9), (10, 11), (12, 14), (15, 16), (17, 19)]),
        (8, [(i, i) for i in range(8)]),
        (3, [(0, 0), (1, 1), (2, 2)]),
        (1, [(0, 0)]),
    ],
)
def test_the_loss_of_runs_of_codes_from_the_first_to_the_last(count, runs):
    """Eight of them, of lengths that differ by one at most; fewer of fewer codes."""
    nats = np.random.default_rng(0).exponential(size=(5, count)).astype(np.float32)
    result = categorical.by_position(jnp.asarray(nats))
    assert list(result) == [f"loss_{first:03d}_{last:03d}" for first, last in runs]
    for value, (first, last) in zip(result.values(), runs, strict=True):
        assert float(value) == pytest.approx(nats[:, first : last + 1].mean(), rel=1e-5)


def test_no_temperature_takes_the_most_probable():
    keys = rng.per_example(jax.random.key(0), jnp.arange(5))
    codes = categorical.choose(jnp.asarray(LOGITS), keys, temperature=0.0, top_p=0.5)
    np.testing.assert_array_equal(codes, LOGITS.argmax(1))


def test_guidance_extrapolates_from_the_unconditional_half():
    both = jnp.concatenate([jnp.asarray(LOGITS), jnp.asarray(LOGITS[::-1])])
    np.testing.assert_allclose(categorical.guided(both, scale=1.0), LOGITS, atol=1e-6)
    np.testing.assert_allclose(categorical.guided(both, scale=0.0), LOGITS[::-1], atol=1e-6)
    want = 3 * LOGITS - 2 * LOGITS[::-1]
    np.testing.assert_allclose(categorical.guided(both, scale=3.0), want, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"guidance_scale": -1.0},
            r"sampling.guidance_scale is -1.0; it must lie in",
        ),
        ({"temperature": -0.1}, "sampling.temperature is -0.1"),
        ({"top_p": 1.2}, r"sampling.top_p is 1.2; it must lie in \[0.0, 1.0\]"),
        ({"top_p": 0.0}, "sampling.top_p is 0, which leaves no code; set temperature=0"),
        ({"top_k": 0}, "sampling.top_k is 0, which leaves no code; give 1 or more, or none"),
    ],
)
def test_settings_out_of_range_are_rejected(change, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(CodeSamplingConfig(), **change)
