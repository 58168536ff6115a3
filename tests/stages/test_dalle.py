"""DALL-E's loss by its weights, its captions, and rejections."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.stages import tiny
from unclip_jax.core import rng
from unclip_jax.core.checks import UserError
from unclip_jax.core.config import build
from unclip_jax.discrete.categorical import CodeSamplingConfig
from unclip_jax.models.dalle import Dalle, DalleConfig
from unclip_jax.stages import dalle
from unclip_jax.stages.dalle import DalleStageConfig

MODEL = DalleConfig(
    width=8, depth=2, heads=2, context=4, vocab_size=11, grid=3, code_count=7, kernel=3
)
CFG = DalleStageConfig(MODEL, drop_text=0.1)
KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def trained():
    stage = dalle.make(CFG)
    batch = tiny.random_batch(stage, 4)
    return stage, tiny.random_params(stage), jax.tree.map(jnp.asarray, batch)


def logits_of(params, batch):
    inputs = (batch["tokens"], batch["token_mask"], batch["codes"])
    return Dalle(MODEL).apply({"params": params}, *inputs, patterns=CFG.attention_plan())


def nats(logits, targets):
    logits = np.asarray(logits, np.float64)
    target_logits = np.take_along_axis(logits, np.asarray(targets)[..., None], -1)[..., 0]
    return np.log(np.exp(logits).sum(-1)) - target_logits


def test_a_fresh_model_is_uniform_over_tokens_and_codes(trained):
    stage, _, batch = trained
    metrics = jax.jit(stage.evaluate)(tiny.init(stage), batch, KEY)
    assert float(metrics["loss"]) == pytest.approx(np.log(11) / 8 + 7 * np.log(7) / 8)
    assert float(metrics["loss_image"]) == pytest.approx(np.log(7))


def test_the_loss_weighs_means_of_real_tokens_and_of_codes(trained):
    stage, params, batch = trained
    metrics = jax.jit(stage.evaluate)(params, batch, KEY)
    logits = logits_of(params, batch)
    mask = np.asarray(batch["token_mask"])[:, 1:]
    text = nats(logits.text, batch["tokens"][:, 1:]) * mask
    text = np.mean(text.sum(1) / mask.sum(1))
    image = nats(logits.codes, batch["codes"]).mean()
    assert float(metrics["loss_text"]) == pytest.approx(text, rel=1e-5)
    assert float(metrics["loss_image"]) == pytest.approx(image, rel=1e-5)
    assert float(metrics["loss"]) == pytest.approx(0.125 * text + 0.875 * image, rel=1e-5)
    other = {**batch, **{n: jnp.roll(batch[n], 1, 0) for n in ("tokens", "token_mask")}}
    wrong = nats(logits_of(params, other).codes, batch["codes"]).mean()
    assert float(metrics["loss_wrong_text"]) == pytest.approx(wrong, rel=1e-5)


def test_dropped_captions_are_padding_and_teach_no_tokens(trained):
    _, params, batch = trained
    never = dalle.make(dataclasses.replace(CFG, drop_text=1.0))
    _, metrics = jax.jit(never.loss)(params, batch, KEY)
    blank = {**batch, "token_mask": jnp.zeros_like(batch["token_mask"])}
    expected = nats(logits_of(params, blank).codes, batch["codes"]).mean()
    assert float(metrics["loss_text"]) == 0
    assert float(metrics["loss_image"]) == pytest.approx(expected, rel=1e-5)


def test_greedy_sampling_is_the_chain_of_largest_logits(trained):
    _, params, batch = trained
    text = {name: batch[name] for name in ("tokens", "token_mask")}
    keys = rng.per_example(KEY, jnp.arange(4))
    for scale in (1.0, 2.0):
        sampling = CodeSamplingConfig(temperature=0.0, guidance_scale=scale)
        run = jax.jit(lambda p, s=sampling: dalle.sample(CFG, p, **text, keys=keys, sampling=s))
        codes = np.zeros((4, 9), int)
        for i in range(9):
            now = {**text, "codes": jnp.asarray(codes)}
            blank = {**now, "token_mask": jnp.zeros_like(text["token_mask"])}
            both = (np.asarray(logits_of(params, each).codes)[:, i] for each in (now, blank))
            cond, uncond = both
            codes[:, i] = (uncond + scale * (cond - uncond)).argmax(-1)
        np.testing.assert_array_equal(run(params), codes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"drop_text": 1.5}, r"config.model.drop_text is 1.5; it must lie in \[0.0, 1"),
        ({"text_weight": -1.0}, "config.model.text_weight is -1.0"),
        ({"sampling": {"top_k": 8}}, "sampling.top_k is 8, but there are 7 codes; give fewer"),
        ({"drop_text": 0.0, "sampling": {"guidance_scale": 2.0}}, "guidance_scale is 2.0, but con"),
        ({"model": {"attention": ("rows",)}}, "unknown attention pattern 'rows'"),
        (
            {"model": {"start_of_image": False}},
            r"attention is \[\], whose sparse patterns begin at",
        ),
        ({"model": {"image_positions": "rows"}}, "unknown .*image_positions 'rows'"),
        ({"model": {"pad_token": 99}}, r"pad_token is 99; it must lie in \[0, "),
        ({"model": {"kernel": 4}}, "kernel of convolutional attention is 4; give an odd number"),
    ],
)
def test_mistaken_configs_are_rejected(changes, message):
    changes = {**changes, "model": {**dataclasses.asdict(MODEL), **changes.get("model", {})}}
    with pytest.raises(UserError, match=message):
        build(DalleStageConfig, changes, where="config.model")
