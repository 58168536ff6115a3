"""The scanned stack against an unrolled one in NumPy; causality; masks; remat; dtypes."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models import probes
from unclip_jax.backbones import layers
from unclip_jax.backbones.transformer import Transformer, TransformerConfig
from unclip_jax.core.checks import UserError

TINY = TransformerConfig(width=8, depth=3, heads=2, causal=True)
X = np.random.default_rng(0).normal(size=(2, 5, 8)).astype(np.float32)
KEYS = np.array([[1, 1, 0, 1, 0], [0, 0, 0, 0, 0]], bool)


@pytest.fixture(scope="module")
def variables():
    return probes.random_variables(Transformer(TINY), jnp.asarray(X))


def run(variables, x=X, mask=None, **changes):
    module = Transformer(dataclasses.replace(TINY, **changes))
    return module.apply(variables, jnp.asarray(x), None if mask is None else jnp.asarray(mask))


def norm(x, p):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * p["scale"] + p["bias"]


def linear(x, p):
    return x @ p["kernel"] + p["bias"]


def forward_by_hand(params, x, visible, *, heads, quick):
    """The stack, one layer after another with the parameters cut out of the stack, in float64."""
    stacked = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params["params"]["blocks"])
    x = x.astype(np.float64)
    for layer in range(TINY.depth):
        p = jax.tree.map(lambda leaf, layer=layer: leaf[layer], stacked)
        y = norm(x, p["norm_1"])
        split = {n: linear(y, p["attention"][n]).reshape(*x.shape[:2], heads, -1) for n in "qkv"}
        scores = np.einsum("blnk,bmnk->bnlm", split["q"], split["k"])
        scores = np.where(visible[:, None], scores / math.sqrt(x.shape[-1] / heads), -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        y = np.einsum("bnlm,bmnk->blnk", weights, split["v"]).reshape(x.shape)
        x = x + linear(y, p["attention"]["out"])
        y = linear(norm(x, p["norm_2"]), p["mlp"]["fc_1"])
        erf = np.vectorize(math.erf)
        y = y / (1 + np.exp(-1.702 * y)) if quick else y * (1 + erf(y / math.sqrt(2))) / 2
        x = x + linear(y, p["mlp"]["fc_2"])
    return x


def turns(function, *arguments):
    """Returns the number of times that the body of the scan in a function is run."""
    jaxpr = jax.make_jaxpr(function)(*arguments).jaxpr
    (scan,) = [eqn for eqn in jaxpr.eqns if eqn.primitive.name == "scan"]
    return scan.params["length"] // scan.params["unroll"]


def test_small_stacks_are_unrolled_and_all_others_scanned(variables, monkeypatch):
    def stack(remat):
        module = Transformer(dataclasses.replace(TINY, remat=remat))
        return turns(module.apply, variables, X)

    assert [stack(remat) for remat in ("none", "block")] == [1, TINY.depth]
    monkeypatch.setattr(layers, "UNROLLED", TINY.depth - 1)
    assert stack("none") == TINY.depth


@pytest.mark.parametrize("unrolled_up_to", [0, 8])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_the_scan_is_the_unrolled_stack(variables, causal, masked, unrolled_up_to, monkeypatch):
    monkeypatch.setattr(layers, "UNROLLED", unrolled_up_to)
    visible = np.ones((2, 5, 5), bool)
    if masked:
        visible &= KEYS[:, None, :]
        visible |= np.eye(5, dtype=bool)  # a token always sees itself
    if causal:
        visible &= np.tril(np.ones((5, 5), bool))
    want = forward_by_hand(variables, X, visible, heads=2, quick=False)
    got = run(variables, mask=KEYS if masked else None, causal=causal)
    np.testing.assert_allclose(got, want, atol=1e-5, rtol=1e-5)


def test_quick_gelu_can_be_selected(variables):
    visible = np.tril(np.ones((2, 5, 5), bool))
    want = forward_by_hand(variables, X, visible, heads=2, quick=True)
    np.testing.assert_allclose(run(variables, activation="quick_gelu"), want, atol=1e-5, rtol=1e-5)


def test_causal_token_i_depends_on_0_to_i_exactly(variables):
    slopes = jax.jacobian(lambda x: run(variables, x).sum(-1)[0])(jnp.asarray(X))[:, 0]
    depends = np.abs(np.asarray(slopes)).sum(-1) > 0
    np.testing.assert_array_equal(depends, np.tril(np.ones((5, 5), bool)))


def test_masked_tokens_affect_only_themselves(variables):
    slopes = jax.jacobian(lambda x: run(variables, x, KEYS, causal=False).sum(-1)[0])
    depends = np.abs(np.asarray(slopes(jnp.asarray(X))[:, 0])).sum(-1) > 0
    np.testing.assert_array_equal(depends, KEYS[:1] | np.eye(5, dtype=bool))


@pytest.mark.parametrize("remat", ["block", "dots"])
def test_remat_changes_no_gradient(variables, remat):
    def loss(params, policy):
        return (run(params, remat=policy) ** 2).sum()

    want = jax.grad(loss)(variables, "none")
    got = jax.grad(loss)(variables, remat)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-4), got, want)


def test_remat_stores_less(variables):
    """The backward pass keeps most without remat, less with "dots", and least with "block"."""
    stored = {}
    for policy in ("none", "dots", "block"):
        module = Transformer(dataclasses.replace(TINY, remat=policy))
        _, pull = jax.vjp(lambda v, m=module: m.apply(v, jnp.asarray(X)), variables)
        stored[policy] = sum(leaf.size for leaf in jax.tree.leaves(pull))
    assert stored["block"] < stored["dots"] < stored["none"]


def test_half_precision_keeps_float32_parameters(variables):
    module = Transformer(dataclasses.replace(TINY, dtype="bfloat16"))
    case = probes.shapes(module, jnp.asarray(X))
    assert {leaf.dtype for leaf in jax.tree.leaves(case)} == {jnp.dtype("float32")}
    half = run(variables, dtype="bfloat16")
    assert half.dtype == jnp.bfloat16
    exact = np.asarray(run(variables))
    assert np.abs(np.asarray(half, np.float32) - exact).max() < 0.05 * np.abs(exact).max()


def test_parameters_are_stacked_and_counted():
    """12 d^2 + 13 d per layer: four d x d maps, two of d x 4d, their biases, two norms."""
    case = probes.shapes(Transformer(TINY), jnp.asarray(X))
    assert all(leaf.shape[0] == TINY.depth for leaf in jax.tree.leaves(case))
    assert probes.count(case) == TINY.depth * (12 * 8**2 + 13 * 8)


def test_initial_deviations_are_those_of_clip():
    module = Transformer(dataclasses.replace(TINY, width=128, depth=2))
    block = probes.fresh(module, jnp.zeros((1, 2, 128)))["params"]["blocks"]
    residual = (128 * 2 * 2) ** -0.5
    for part, name, want in (
        ("attention", "q", 128**-0.5),
        ("attention", "out", residual),
        ("mlp", "fc_1", 256**-0.5),
        ("mlp", "fc_2", residual),
    ):
        kernel = np.asarray(block[part][name]["kernel"])
        assert kernel.std() == pytest.approx(want, rel=0.02)
        # every layer has its own draw
        assert np.abs(kernel[0] - kernel[1]).max() > want


def test_the_hidden_width_is_rounded():
    assert TransformerConfig(width=10, depth=1, heads=1, causal=False, mlp_ratio=2.67).hidden == 27


def test_heads_must_divide_the_width():
    with pytest.raises(UserError, match="transformer width is 8, which 3 does not divide; choose"):
        probes.shapes(Transformer(dataclasses.replace(TINY, heads=3)), jnp.asarray(X))
