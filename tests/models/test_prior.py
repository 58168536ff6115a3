"""The prior's sequence: who sees whom, what is dropped, what the query may see."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models import probes
from unclip_jax.backbones.transformer import Transformer
from unclip_jax.core.checks import UserError
from unclip_jax.models.prior import EXTRA, Prior, PriorConfig

TINY = PriorConfig(embed_dim=6, width=8, depth=2, heads=2, context=4, vocab_size=11)
RNG = np.random.default_rng(0)
X_T = jnp.asarray(RNG.normal(size=(2, 6)), jnp.float32)
T = jnp.array([3, 700])
INPUTS = {
    "tokens": jnp.array([[9, 3, 10, 0], [9, 1, 2, 10]]),
    "token_mask": jnp.array([[1, 1, 1, 0], [1, 1, 1, 1]], bool),
    "z_txt": jnp.asarray(RNG.normal(size=(2, 6)), jnp.float32),
}
SEQUENCE = {"text_seq": jnp.asarray(RNG.normal(size=(2, 4, 5)), jnp.float32)}
KARLO = {"caption": "clip_sequence", "clip_text_width": 5, "padding": "mask"}
READINGS = [({}, {}), ({"padding": "mask"}, {}), (KARLO, SEQUENCE)]
READING = pytest.mark.parametrize(("changes", "extra"), READINGS, ids=["own", "masked", "clip"])


def build(**changes):
    return Prior(dataclasses.replace(TINY, **changes))


def random_variables(changes, extra):
    return probes.random_variables(build(**changes), X_T, T, **{**INPUTS, **extra})


def run(variables, changes, extra, x_t=X_T, t=T, **inputs):
    return build(**changes).apply(variables, x_t, t, **{**INPUTS, **extra, **inputs})


@pytest.fixture(scope="module")
def plain():
    return random_variables({}, {})


def test_the_sequence_is_caption_z_txt_time_x_t_query(plain, monkeypatch):
    """The transformer's input is checked slot by slot, less the learned positions."""
    calls = []
    call = Transformer.__call__

    def record(self, x, *args):
        calls.append(np.asarray(x, np.float64))
        assert self.cfg.causal
        return call(self, x, *args)

    monkeypatch.setattr(Transformer, "__call__", record)
    run(plain, {}, {})
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), plain["params"])
    x = calls[0] - p["positions"]
    assert x.shape == (2, 4 + EXTRA, 8)
    np.testing.assert_allclose(x[0, :3], p["captions"]["tokens"][[9, 3, 10]], atol=1e-5)
    np.testing.assert_allclose(x[0, 3], p["captions"]["padding"][3], atol=1e-5)
    text = np.asarray(INPUTS["z_txt"]) @ p["z_txt_in"]["kernel"] + p["z_txt_in"]["bias"]
    np.testing.assert_allclose(x[:, 4], text, atol=1e-5)
    half = np.asarray(T)[:, None] * 10000.0 ** (-np.arange(4) / 4)
    time = np.concatenate([np.cos(half), np.sin(half)], -1)
    time = time @ p["time"]["linear_1"]["kernel"] + p["time"]["linear_1"]["bias"]
    time = time / (1 + np.exp(-time))
    time = time @ p["time"]["linear_2"]["kernel"] + p["time"]["linear_2"]["bias"]
    np.testing.assert_allclose(x[:, 5], time, atol=1e-4)
    image = np.asarray(X_T) @ p["x_t_in"]["kernel"] + p["x_t_in"]["bias"]
    np.testing.assert_allclose(x[:, 6], image, atol=1e-5)
    np.testing.assert_allclose(x[:, 7], np.stack([p["query"]] * 2), atol=1e-5)


def test_causality_and_the_query_sees_everything(plain):
    """Gradients of every slot with respect to every learned position: a lower triangle."""

    def slots(positions):
        params = {**plain["params"], "positions": positions}
        _, state = build().apply(
            {"params": params}, X_T, T, **INPUTS, capture_intermediates=is_stack, mutable=True
        )
        return state["intermediates"]["transformer"]["__call__"][0][0].sum(-1)

    def is_stack(module, _):
        return isinstance(module, Transformer)

    slopes = np.asarray(jax.jacobian(slots)(plain["params"]["positions"]))
    depends = np.abs(slopes).sum(-1) > 0
    np.testing.assert_array_equal(depends, np.tril(np.ones((8, 8), bool)))
    assert depends[-1].all()


@READING
def test_ids_at_padding_change_nothing(changes, extra):
    variables = random_variables(changes, extra)
    mask = INPUTS["token_mask"]
    other = {"tokens": jnp.where(mask, INPUTS["tokens"], 7)}
    if extra:
        other["text_seq"] = jnp.where(mask[..., None], extra["text_seq"], 9.0)
    got = run(variables, changes, {}, **{**extra, **other})
    np.testing.assert_array_equal(got, run(variables, changes, extra))


