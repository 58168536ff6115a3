"""DALL-E's stream: its size, who sees whom in every pattern, cached as uncached."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models import probes
from unclip_jax.backbones.causal_transformer import Patterns
from unclip_jax.discrete import patterns
from unclip_jax.models.dalle import Dalle, DalleConfig

TINY = DalleConfig(
    width=8, depth=2, heads=2, context=3, vocab_size=11, grid=3, code_count=7, kernel=3
)
RNG = np.random.default_rng(0)
TOKENS = jnp.array([[9, 3, 10], [9, 10, 0]])
MASK = jnp.array([[1, 1, 1], [1, 1, 0]], bool)
CODES = jnp.asarray(RNG.integers(0, 7, (2, 9)))


def layout(*names):
    return Patterns(*patterns.plan(names, context=3, grid=3, kernel=3))


@functools.cache
def jit_apply(depth, names):
    module = Dalle(dataclasses.replace(TINY, depth=depth))
    return jax.jit(functools.partial(module.apply, patterns=layout(*names)))


@pytest.fixture(scope="module")
def variables():
    return {
        depth: probes.random_variables(
            Dalle(dataclasses.replace(TINY, depth=depth)),
            *(TOKENS, MASK, CODES),
            patterns=layout(*["full"] * depth),
        )
        for depth in (1, 2)
    }


def test_the_paper_has_twelve_billion_parameters():
    cfg = probes.paper("dalle")
    assert cfg.kernel == DalleConfig.kernel == 11  # of convolutional attention: figure 11
    names = patterns.sparse_order(cfg.depth)
    plan = Patterns(*patterns.plan(names, context=cfg.context, grid=cfg.grid, kernel=cfg.kernel))
    inputs = (jnp.zeros((1, 256), int), jnp.ones((1, 256), bool), jnp.zeros((1, 1024), int))
    shapes = probes.shapes(Dalle(cfg), *inputs, patterns=plan)
    assert probes.count(shapes["stream"]) == pytest.approx(12 * 3968**2 * 64, rel=0.01)
    captions = shapes["captions"]
    tables = {name: leaf.shape[0] for name, leaf in captions.items()}
    tables |= {name: shapes[name].shape[0] for name in ("codes", "rows", "columns")}
    assert tables == {
        "tokens": 16384,
        "padding": 256,
        "positions": 256,
        "codes": 8192,
        "rows": 32,
        "columns": 32,
    }


MIN_DALLE = {
    "attention": ("full",),
    "start_of_image": False,
    "image_positions": "table",
    "pad_token": 2,
    "head_bias": False,
}


def test_min_dalle_has_its_number_of_parameters():
    """1.3 billion by its README; 1.291 by its config: 42 layers of 1,536, 24 heads, 64 + 256."""
    sizes = {"width": 1536, "depth": 42, "heads": 24, "context": 64, "vocab_size": 16384}
    cfg = DalleConfig(**sizes, grid=16, code_count=16384, **{**MIN_DALLE, "pad_token": 0})
    inputs = (jnp.zeros((1, 64), int), jnp.ones((1, 64), bool), jnp.zeros((1, 256), int))
    plan = Patterns(*patterns.plan(["full"] * 42, context=64, grid=16, kernel=3))
    shapes = probes.shapes(Dalle(cfg), *inputs, patterns=plan)
    assert probes.count(shapes) == pytest.approx(1.291e9, rel=0.01)


def test_without_a_start_of_image_the_last_token_predicts_code_0():
    module = Dalle(dataclasses.replace(TINY, **MIN_DALLE))
    plan = layout("full", "full")
    variables = probes.random_variables(module, TOKENS, MASK, CODES, patterns=plan)

    @jax.jit
    def both(variables, tokens, mask):
        run = functools.partial(module.apply, variables, patterns=plan)
        logits, cache = run(tokens, mask, method=Dalle.start)
        rows = [logits]
        for index in range(8):
            code = CODES[:, index]
            logits, cache = run(code, cache, index=jnp.int32(index), method=Dalle.step)
            rows.append(logits)
        return run(tokens, mask, CODES), jnp.stack(rows, axis=1)

    whole, decode_with_cache = both(variables, TOKENS, MASK)
    np.testing.assert_allclose(decode_with_cache, whole.codes, atol=1e-5, rtol=1e-5)
    output, _ = both(variables, TOKENS.at[1, 2].set(2), MASK | True)  # the padding token itself
    jax.tree.map(np.testing.assert_array_equal, output, whole)


@pytest.mark.parametrize("pattern", patterns.PATTERNS)
def test_one_layer_sees_what_its_mask_says_and_nothing_else(variables, pattern):
    run = functools.partial(jit_apply(1, (pattern,)), variables[1], TOKENS, MASK)
    before, grid = run(CODES), patterns.grid_mask(pattern, grid=3, kernel=3)
    for j in range(8):
        after = run(CODES.at[:, j].add(1) % 7)
        changes = np.any(np.asarray(after.codes != before.codes), axis=(0, 2))
        np.testing.assert_array_equal(changes, grid[:, j + 1])  # code j is read by state j + 1
        np.testing.assert_array_equal(after.text, before.text)
    assert np.array_equal(run(CODES.at[:, 8].add(1) % 7).codes, before.codes)


def test_tokens_are_causal_and_padding_is_a_vector_of_its_place(variables):
    run = functools.partial(jit_apply(1, ("row",)), variables[1])
    before = run(TOKENS, MASK, CODES)
    after = run(TOKENS.at[0, 1].add(1), MASK, CODES)
    changes = np.any(np.asarray(after.text != before.text), axis=2)
    np.testing.assert_array_equal(changes, [[False, True], [False, False]])
    assert np.all(np.any(np.asarray(after.codes != before.codes), axis=2)[0])
    hidden = run(TOKENS.at[1, 2].set(5), MASK, CODES)
    jax.tree.map(np.testing.assert_array_equal, hidden, before)
    shorter = run(TOKENS, MASK.at[0, 2].set(False), CODES)
    assert np.any(np.asarray(shorter.codes[0] != before.codes[0]))


@pytest.mark.parametrize("names", [("row", "column"), ("convolution", "full")])
def test_cached_steps_equal_one_pass(variables, names):
    module, plan = Dalle(TINY), layout(*names)

    @jax.jit
    def decode_with_cache(variables):
        options = {"patterns": plan}

        def step(cache, index):
            code = CODES[:, index]
            logits, cache = module.apply(
                variables, code, cache, index=index, **options, method=Dalle.step
            )
            return cache, logits

        first, cache = module.apply(variables, TOKENS, MASK, **options, method=Dalle.start)
        _, others = jax.lax.scan(step, cache, jnp.arange(8))
        return jnp.concatenate([first[:, None], others.swapaxes(0, 1)], axis=1)

    expected = jit_apply(2, names)(variables[2], TOKENS, MASK, CODES).codes
    np.testing.assert_allclose(decode_with_cache(variables[2]), expected, atol=1e-5, rtol=1e-5)


def test_states_carry_row_and_column_of_the_code_that_they_predict(variables):
    places = jax.jit(lambda v: Dalle(TINY).apply(v, method=Dalle._places))(variables[1])
    p = variables[1]["params"]
    np.testing.assert_allclose(places[5], p["rows"][1] + p["columns"][2], atol=1e-6)
