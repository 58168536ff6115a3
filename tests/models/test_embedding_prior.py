"""Networks of the prior between embedding spaces, in NumPy but for their transformer."""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models import probes
from unclip_jax.backbones.transformer import Transformer
from unclip_jax.core.checks import UserError
from unclip_jax.models import embedding_prior
from unclip_jax.models.condition_encoder import ConditionEncoder, EncoderConfig
from unclip_jax.models.condition_tokens import ConditionConfig
from unclip_jax.models.embedding_codes import EmbeddingCodes
from unclip_jax.models.embedding_prior import EmbeddingPrior, EmbeddingPriorConfig, Regressor
from unclip_jax.models.pca_quantizer import PcaQuantizerConfig

VECTOR, SEQUENCE, IDS = (
    ConditionConfig("v", (4,)),
    ConditionConfig("s", (3, 5), ragged=True),
    ConditionConfig("ids", (3,), vocab_size=7),
)
CFG = EmbeddingPriorConfig(
    conditions=(VECTOR, SEQUENCE, IDS),
    target=(2, 6),
    width=8,
    depth=1,
    heads=2,
    ragged=True,
    vector_tokens=2,
)
LONE = EmbeddingPriorConfig(
    (VECTOR,), (6,), 8, 1, 2, causal=False, queries=False, ridge=False, skips=False
)
RNG = np.random.default_rng(0)
CONDITIONS = {
    "v": RNG.normal(size=(3, 4)),
    "s": RNG.normal(size=(3, 3, 5)),
    "ids": np.array([[6, 2, -1], [0, -1, -1], [1, 3, 5]]),
}
MASKS = {
    "s": np.array([[1, 1, 0], [1, 0, 0], [1, 1, 1]], bool),
    "y": np.array([[1, 1], [1, 0], [1, 1]], bool),
}
X_T, RIDGE = RNG.normal(size=(2, 3, 2, 6))
T = np.array([3, 700, 250])
KEEP = np.array([[1, 1, 1], [1, 0, 1], [0, 1, 0]], bool)


def single(tree):
    """Arrays of JAX, whose numbers have 32 bits."""
    return jax.tree.map(jnp.asarray, tree)


def wide(tree):
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tree)


def linear(x, p):
    return x @ p["kernel"] + p["bias"]


def norm(x, p):
    y = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    return y * p["scale"] + p["bias"]


def gelu(x):
    return x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))) / 2


def silu(x):
    return x / (1 + np.exp(-x))


def transformer_inputs(module, *args, **kwargs):
    """Parameters, the transformer's inputs, and the output if it returns them unchanged."""
    variables = probes.random_variables(module, *args, **kwargs)
    calls = []

    def intercept(call, args, kwargs, context):
        if isinstance(context.module, Transformer) and context.method_name == "__call__":
            calls.append(args[0])
            return args[0]
        return call(*args, **kwargs)

    @jax.jit
    def run(variables):
        with nn.intercept_methods(intercept):
            out = module.apply(variables, *args, **kwargs)
        (slots,) = calls
        return slots, out

    return wide(variables["params"]), *run(variables)


def tokens_of(p, row, *, keep=(True,) * 3, count=2):
    """Tokens of the three conditions of one example; nulls where there is nothing."""
    v = linear(CONDITIONS["v"][row], p["v_in"]).reshape(count, 8) if keep[0] else p["null_v"]
    s = linear(CONDITIONS["s"][row], p["s_in"])
    s = np.where(MASKS["s"][row][:, None] & keep[1], s, p["null_s"])
    ids = CONDITIONS["ids"][row]
    table = p["ids_table"][np.maximum(ids, 0)]
    return [v, s, np.where((ids >= 0)[:, None] & keep[2], table, p["null_ids"])]