@READING
def test_dropped_text_is_gone_and_its_nulls_learn(changes, extra):
    variables = random_variables(changes, extra)
    inputs = {"z_txt": INPUTS["z_txt"], **extra}
    nobody = jnp.zeros(2, bool)

    def loss(variables, x_t, inputs):
        return (run(variables, changes, inputs, x_t, keep_text=nobody) ** 2).sum()

    slopes, image, text = jax.grad(loss, (0, 1, 2))(variables, X_T, inputs)
    for leaf in jax.tree.leaves(text):
        np.testing.assert_array_equal(leaf, 0.0)
    other = {"tokens": INPUTS["tokens"] + 0 * 1, "token_mask": ~INPUTS["token_mask"]}
    other["tokens"] = jnp.flip(other["tokens"], axis=1)
    np.testing.assert_array_equal(
        run(variables, changes, extra, keep_text=nobody, **other),
        run(variables, changes, extra, keep_text=nobody),
    )
    # x_t is never dropped
    assert (np.abs(np.asarray(image)).max(-1) > 0).all()
    slopes = slopes["params"]
    assert np.abs(slopes["null_z_txt"]).max() > 0
    if changes.get("padding") != "mask":
        assert (np.abs(slopes["captions"]["padding"]).max(-1) > 0).all()


def test_each_row_drops_for_itself(plain):
    got = run(plain, {}, {}, keep_text=jnp.array([True, False]))
    conditional = run(plain, {}, {})
    unconditional = run(plain, {}, {}, keep_text=jnp.array([False, False]))
    np.testing.assert_allclose(
        got, jnp.stack([conditional[0], unconditional[1]]), rtol=1e-5, atol=1e-6
    )
    assert np.abs(np.asarray(conditional - unconditional)).max(-1).min() > 1e-3
    np.testing.assert_array_equal(run(plain, {}, {}, keep_text=jnp.ones(2, bool)), conditional)


def test_masked_padding_affects_no_output():
    changes = {"padding": "mask"}
    variables = random_variables(changes, {})
    slopes = jax.grad(lambda v: (run(v, changes, {}) ** 2).sum())(variables)
    np.testing.assert_array_equal(slopes["params"]["captions"]["padding"], 0.0)


@pytest.mark.parametrize("remat", ["block", "dots"])
def test_remat_changes_no_gradient(plain, remat):
    def loss(variables, policy):
        return (run(variables, {"remat": policy}, {}) ** 2).sum()

    want, got = (jax.grad(loss)(plain, policy) for policy in ("none", remat))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), got, want)


def test_half_precision_keeps_float32_parameters_and_output(plain):
    case = probes.shapes(build(dtype="bfloat16"), X_T, T, **INPUTS)
    assert {leaf.dtype for leaf in jax.tree.leaves(case)} == {jnp.dtype("float32")}
    got, want = run(plain, {"dtype": "bfloat16"}, {}), run(plain, {}, {})
    assert got.dtype == jnp.float32
    assert 0 < np.abs(np.asarray(got - want)).max() < 0.05 * np.abs(np.asarray(want)).max()


def test_the_prior_of_the_paper_has_1_21_billion_parameters():
    """Table 3 rounds to 1B. The transformer is 1.21B; what feeds it adds 1.3 % (no token table)."""
    cfg = probes.paper("prior")
    assert (cfg.width, cfg.depth, cfg.heads, cfg.context) == (2048, 24, 32, 256)
    slots = jnp.zeros((1, 256), jnp.int32)
    z = jnp.zeros((1, 1024))
    case = probes.shapes(
        Prior(cfg), z, slots[:, 0], tokens=slots, token_mask=slots.astype(bool), z_txt=z
    )
    assert case["captions"].pop("tokens").shape == (cfg.vocab_size, 2048)
    assert probes.count(case["transformer"]) == pytest.approx(1.21e9, rel=0.01)
    d = 2048
    projections = 2 * (1024 * d + d) + (d * 1024 + 1024)  # z_txt and x_t in, x_0 out
    time = 2 * (d * d + d)
    vectors = (256 + 4) * d + 256 * d + d + 1024  # positions, padding, query, null z_txt
    final_norm = 2 * d
    stack = 24 * (12 * d * d + 13 * d)
    assert probes.count(case) == stack + projections + time + vectors + final_norm


def test_mistaken_configs_are_rejected():
    with pytest.raises(UserError, match=r"unknown prior.caption 'token'. Did you mean 'tokens'"):
        build(caption="token")
    with pytest.raises(UserError, match=r"unknown prior.padding 'masked'. Did you mean 'mask'"):
        build(padding="masked")
    with pytest.raises(UserError, match=r"'clip_sequence' needs prior.clip_text_width"):
        build(caption="clip_sequence")
    with pytest.raises(UserError, match=r"prior.clip_text_width is 0; it must be greater than 0"):
        build(caption="clip_sequence", clip_text_width=0)


def test_mistaken_inputs_are_rejected(plain):
    with pytest.raises(UserError, match="reads token ids; do not pass text_seq"):
        run(plain, {}, SEQUENCE)
    with pytest.raises(UserError, match="reads CLIP's token features; pass text_seq"):
        run(plain, KARLO, {})
    with pytest.raises(UserError, match=r"text_seq has width 5; prior.clip_text_width is 7"):
        run(plain, {**KARLO, "clip_text_width": 7}, SEQUENCE)
    with pytest.raises(UserError, match="captions have 3 tokens; this model takes 4"):
        run(plain, {}, {}, tokens=INPUTS["tokens"][:, :3], token_mask=INPUTS["token_mask"][:, :3])
