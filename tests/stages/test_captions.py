"""Stages that read CLIP's features, and what is rejected."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.stages import tiny
from unclip_jax.backbones.unet import UNetConfig
from unclip_jax.conditioning.captions import ClipText, TokenIds
from unclip_jax.core import batch as batches
from unclip_jax.core.checks import UserError
from unclip_jax.diffusion.guidance_schedule import GuidanceSchedule
from unclip_jax.models.clip import ClipConfig
from unclip_jax.models.decoder import DecoderConfig
from unclip_jax.models.prior import Prior, PriorConfig
from unclip_jax.objectives.gaussian import SamplingConfig
from unclip_jax.stages import decoder, prior
from unclip_jax.stages.decoder import Condition, DecoderStageConfig
from unclip_jax.stages.prior import PriorStageConfig

KARLO_PRIOR = PriorConfig(
    embed_dim=4,
    width=8,
    depth=1,
    heads=2,
    context=6,
    vocab_size=20,
    caption="clip_sequence",
    clip_text_width=5,
    padding="mask",
    null="empty",
)
UNET = UNetConfig(3, 6, 8, (1,), 1, 8, (8,), 4, norm_groups=4)
KARLO_DECODER = DecoderConfig(
    unet=UNET,
    z_dim=4,
    text_width=8,
    text_depth=0,
    text_heads=0,
    context=6,
    vocab_size=20,
    padding="mask",
    caption="clip_sequence",
    clip_text_width=5,
)


def test_standardised_latents_come_back():
    mean, std = (0.5, -1.0, 0.0, 2.0), (0.5, 1.0, 2.0, 4.0)
    cfg = PriorStageConfig(KARLO_PRIOR, drop_text=0.0, z_mean=mean, z_std=std)
    z = jnp.arange(8.0).reshape(2, 4)
    x_0 = prior.to_latent(cfg, z)
    np.testing.assert_allclose(x_0, (np.asarray(z) - mean) / std, rtol=1e-6)
    np.testing.assert_allclose(prior.from_latent(cfg, x_0), z, rtol=1e-6)
    planned = PriorStageConfig(KARLO_PRIOR, drop_text=0.0, standardise=True)  # not measured yet
    np.testing.assert_array_equal(prior.to_latent(planned, z), z)
    np.testing.assert_array_equal(prior.from_latent(planned, z), z)
    assert prior.make(cfg).describe["embedding"] == "raw"
    assert prior.make(cfg).batch_spec["text_seq"].shape == (6, 5)


def test_clip_features_are_required_of_captions():
    ids = jnp.zeros((1, 6), jnp.int32)
    keys = jax.random.split(jax.random.key(0), 1)
    message = "reads CLIP's features of the captions"
    reader = PriorStageConfig(KARLO_PRIOR, drop_text=0.0)
    with pytest.raises(UserError, match=message):
        prior.sample(reader, {}, z_txt=jnp.ones((1, 4)), tokens=ids, token_mask=ids == 0, keys=keys)
    other = DecoderStageConfig(KARLO_DECODER, drop_text=0.0)
    for caption in (None, TokenIds(ids, ids == 0)):
        with pytest.raises(UserError, match=message):
            decoder.sample(other, {}, Condition(jnp.ones((1, 4)), caption), keys=keys)


def test_guidance_without_a_null_caption_needs_the_empty_one():
    cfg = DecoderStageConfig(KARLO_DECODER, drop_text=0.0)
    text = ClipText(jnp.ones((1, 4)), jnp.ones((1, 6, 5)), jnp.ones((1, 6), bool))
    with pytest.raises(UserError, match="CLIP's features of the empty caption"):
        decoder.denoiser(cfg, {}, Condition(jnp.ones((1, 4)), text), schedule=GuidanceSchedule(2.0))


def test_a_decoder_of_token_ids_rejects_clip_features():
    cfg = tiny.experiment("decoder").model
    text = ClipText(jnp.ones((1, 4)), jnp.ones((1, 6, 5)), jnp.ones((1, 6), bool))
    with pytest.raises(UserError, match="this decoder reads token ids, not CLIP's features"):
        decoder.denoiser(cfg, {}, Condition(jnp.ones((1, cfg.model.z_dim)), text))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PriorStageConfig(KARLO_PRIOR), "config.model.drop_text is 0.1, but"),
        (lambda: PriorStageConfig(KARLO_PRIOR, drop_text=0.0, z_mean=(1.0,)), "have 1 and 0"),
        (lambda: DecoderStageConfig(KARLO_DECODER), "config.model.drop_text is 0.5, but"),
        (
            lambda: DecoderStageConfig(KARLO_DECODER, drop_text=0.0, embedding="row"),
            "Did you mean 'raw'",
        ),
        (lambda: dataclasses.replace(KARLO_PRIOR, padding="learned"), "prior.null 'empty' needs"),
        (lambda: dataclasses.replace(KARLO_DECODER, padding="learned"), "hides empty slots"),
        (lambda: dataclasses.replace(KARLO_DECODER, clip_text_width=None), "clip_text_width is 0"),
    ],
)
def test_options_that_do_not_go_together(make, message):
    with pytest.raises(UserError, match=message):
        make()


def test_images_of_a_decoder_in_training_do_without_the_empty_caption():
    guided = SamplingConfig(steps="2", guidance_scale=2.0)
    stage = decoder.make(DecoderStageConfig(KARLO_DECODER, drop_text=0.0, sampling=guided))
    batch = batches.abstract(stage.batch_spec, 2)
    params = tiny.abstract(stage)
    shape = jax.eval_shape(stage.preview, params, batch, jax.random.key(0)).shape
    assert shape == (2, 8, 16, 3)  # the original and the sample, side by side


def test_a_caption_cannot_be_dropped_where_there_is_no_null():
    ids = jnp.zeros((1, 6), jnp.int32)
    with pytest.raises(UserError, match="has no learned null"):
        Prior(KARLO_PRIOR).init(
            jax.random.key(0),
            jnp.ones((1, 4)),
            ids[:, 0],
            tokens=ids,
            token_mask=ids == 0,
            z_txt=jnp.ones((1, 4)),
            text_seq=jnp.ones((1, 6, 5)),
            keep_text=jnp.ones(1, bool),
        )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"towers": ("text",)}, "clip.temperature is on, but"),
        ({"towers": ("sound",)}, "unknown clip tower 'sound'"),
        ({"projection": False}, "clip.projection is off"),
    ],
)
def test_towers_that_cannot_be(changes, message):
    with pytest.raises(UserError, match=message):
        ClipConfig(4, 8, 4, 8, 1, 2, 8, 1, 2, 6, 20, **changes)
