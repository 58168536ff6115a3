"""Dependence of each example on the inputs in training, evaluation and sampling, per stage.

Networks are small and their parameters random, none of them zero, so that what could depend does.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.stages import tiny
from tests.stages.test_captions import KARLO_DECODER, KARLO_PRIOR, UNET
from unclip_jax.conditioning.captions import ClipText, EncodedCaptions, TokenIds
from unclip_jax.core import rng
from unclip_jax.diffusion.guidance_schedule import GuidanceSchedule
from unclip_jax.models.decoder import Decoder
from unclip_jax.models.pca_quantizer import DotQuantizerConfig
from unclip_jax.models.prior_ar import PriorArConfig
from unclip_jax.models.upsampler import UpsamplerConfig
from unclip_jax.objectives import gaussian
from unclip_jax.objectives.gaussian import DiffusionConfig, SamplingConfig
from unclip_jax.stages import decoder, prior, prior_ar, upsampler
from unclip_jax.stages.decoder import NULL, Condition, DecoderStageConfig
from unclip_jax.stages.prior import PriorStageConfig
from unclip_jax.stages.upsampler import UpsamplerStageConfig

SIZE = 8
KEY = jax.random.key(2)  # under which each stage keeps some conditions and drops others
PLAIN = SamplingConfig(steps="2")
PRIOR_AR = PriorArConfig(
    embed_dim=4,
    codec=DotQuantizerConfig(components=3, buckets=4, dot_buckets=4),
    width=8,
    depth=1,
    heads=2,
    latent_context=4,
    text_width=8,
    text_depth=1,
    text_heads=2,
    context=6,
    vocab_size=20,
)
OWN_TEXT = {"caption": "own", "clip_text_width": None}
CONFIGS = {
    "prior": PriorStageConfig(
        dataclasses.replace(KARLO_PRIOR, null="learned", padding="learned", caption="tokens"),
        drop_text=0.5,
        sampling=PLAIN,
        num_candidates=1,
    ),
    "prior_ar": prior_ar.PriorArStageConfig(PRIOR_AR, drop_text=0.5),
    "decoder": DecoderStageConfig(
        dataclasses.replace(
            KARLO_DECODER, caption="own", clip_text_width=None, text_depth=1, text_heads=2
        ),
        DiffusionConfig(learned_variance=True),
        PLAIN,
        drop_z=0.5,
        drop_text=0.5,
    ),
    "upsampler": UpsamplerStageConfig(
        UpsamplerConfig(
            dataclasses.replace(UNET, in_channels=6, out_channels=3, attention_at=()), factor=2
        ),
        crop=8,
        sampling=PLAIN,
    ),
}
MODULES = {"prior": prior, "prior_ar": prior_ar, "decoder": decoder, "upsampler": upsampler}
CAPTION = ("tokens", "token_mask")


@functools.cache
def case(name: str):
    """A stage, parameters of which none is zero, and a batch."""
    stage = MODULES[name].make(CONFIGS[name])
    params = tiny.random_params(stage)
    batch = tiny.random_batch(stage, SIZE)
    # two real tokens at least, so that a change of the mask leaves some
    return stage, params, {**batch, **({"token_mask": caption_mask()} if name in TEXTUAL else {})}


TEXTUAL = ("prior", "prior_ar", "decoder")


def caption_mask() -> np.ndarray:
    return np.arange(6)[None] < np.array([3, 4, 5, 3, 4, 5, 3, 4])[:, None]


def change_row(batch, field: str, row: int):
    """The batch with another value of one field of one example."""
    x = batch[field].copy()
    if x.dtype == np.int32:
        x[row] = (x[row] + 7) % 20
    else:
        x[row] = np.arange(6) < 2 if x.dtype == bool else 0.1 - x[row]
    return {**batch, field: x}


def rows_that_matter(function: Callable, batch, field: str) -> list[bool]:
    """For each example, True if its `field` changes the value of `function(batch)`."""
    before = np.asarray(function(batch))
    others = [np.asarray(function(change_row(batch, field, row))) for row in range(SIZE)]
    return [bool(np.any(other != before)) for other in others]


@pytest.mark.parametrize("name", TEXTUAL)
def test_in_training_a_dropped_condition_does_not_matter_and_others_do(name):
    stage, params, batch = case(name)
    loss = jax.jit(lambda batch: stage.loss(params, batch, KEY)[0])
    matter = {field: rows_that_matter(loss, batch, field) for field in batch}
    captions = matter["tokens"]
    assert matter["token_mask"] == captions and 0 < sum(captions) < SIZE
    if name == "decoder":
        keep = decoder.keep_masks(CONFIGS[name], batch_size=SIZE, key=KEY)
        assert matter["z_img"] == keep["keep_z"].tolist() != captions
        assert captions == keep["keep_text"].tolist()
        assert all(matter["image"])
    elif name == "prior":  # the caption and its embedding are dropped together (section 2.2)
        assert matter["z_txt"] == captions and all(matter["z_img"])
    else:  # z_txt also decides the dot token, which is not dropped
        assert all(matter["z_img"]) and all(matter["z_txt"][i] for i in range(SIZE) if captions[i])


@pytest.mark.parametrize("name", CONFIGS)
def test_in_evaluation_everything_matters_for_every_example(name):
    stage, params, batch = case(name)
    evaluate = jax.jit(lambda batch: stage.evaluate(params, batch, KEY)["loss"])
    for field in batch:
        assert all(rows_that_matter(evaluate, batch, field)), field


def test_an_upsampler_reads_its_low_res_image_in_training_and_in_sampling():
    stage, params, batch = case("upsampler")
    loss = jax.jit(lambda batch: stage.loss(params, batch, KEY)[0])
    assert all(rows_that_matter(loss, batch, "low_res"))
    keys = rng.per_example(KEY, jnp.arange(SIZE))

    @jax.jit
    def sample(batch, keys):
        return upsampler.sample(CONFIGS["upsampler"], params, low_res=batch["low_res"], keys=keys)

    images = np.asarray(sample(batch, keys))
    for row in range(SIZE):
        other = np.asarray(sample(change_row(batch, "low_res", row), keys))
        differs = np.any(other != images, axis=(1, 2, 3))
        assert differs.tolist() == [i == row for i in range(SIZE)]
    assert np.all(np.any(sample(batch, keys[::-1]) != images, axis=(1, 2, 3)))


def predictions(name: str, scale: float) -> Callable:
    """x_0 of one evaluation under guidance, as a function of the batch."""
    cfg, params = CONFIGS[name], case(name)[1]
    shape = (4,) if name == "prior" else (8, 8, 3)
    x_t, t = gaussian.x_T(rng.per_example(KEY, jnp.arange(SIZE)), shape), jnp.full(SIZE, 400)

    @jax.jit
    def predict(batch):
        if name == "prior":
            return prior.denoiser(cfg, params, batch=batch, scale=scale)(x_t, t).x_0
        condition = Condition(batch["z_img"], TokenIds(*(batch[field] for field in CAPTION)))
        schedule = GuidanceSchedule(scale)
        return decoder.denoiser(cfg, params, condition, schedule=schedule)(x_t, t).x_0

    return predict


@pytest.mark.parametrize("name", ["prior", "decoder"])
@pytest.mark.parametrize("scale", [0.0, 1.0, 3.0])
def test_in_sampling_conditions_matter_unless_guidance_leaves_them_out(name, scale):
    batch = case(name)[2]
    conditions = (*CAPTION, "z_txt" if name == "prior" else "z_img")
    predict = predictions(name, scale)
    before = np.asarray(predict(batch))
    for field, other in itertools.product(conditions, (0, SIZE - 1)):
        differs = np.any(
            predict(change_row(batch, field, other)) != before, axis=tuple(range(1, before.ndim))
        )
        assert differs.tolist() == [scale != 0 and row == other for row in range(SIZE)], field


def test_dropped_conditions_in_sampling_are_those_of_training():
    """A decoder sees the same null whether the drop of training or guidance put it there."""
    cfg, (_, params, batch) = CONFIGS["decoder"], case("decoder")
    batch = jax.tree.map(jnp.asarray, batch)
    x_t, t = jnp.ones((SIZE, 8, 8, 3)), jnp.full(SIZE, 400)
    caption = TokenIds(*(batch[field] for field in CAPTION))
    whole = Condition(batch["z_img"], caption)
    cases = {(False, False): NULL, (True, False): Condition(batch["z_img"], None)}

    @jax.jit
    def in_training(keep_z, keep_text):
        keep = {"keep_z": jnp.full(SIZE, keep_z), "keep_text": jnp.full(SIZE, keep_text)}
        inputs = {"z_img": decoder._embedding(cfg, batch), **decoder._caption(cfg, batch)}
        out = decoder.apply(Decoder(cfg.model), params, x_t, t, **inputs, **keep)
        return gaussian.predict(cfg.diffusion, out, x_t=x_t, t=t).x_0

    for (keep_z, keep_text), condition in cases.items():
        # away from `condition` with scale 0 is `condition` itself
        options = {"negative": condition, "schedule": GuidanceSchedule(0.0)}
        x_0 = jax.jit(decoder.denoiser(cfg, params, whole, **options))(x_t, t).x_0
        np.testing.assert_allclose(x_0, in_training(keep_z, keep_text), atol=1e-4)
        assert np.abs(x_0 - in_training(True, True)).max() > 1e-2


def test_guidance_leads_a_decoder_away_from_a_negative_caption():
    """Scale 0 is the negative condition alone; scale 3 adds twice its distance."""
    cfg, (_, params, batch) = CONFIGS["decoder"], case("decoder")
    batch = jax.tree.map(jnp.asarray, batch)
    x_t, t = jnp.ones((SIZE, 8, 8, 3)), jnp.full(SIZE, 400)
    caption = TokenIds(*(batch[field] for field in CAPTION))
    other = jax.tree.map(lambda x: jnp.roll(x, 1, axis=0), caption)
    positive, negative = (Condition(batch["z_img"], text) for text in (caption, other))

    @functools.partial(jax.jit, static_argnums=0)
    def x_0(scale, condition, negative):
        schedule = GuidanceSchedule(scale)
        denoise = decoder.denoiser(cfg, params, condition, negative=negative, schedule=schedule)
        return denoise(x_t, t).x_0

    towards, away = (x_0(1.0, each, NULL) for each in (positive, negative))
    assert np.abs(towards - away).max() > 1e-2
    for scale in (0.0, 3.0):
        mix = away + scale * (towards - away)
        np.testing.assert_allclose(x_0(scale, positive, negative), mix, atol=1e-3)


def test_codes_without_guidance_s_condition_do_not_depend_on_the_caption():
    cfg, (_, params, batch) = CONFIGS["prior_ar"], case("prior_ar")
    keys = rng.per_example(KEY, jnp.arange(SIZE))
    text = {field: jnp.asarray(batch[field]) for field in (*CAPTION, "z_txt")}

    @functools.partial(jax.jit, static_argnames="scale")
    def logits(text, scale):
        """Codes at temperature 0, of sharpened parameters so that they are decided."""
        sampling = prior_ar.PriorArSamplingConfig(guidance_scale=scale, temperature=0.0)
        sharp = jax.tree.map(lambda x: 8.0 * x, params["network"])
        return prior_ar.sample_codes(
            cfg, {**params, "network": sharp}, batch=text, keys=keys, sampling=sampling
        )

    rolled = jax.tree.map(lambda x: np.roll(x, 1, axis=0), text)
    np.testing.assert_array_equal(logits(text, 0.0), logits(rolled, 0.0))
    assert np.any(logits(text, 1.0) != logits(rolled, 1.0))


def test_a_prior_of_clip_s_features_is_guided_away_from_the_empty_caption():
    """Karlo: the null is CLIP's features of nothing, z_txt among them."""
    cfg = PriorStageConfig(KARLO_PRIOR, drop_text=0.0, z_mean=(0.0,) * 4, z_std=(1.0,) * 4)
    stage = prior.make(cfg)
    params = tiny.random_params(stage)
    batch = jax.tree.map(jnp.asarray, tiny.random_batch(stage, SIZE))
    x_t, t = gaussian.x_T(rng.per_example(KEY, jnp.arange(SIZE)), (4,)), jnp.full(SIZE, 400)
    whole = ClipText(batch["z_txt"], batch["text_seq"], batch["token_mask"])
    empty = jax.tree.map(lambda x: x[:1], whole)

    @functools.partial(jax.jit, static_argnames="scale")
    def predict(batch, empty, scale):
        return prior.denoiser(cfg, params, batch=batch, scale=scale, empty=empty)(x_t, t).x_0

    rolled = jax.tree.map(lambda x: jnp.roll(x, 1, axis=0), batch)
    np.testing.assert_allclose(predict(batch, empty, 0.0), predict(rolled, empty, 0.0), atol=1e-5)
    others = (empty.replace(z_txt=-empty.z_txt), empty.replace(sequence=-empty.sequence))
    for other in others:
        assert np.abs(predict(batch, other, 0.0) - predict(batch, empty, 0.0)).max() > 1e-4
    nothing = {**batch, "z_txt": jnp.repeat(empty.z_txt, SIZE, 0)}
    nothing["text_seq"] = jnp.repeat(empty.sequence, SIZE, 0)
    nothing["token_mask"] = jnp.repeat(empty.mask, SIZE, 0)
    np.testing.assert_allclose(predict(nothing, empty, 1.0), predict(batch, empty, 0.0), atol=1e-5)


