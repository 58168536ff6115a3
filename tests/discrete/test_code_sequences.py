"""Sampling of code sequences in a world of two codes, where every probability is known."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unclip_jax.core import rng
from unclip_jax.discrete import categorical
from unclip_jax.discrete.categorical import CodeSamplingConfig, FixedCodes

# Logits of the next code of a chain of three, after the last one; with the condition, without it.
FIRST = np.array([[0.3, -0.4], [0.0, 0.5]])
NEXT = np.array([[[1.0, 0.0], [-0.5, 0.5]], [[0.2, 0.1], [0.9, 0.0]]])
COUNT = 6000
KEYS = rng.per_example(jax.random.key(0), jnp.arange(COUNT))


def run(sampling, *, keys=KEYS, fixed=None):
    size = len(keys)
    which = jnp.concatenate([jnp.zeros(size, int), jnp.ones(size, int)])
    which = which[: size if sampling.guidance_scale == 1.0 else 2 * size]

    def step(code, cache, index):
        return jnp.asarray(NEXT)[which, code], cache

    first = (jnp.asarray(FIRST)[which], jnp.zeros(()))
    draw = lambda keys: categorical.sample_sequence(  # noqa: E731
        first, step, count=3, keys=keys, sampling=sampling, fixed=fixed
    )
    return np.asarray(jax.jit(draw)(keys))


def expected(scale):
    """Probabilities of the eight sequences, exactly."""
    logits = [u + scale * (c - u) for c, u in (FIRST, NEXT)]
    first, then = (np.exp(x) / np.exp(x).sum(-1, keepdims=True) for x in logits)
    chains = itertools.product((0, 1), repeat=3)
    return np.array([first[a] * then[a, b] * then[b, c] for a, b, c in chains])


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_frequencies_are_the_exact_probabilities(scale):
    codes = run(CodeSamplingConfig(guidance_scale=scale))
    counts = np.bincount(codes @ [4, 2, 1], minlength=8)
    p = expected(scale)
    assert (np.abs(counts - COUNT * p) <= 5 * np.sqrt(COUNT * p * (1 - p))).all()


def test_fixed_codes_stay_and_the_others_depend_on_them():
    sampling = CodeSamplingConfig()
    free = run(sampling)
    mask = jnp.zeros((COUNT, 3), bool).at[:, :2].set(True)
    fixed = FixedCodes(jnp.tile(jnp.array([[0, 1, 0]]), (COUNT, 1)), mask)
    codes = run(sampling, fixed=fixed)
    assert (codes[:, :2] == [0, 1]).all()
    share = np.exp(0.5) / (np.exp(0.5) + np.exp(-0.5))
    assert codes[:, 2].mean() == pytest.approx(share, abs=0.03)
    same = run(sampling, fixed=FixedCodes(jnp.asarray(free), mask))
    np.testing.assert_array_equal(same, free)  # the codes that it would have sampled itself
    every = run(sampling, fixed=FixedCodes(fixed.codes, jnp.ones((COUNT, 3), bool)))
    np.testing.assert_array_equal(every, fixed.codes)


def test_a_row_depends_on_its_key_alone():
    sampling = CodeSamplingConfig(temperature=0.7)
    np.testing.assert_array_equal(run(sampling, keys=KEYS[5:9]), run(sampling)[5:9])


def test_no_temperature_follows_the_largest_logits_as_one_code_left_does():
    greedy = run(CodeSamplingConfig(temperature=0.0))
    assert (greedy == [0, 0, 0]).all()
    np.testing.assert_array_equal(run(CodeSamplingConfig(top_k=1)), greedy)


def test_positions_are_reported_in_runs():
    nats = jnp.arange(16.0).reshape(1, 16)
    runs = categorical.by_position(nats)
    assert next(iter(runs)) == "loss_000_001" and list(runs)[-1] == "loss_014_015"
    assert [float(x) for x in runs.values()] == [0.5 + 2 * i for i in range(8)]
