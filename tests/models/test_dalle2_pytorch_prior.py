"""The prior of DALLE2-pytorch and MindEye2 in NumPy; tests/convert compares it with the originals.

The reference is written with float64 loops over rows, heads and positions.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models import probes
from unclip_jax.core.checks import UserError
from unclip_jax.models.dalle2_pytorch_prior import (
    Dalle2PytorchConfig,
    Dalle2PytorchNetwork,
    Gain,
    distance_buckets,
    rotated,
)

WIDTH, STEPS = 8, 10
RNG = np.random.default_rng(0)
T = np.array([2, 7])
FEATURES = RNG.normal(size=(2, 3, WIDTH))
MASK = np.array([[1, 1, 0], [1, 0, 0]], bool)
DALLE2 = Dalle2PytorchConfig(
    2, 2, 4, 1.5, context=3, time_table=False, text_tokens=2, time_tokens=2
)
MINDEYE = {"depth": 1, "heads": 2, "head_dim": 4, "causal": False, "norm_hidden": True}


def wide(tree):
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tree)


def outputs(cfg, x_t, z, **options):
    """Random parameters in float64, and the output of the network under them."""
    module = Dalle2PytorchNetwork(cfg, x_t.shape[1], WIDTH, STEPS)
    x_t, condition = jnp.asarray(x_t, jnp.float32), jnp.asarray(z, jnp.float32)
    variables = probes.random_variables(module, x_t, jnp.asarray(T), condition=condition)
    out = probes.apply(module, variables, x_t, jnp.asarray(T), condition=condition, **options)
    return wide(variables["params"]), out


def silu(x):
    return x / (1 + np.exp(-x))


def norm(x, gain, stable=False):
    x = x / x.max(-1, keepdims=True) if stable else x
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * gain


def rotate(x, position, size=32):
    """RoFormer (arXiv 2104.09864), equation 14: pairs of features are complex numbers."""
    size = min(size, len(x))
    rates = 10000.0 ** (-np.arange(0, size, 2) / size)
    z = (x[0:size:2] + 1j * x[1:size:2]) * np.exp(1j * position * rates)
    return np.concatenate([np.stack([z.real, z.imag], -1).reshape(-1), x[size:]])


def bucket(query, key):
    """T5 (arXiv 1910.10683): 16 exact distances, then logarithmic ones up to 128."""
    distance = max(query - key, 0)
    if distance < 16:
        return distance
    return min(16 + int(math.log(distance / 16) / math.log(128 / 16) * 16), 31)


def attend(x, p, distances, cfg):
    x = norm(x, p["norm"]["scale"])
    out = np.zeros((len(x), cfg.heads * cfg.head_dim))
    keys, values = np.split(x @ p["kv"]["kernel"], 2, axis=-1)
    queries = (x @ p["q"]["kernel"]).reshape(len(x), cfg.heads, -1)
    if cfg.rotary:
        keys = np.stack([rotate(key, i) for i, key in enumerate(keys)])
    keys = np.concatenate([p["null_kv"][:1], keys])
    values = np.concatenate([p["null_kv"][1:], values])
    for i, n in np.ndindex(len(x), cfg.heads):
        query = rotate(queries[i, n], i) if cfg.rotary else queries[i, n]
        cosines = keys @ query / np.linalg.norm(keys, axis=-1) / np.linalg.norm(query)
        # key 0 is the null key, so that token j is key j + 1
        scores = 16 * cosines + [distances[bucket(i, j), n] for j in range(len(keys))]
        scores[i + 2 if cfg.causal else len(keys) :] = -np.inf
        weights = np.exp(scores - scores.max())
        out[i, n * cfg.head_dim : (n + 1) * cfg.head_dim] = weights / weights.sum() @ values
    return norm(out @ p["out"]["kernel"], p["norm_out"]["scale"])


def mlp(x, p, cfg):
    x, gate = np.split(norm(x, p["norm"]["scale"]) @ p["fc_1"]["kernel"], 2, axis=-1)
    x = x * silu(gate)
    x = norm(x, p["norm_hidden"]["scale"]) if cfg.norm_hidden else x
    return x @ p["fc_2"]["kernel"]


def transform(x, p, cfg):
    x = norm(x, p["norm_in"]["scale"]) if cfg.norm_in else x
    for i in range(cfg.depth):
        x = x + attend(x, p[f"attention_{i}"], p["distances"], cfg)
        x = x + mlp(x, p[f"mlp_{i}"], cfg)
    x = norm(x, p["norm_out"]["scale"], stable=True) if cfg.norm_out else x
    return x @ p["out"]["kernel"] if cfg.project else x


def linear(x, p):
    return x @ p["kernel"] + p["bias"]


def timestep(t, p, cfg):
    if cfg.time_table:
        return p["time_table"][t].reshape(cfg.time_tokens, WIDTH)
    rates = [10000.0 ** (-i / (WIDTH // 2 - 1)) for i in range(WIDTH // 2)]
    x = np.concatenate([np.sin(t * np.array(rates)), np.cos(t * np.array(rates))])
    x = silu(linear(silu(linear(x, p["time_0"])), p["time_1"]))
    return linear(x, p["time_2"]).reshape(cfg.time_tokens, WIDTH)


@pytest.mark.parametrize("case", ["everything", "no mask", "no features", "some is dropped"])
def test_the_network_of_dalle2_pytorch_by_hand(case):
    """[features, z_txt, timestep, noised z_img, query]; the prediction is at the query."""
    x_t, z = RNG.normal(size=(2, 2, 1, WIDTH))
    inputs = {"features": jnp.asarray(FEATURES, jnp.float32), "features_mask": jnp.asarray(MASK)}
    real, keep, keep_features = MASK, [True, True], [True, True]
    if case == "no mask":
        inputs.pop("features_mask")
        real = np.ones((2, 3), bool)
    elif case == "no features":
        inputs, real = {}, np.zeros((2, 3), bool)
    elif case == "some is dropped":
        keep, keep_features = [False, False], [True, False]
        inputs |= {"keep": jnp.array(keep), "keep_features": jnp.array(keep_features)}
    p, got = outputs(DALLE2, x_t, z, **inputs)
    assert got.shape == (2, 1, WIDTH)
    assert [p[f"time_{i}"]["kernel"].shape for i in range(3)] == [(8, 32), (32, 32), (32, 16)]
    assert p["mlp_0"]["fc_1"]["kernel"].shape == (8, 24)  # two halves of 1.5 times the width
    assert p["mlp_1"]["fc_2"]["kernel"].shape == (12, 8)
    for b in range(2):
        features = np.where(real[b][:, None] & keep_features[b], FEATURES[b], p["null_features"])
        text = linear(z[b, 0], p["text_in"]).reshape(2, WIDTH) if keep[b] else p["null_condition"]
        noised = x_t[b] if keep[b] or keep_features[b] else p["null_image"]
        time, query = timestep(T[b], p, DALLE2), p["query"][None]
        slots = np.concatenate([features, text, time, noised, query])
        want = transform(slots, p, DALLE2)[-1:]
        np.testing.assert_allclose(got[b], want, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("queries", ["tokens", "positions", "all_positions", "none"])
def test_the_network_of_mindeye_by_hand(queries):
    """[condition, timestep, noised target, queries]; the prediction is at the last tokens."""
    cfg = Dalle2PytorchConfig(**MINDEYE, queries=queries, norm_in=True, project=queries == "none")
    x_t, z = RNG.normal(size=(2, 2, 3, WIDTH))
    keep = np.array([True, False])
    p, got = outputs(cfg, x_t, z, keep=jnp.asarray(keep))
    for b in range(2):
        condition, noised = (z[b], x_t[b]) if keep[b] else (p["null_condition"], p["null_image"])
        noised = noised + p["query"] if queries == "positions" else noised
        slots = [condition, timestep(T[b], p, cfg), noised]
        slots = np.concatenate([*slots, p["query"]] if queries == "tokens" else slots)
        slots = slots + p["query"] if queries == "all_positions" else slots
        want = transform(slots, p, cfg)[-3:]
        np.testing.assert_allclose(got[b], want, atol=2e-4, rtol=1e-3)


def test_several_tokens_of_the_image_come_from_one_vector():
    cfg = Dalle2PytorchConfig(1, 2, 4, image_tokens=2, rotary=False, norm_out=False)
    x_t, z = RNG.normal(size=(2, 2, 1, WIDTH))
    p, got = outputs(cfg, x_t, z)
    for b in range(2):
        noised = linear(x_t[b, 0], p["image_in"]).reshape(2, WIDTH)
        slots = [z[b], timestep(T[b], p, cfg), noised, p["query"][None]]
        want = transform(np.concatenate(slots), p, cfg)[-1:]
        np.testing.assert_allclose(got[b], want, atol=2e-4, rtol=1e-3)


def test_distances_fall_into_the_buckets_of_t5():
    rows = distance_buckets(200)
    assert rows.shape == (200, 201) and rows.max() == 31
    for query, key in ((0, 0), (5, 7), (15, 0), (16, 0), (40, 3), (100, 10), (127, 0), (199, 0)):
        assert rows[query, key] == bucket(query, key), (query, key)
    assert [int(i) for i in np.flatnonzero(np.diff(rows[:, 0]))] == [
        *range(16),
        *(math.ceil(16 * 8 ** (i / 16)) - 1 for i in range(1, 16)),
    ]


def test_at_most_32_features_are_rotated():
    x = RNG.normal(size=(1, 5, 1, 40))
    got = rotated(jnp.asarray(x, jnp.float32))
    want = np.stack([rotate(x[0, i, 0], i) for i in range(5)])
    np.testing.assert_allclose(got[0, :, 0], want, atol=1e-5)
    np.testing.assert_array_equal(got[..., 32:], np.float32(x[..., 32:]))


def test_the_stable_norm_has_no_overflow():
    x = jnp.asarray([[1e30, 2e30, 4e30]], jnp.float32)
    variables = {"params": {"scale": jnp.ones(3)}}
    got = Gain(stable=True).apply(variables, x)
    np.testing.assert_allclose(got[0], norm(np.array([1.0, 2.0, 4.0]), 1.0, stable=True), rtol=1e-5)


def test_features_of_another_length_or_of_no_use_are_rejected():
    x_t = z = np.zeros((2, 1, WIDTH))
    features = jnp.zeros((2, 4, WIDTH))
    with pytest.raises(UserError, match=r"features have shape \[4, 8\]; this prior takes \[3, 8\]"):
        outputs(DALLE2, x_t, z, features=features)
    none = Dalle2PytorchConfig(1, 2, 4)
    with pytest.raises(UserError, match="reads no caption features; leave them out"):
        outputs(none, x_t, z, features=features)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"queries": "first"}, "unknown dalle2_pytorch.queries 'first'"),
        ({"heads": 0}, "dalle2_pytorch.heads is 0; it must be greater than 0"),
    ],
)
def test_mistaken_configs_are_rejected(changes, message):
    with pytest.raises(UserError, match=message):
        Dalle2PytorchConfig(**{"depth": 1, "heads": 2, "head_dim": 4, **changes})