def test_a_chain_leads_a_decoder_of_clip_s_features_away_from_the_empty_caption():
    """Karlo's decoder in a chain: scale 0 uses neither the caption nor z_img."""
    cfg = DecoderStageConfig(KARLO_DECODER, drop_text=0.0, embedding="raw")
    stage = decoder.make(cfg)
    params = tiny.random_params(stage)
    batch = jax.tree.map(jnp.asarray, tiny.random_batch(stage, SIZE))
    keys = rng.per_example(KEY, jnp.arange(SIZE))
    x_t, t = gaussian.x_T(keys, (8, 8, 3)), jnp.full(SIZE, 400)
    text = ClipText(batch["z_txt"], batch["text_seq"], batch["token_mask"])
    empty = jax.tree.map(lambda x: x[:1], text)

    @jax.jit
    def in_chain(z_img, text, empty, scale):
        conditions = {"z_img": z_img, "clip_text": EncodedCaptions(text, empty)}
        options = {"keys": keys, "scale": scale}
        return decoder.ENTRY.denoiser(cfg, params, conditions, **options)(x_t, t).x_0

    def by_itself(z_img, text):
        schedule = GuidanceSchedule(1.0)
        return decoder.denoiser(cfg, params, Condition(z_img, text), schedule=schedule)(x_t, t).x_0

    nothing = jax.tree.map(lambda x: jnp.repeat(x, SIZE, 0), empty)
    away, towards = by_itself(None, nothing), by_itself(batch["z_img"], text)
    inputs = (batch["z_img"], text, empty)
    for scale in (0.0, 1.0, 3.0):
        mix = away + scale * (towards - away)
        np.testing.assert_allclose(in_chain(*inputs, scale), mix, atol=2e-4)