def timestep(t, p, width=8):
    rates = 10000.0 ** (-np.arange(width // 2) / (width // 2))
    x = np.concatenate([np.cos(t * rates), np.sin(t * rates)])
    return linear(silu(linear(x, p["linear_1"])), p["linear_2"])


@pytest.mark.parametrize("keep", [None, KEEP])
def test_the_slots_of_the_transformer_and_the_skips_by_hand(keep):
    options = {"conditions": CONDITIONS, "masks": MASKS, "ridge": RIDGE}
    options |= {} if keep is None else {"keep": keep}
    p, slots, out = transformer_inputs(EmbeddingPrior(CFG), *single((X_T, T)), **single(options))
    for b in range(3):
        keep_row = np.ones(3, bool) if keep is None else keep[b]
        time, ridge = timestep(T[b], p["time"]), RIDGE[b] if keep_row.all() else np.zeros((2, 6))
        noised = linear(X_T[b], p["x_t_in"])
        noised = noised + (linear(ridge, p["ridge_in"]) if keep_row.all() else p["null_ridge"])
        noised = np.where(MASKS["y"][b][:, None], noised, p["padding"])
        parts = [*tokens_of(p, b, keep=keep_row), time[None], noised, p["queries"]]
        want = np.concatenate(parts) + p["positions"]
        np.testing.assert_allclose(slots[b], want, atol=1e-4)
        scales = np.split(linear(silu(time), p["skips"]), 2)
        want = linear(norm(want[-2:], p["final_norm"]), p["out"])
        want = want + scales[0] * X_T[b] + scales[1] * ridge
        np.testing.assert_allclose(out[b], want, atol=1e-3)


def test_without_queries_the_noised_tokens_are_read():
    x_t, conditions = X_T[:, 0], {"v": CONDITIONS["v"]}
    options = single({"conditions": conditions, "masks": {}})
    p, slots, out = transformer_inputs(EmbeddingPrior(LONE), *single((x_t, T)), **options)
    for b in range(3):
        noised = linear(x_t[b], p["x_t_in"])[None]
        parts = [linear(CONDITIONS["v"][b], p["v_in"])[None], timestep(T[b], p["time"])[None]]
        want = np.concatenate([*parts, noised]) + p["positions"]
        np.testing.assert_allclose(slots[b], want, atol=1e-4)
        want = linear(norm(want[-1], p["final_norm"]), p["out"])
        np.testing.assert_allclose(out[b], want, atol=1e-3)


@pytest.mark.parametrize("causal", [True, False])
def test_slots_see_later_ones_unless_attention_is_causal(causal):
    cfg = dataclasses.replace(CFG, causal=causal, skips=False, ridge=False, ragged=False)
    module, options = EmbeddingPrior(cfg), single({"conditions": CONDITIONS, "masks": MASKS})
    x_t, t = single((X_T, T))
    variables = probes.random_variables(module, x_t, t, **options)

    def slots(x_t):
        _, result = module.apply(
            variables, x_t, t, **options, capture_intermediates=lambda m, _: m.name == "transformer"
        )
        return result["intermediates"]["transformer"]["__call__"][0]

    change = jax.jit(lambda: slots(x_t.at[:, 1].add(1.0)) - slots(x_t))()
    dependence = np.abs(np.asarray(change)).max((0, 2)) > 1e-6
    before = 2 + 3 + 3 + 1 + 1  # conditions, timestep, the first noised token
    assert dependence.tolist() == [not causal] * before + [True] * 3


def test_a_regression_by_hand():
    cfg = dataclasses.replace(CFG, depth=2)
    masks = {**MASKS, "ids": np.array([[1, 1, 1], [1, 1, 1], [1, 0, 1]], bool)}
    options = single({"conditions": CONDITIONS, "masks": masks})
    variables = probes.random_variables(Regressor(cfg), **options)
    p = wide(variables["params"])
    out = probes.apply(Regressor(cfg), variables, **options)
    assert out.shape == (3, 2, 6)
    for b in range(3):
        real = masks["ids"][b] & (CONDITIONS["ids"][b] >= 0)
        ids = p["ids_table"][CONDITIONS["ids"][b][real]].mean(0)
        x = [CONDITIONS["v"][b], CONDITIONS["s"][b][masks["s"][b]].mean(0), ids]
        x = linear(np.concatenate(x), p["input"])
        for i in range(2):
            y = gelu(linear(norm(x, p[f"norm_{i}"]), p[f"fc_{i}_1"]))
            x = x + linear(y, p[f"fc_{i}_2"])
        want = linear(norm(x, p["final_norm"]), p["out"]).reshape(2, 6)
        np.testing.assert_allclose(out[b], want, atol=1e-3, rtol=1e-3)


def test_the_mean_of_no_tokens_is_zero_and_without_a_mask_all_count():
    x = jnp.asarray(CONDITIONS["s"], jnp.float32)
    none = jnp.zeros((3, 3), bool)
    np.testing.assert_array_equal(embedding_prior.masked_mean(x, none), np.zeros((3, 5)))
    np.testing.assert_allclose(
        embedding_prior.masked_mean(x, None), CONDITIONS["s"].mean(1), atol=1e-6
    )


def test_parameters_before_the_fit_are_those_of_no_transformation():
    group = nn.meta.unbox(embedding_prior.unfitted(CFG, features=9))
    assert group.keys() == {"v", "s", "y", "ridge"}  # token ids have no mean
    for name, width in (("v", 4), ("s", 5), ("y", 6)):
        np.testing.assert_array_equal(group[name]["mean"], np.zeros(width))
        np.testing.assert_array_equal(group[name]["std"], np.ones(width))
    sizes = {name: leaf.shape for name, leaf in group["ridge"].items()}
    assert sizes == {"weights": (9, 12), "bias": (12,), "root": (9, 9)}
    assert not any(np.any(leaf) for leaf in group["ridge"].values())
    assert "ridge" not in embedding_prior.unfitted(CFG, features=0)


@pytest.mark.parametrize("keep", [None, KEEP])
def test_inputs_of_the_codes_by_hand(keep):
    """start, code 0, code 1, ... plus positions and the code of the linear prediction."""
    cfg = dataclasses.replace(CFG, codec=PcaQuantizerConfig(components=4, buckets=5), ragged=False)
    codes, ridge = RNG.integers(0, 5, (2, 3, 4))
    options = {"conditions": CONDITIONS, "masks": MASKS, "ridge": ridge}
    options = single(options | ({} if keep is None else {"keep": keep}))
    module = EmbeddingCodes(cfg)
    variables = probes.random_variables(module, jnp.asarray(codes), **options)
    p, calls = wide(variables["params"]), []

    def intercept(call, args, kwargs, context):
        if context.module.name == "latents" and context.method_name == "__call__":
            calls.append(args[:2])
            return args[0], None
        return call(*args, **kwargs)

    @jax.jit
    def run(variables):
        with nn.intercept_methods(intercept):
            out = module.apply(variables, jnp.asarray(codes), **options)
        return *calls[0], out

    own, prefix, out = run(variables)
    for b in range(3):
        keep_row = np.ones(3, bool) if keep is None else keep[b]
        want = np.concatenate(tokens_of(p["prefix"], b, keep=keep_row)) + p["prefix"]["positions"]
        np.testing.assert_allclose(prefix[b], want, atol=1e-4)
        buckets = ridge[b] if keep_row.all() else np.full(4, 5)
        want = np.concatenate([p["start"][None], p["codes"][codes[b, :-1]]])
        want = want + p["positions"] + p["ridge_codes"][buckets]
        np.testing.assert_allclose(own[b], want, atol=1e-4)
        want = linear(norm(want, p["final_norm"]), p["out"])
        np.testing.assert_allclose(out[b], want, atol=1e-3)


def test_codes_one_by_one_have_the_logits_of_all_at_once():
    cfg = dataclasses.replace(CFG, codec=PcaQuantizerConfig(components=4, buckets=5), ragged=False)
    module, codes = EmbeddingCodes(cfg), jnp.asarray(RNG.integers(0, 5, (3, 4)))
    options = {"conditions": CONDITIONS, "masks": MASKS}
    linear = {"keep": jnp.asarray(KEEP), "ridge": jnp.asarray(RNG.integers(0, 5, (3, 4)))}
    variables = probes.random_variables(module, codes, **single(options), **linear)
    whole = probes.apply(module, variables, codes, **single(options), **linear)

    @jax.jit
    def one_by_one(variables):
        logits, cache = module.apply(variables, **single(options), **linear, method="start")
        rows = [logits]
        for i in range(3):
            step = {"index": jnp.int32(i), "method": "step", **linear}
            logits, cache = module.apply(variables, codes[:, i], cache, **step)
            rows.append(logits)
        return jnp.stack(rows, axis=1)

    np.testing.assert_allclose(one_by_one(variables), whole, atol=1e-4)


def test_the_encoder_of_vectors_by_hand():
    cfg = EncoderConfig(width=8, depth=2, tokens=3, subjects=2)
    x, subject = RNG.normal(size=(3, 5)), np.array([1, 0, 1])
    module = ConditionEncoder(cfg, target=6)
    variables = probes.random_variables(module, *single((x, subject)))
    variables["params"]["log_scale"] = jnp.float32(1.5)
    p = wide(variables["params"])
    tokens, projected, scale = probes.apply(module, variables, *single((x, subject)))
    assert float(scale) == pytest.approx(math.exp(1.5))
    for b in range(3):
        h = x[b] @ p["subjects"][subject[b]]
        for i in range(2):
            y = gelu(linear(norm(h, p[f"norm_{i}"]), p[f"fc_{i}_1"]))
            h = h + linear(y, p[f"fc_{i}_2"])
        h = norm(h, p["final_norm"])
        np.testing.assert_allclose(tokens[b], linear(h, p["tokens"]).reshape(3, 8), atol=1e-4)
        np.testing.assert_allclose(projected[b], linear(h, p["projection"]), atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vector_tokens": 0}, "vector_tokens is 0; it must be greater than 0"),
        ({"target": (1, 2, 3)}, r"target is \[1, 2, 3\]; give \[z\] for a vector or"),
        ({"target": (0,)}, r"target is \[0\]; give \[z\]"),
        ({"conditions": ()}, "conditions is empty; give at least one"),
        ({"queries": False}, "queries is False, so the noised tokens are the output, but causal"),
    ],
)
def test_mistaken_configs_are_rejected(changes, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(CFG, **changes)


@pytest.mark.parametrize(
    ("shape", "vocab_size"), [((), 0), ((1, 2, 3), 0), ((3, 4), 7), ((0,), 0), ((2, 0), 0)]
)
def test_conditions_of_other_shapes_are_rejected(shape, vocab_size):
    with pytest.raises(UserError, match="condition 'x' has shape .*; give .* or .* vocab_size"):
        ConditionConfig("x", shape, vocab_size)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": -1}, "config.model.encoder.width is -1"),
        ({"contrastive": -0.1}, "config.model.encoder.contrastive is -0.1"),
        ({"mixup": -1.0}, "config.model.encoder.mixup is -1.0"),
        ({"subjects": 0}, "config.model.encoder.subjects is 0; it must be greater than 0"),
        ({"subjects": 2, "labels": ("a",)}, "labels has 1 labels for 2 subjects"),
    ],
)
def test_mistaken_encoders_are_rejected(changes, message):
    with pytest.raises(UserError, match=message):
        EncoderConfig(**changes)
