"""Imagen's chain: a text encoder, a base model that reads it, and an upsampler that does too."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from PIL import Image

from tests import cascades
from tests.stages import tiny
from unclip_jax import sample
from unclip_jax.core import config as typed
from unclip_jax.core import rng
from unclip_jax.core.checks import UserError
from unclip_jax.core.picture import to_uint8
from unclip_jax.data import image_codec
from unclip_jax.engine.handlers import text
from unclip_jax.engine.inference_engine import InferenceEngine
from unclip_jax.engine.requests import TextRequest, UpscaleRequest
from unclip_jax.handoff import export
from unclip_jax.handoff import load as handoff
from unclip_jax.inference import batch_sampling, load, text_to_image
from unclip_jax.inference.cascade import Cascade, tokenise
from unclip_jax.objectives.gaussian import SamplingConfig
from unclip_jax.planning import sampling
from unclip_jax.stages import registry

KEYS = jax.random.split(jax.random.key(0), 1)
NAMES = ("text_encoder", "imagen_base", "upsampler_256")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    files = {"upsampler_256": "imagen_sr256"}
    return cascades.write(tmp_path_factory.mktemp("imagen"), names=NAMES, files=files)


@pytest.fixture(scope="module")
def loaded(folder):
    return load.load_cascade(folder)


@pytest.fixture(scope="module")
def engine(loaded):
    return InferenceEngine(loaded, batch=2)


@pytest.fixture(scope="module")
def sampler(engine):
    options = text_to_image.SampleOptions()
    return lambda captions: engine.sample_cascade(captions, seed=5, options=options)


def test_captions_become_images_without_an_embedding(loaded, sampler):
    assert [stage.name for stage in loaded.cascade.stages] == list(NAMES)
    out = sampler(["a red circle", "a red circle"])
    assert out.z_img is None
    assert out.base.shape == (2, 16, 16, 3) and out.images.shape == (2, 32, 32, 3)
    assert np.abs(out.images[0] - out.images[1]).max() > 0.01  # of other keys


def test_both_models_read_the_caption(loaded, sampler):
    one, other = (
        sampler(["a red circle", "a blue square"]),
        sampler(["a red circle", "a pink ring"]),
    )
    np.testing.assert_array_equal(one.images[0], other.images[0])
    assert np.abs(one.base[1] - other.base[1]).max() > 1e-3
    name = "upsampler_256"
    stage = loaded.cascade.stage(name)
    keys = text_to_image.keys_for(0, jnp.arange(1))
    words = load.load_tokenizers(loaded.tokenizer_dirs)
    features = [_features(loaded, words, caption) for caption in ("a red circle", "a pink ring")]
    enlarge = jax.jit(functools.partial(stage.entry.sample, stage.config, loaded.params[name]))
    images = [
        enlarge({"low_res": one.base[:1], "text_features": x}, keys=keys)["image"] for x in features
    ]
    assert np.abs(images[0] - images[1]).max() > 1e-3


def _features(loaded, words, caption):
    stage = loaded.cascade.stage("text_encoder")
    conditions = {"caption": tokenise(loaded.cascade, words, [caption])["text_encoder"]}
    params = loaded.params["text_encoder"]
    encode = jax.jit(functools.partial(stage.entry.sample, stage.config))
    return encode(params, conditions, keys=KEYS)["text_features"]


def test_one_stage_at_a_time_gives_the_same_images(folder, sampler):
    captions = ["a red circle", "three pink rings"]
    images = batch_sampling.sample_by_stage(
        load.find_cascade(folder),
        captions,
        seed=5,
        options=text_to_image.SampleOptions(),
        batch_size=2,
    )
    expected = np.asarray(sampler(captions).images)
    assert np.abs(images / 127.5 - 1 - expected).max() <= 1 / 127.5


def test_the_engine_samples_and_rejects_what_needs_an_embedding(engine):
    result = engine.sample("a red circle", num=2, seed=3)
    assert result.images.shape == (2, 32, 32, 3) and result.record["models"]["stages"]
    sentence = "the imagen_base of this run has none of them, so leave them out"
    for options in ({"negative": "a blue square"}, {"previews": 2}):
        with pytest.raises(UserError, match=sentence):
            engine.sample("a red circle", **options)
    rejected = {
        "condition": ("z_txt", "--condition is 'z_txt', but the imagen_base reads no embedding"),
        "candidates": (4, "--candidates is 4, but no prior samples embeddings here; leave it out"),
    }
    for name, (value, message) in rejected.items():
        with pytest.raises(UserError, match=message):
            engine.sample("a red circle", **{name: value})
    with pytest.raises(UserError, match="has no clip, which is needed here"):
        engine.sample("a red circle", best_of=2)


def test_the_empty_caption_is_encoded_as_in_training(loaded):
    """The stand-in has T5's network, but a tokenizer with a start token."""
    words = {"text_encoder": cascades.tokenizer()}
    captions = tokenise(loaded.cascade, words, ["a red circle", ""])
    features = jax.jit(lambda p: text_to_image.text_features(loaded.cascade, p, captions, KEYS))
    encoded = features(loaded.params)
    np.testing.assert_array_equal(encoded.empty.mask[0], encoded.text.mask[1])
    assert encoded.empty.mask.sum() == 2
    sequences = encoded.empty.sequence[0, :2], encoded.text.sequence[1, :2]
    np.testing.assert_allclose(*sequences, atol=1e-5)


@pytest.mark.parametrize("reader", NAMES[1:])
def test_an_encoder_of_another_length_is_rejected_before_it_is_read(folder, reader):
    path = folder / reader / "export"
    card = handoff.read_manifest(path)
    config = typed.as_dict(card.config)
    config["model"]["text"]["context"] = 30
    export.replace_manifest(path, dataclasses.replace(card, config=config))
    message = f"computes 24 features per caption, but the {reader} reads 30; .* --context=30"
    try:
        with pytest.raises(UserError, match=message):
            load.find_cascade(folder)
    finally:
        export.replace_manifest(path, card)


def test_features_of_another_encoder_are_rejected(folder, tmp_path):
    cascades.write(tmp_path, names=NAMES, files={"upsampler_256": "imagen_sr256"})
    path = tmp_path / "imagen_base" / "export"
    card = handoff.read_manifest(path)
    export.replace_manifest(path, dataclasses.replace(card, text_encoder_id="0" * 64))
    with pytest.raises(
        UserError, match="text_encoder and the text_base do not fit: text_encoder_id"
    ):
        load.load_cascade(tmp_path)


def test_a_run_without_its_text_encoder_is_rejected_by_name(tmp_path):
    files = {"upsampler_256": "imagen_sr256"}
    cascades.write(tmp_path, names=NAMES, files=files)
    (tmp_path / "text_encoder").rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="has no export of the text_encoder"):
        load.load_cascade(tmp_path)


@pytest.mark.parametrize("left", [("text_encoder", "upsampler_256"), ("upsampler_256",)])
def test_a_run_without_a_decoder_lacks_imagen_s(folder, tmp_path, left):
    for name in left:
        (tmp_path / name).symlink_to(folder / name)
    message = rf"has no export of the imagen_base \(it has {', '.join(left)}\)"
    with pytest.raises(UserError, match=message):
        load.load_cascade(tmp_path)


def test_upsamplers_enlarge_images_without_a_decoder(folder, engine, tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    request = UpscaleRequest(images=(image,), caption="a red circle", seed=5)
    (tmp_path / "upsampler_256").symlink_to(folder / "upsampler_256")
    with pytest.raises(UserError, match="has no export of the text_encoder"):
        InferenceEngine.open(tmp_path, enlarges=True)
    (tmp_path / "text_encoder").symlink_to(folder / "text_encoder")
    Image.fromarray(image).save(tmp_path / "one.png")
    command = ["upscale", str(tmp_path / "one.png"), "--caption=a red circle", "--seed=5"]
    sample.main([*command, f"--models={tmp_path}", f"--out={tmp_path}/out.png"])
    enlarged = np.asarray(Image.open(tmp_path / "out" / "0001.png"))  # after the enlarged input
    expected = engine.run(request).images[0]
    assert np.abs(enlarged.astype(int) - expected).max() <= 1


def test_an_upsampler_of_captions_needs_them(loaded, sampler):
    base = sampler(["a red circle", "a blue square"]).base
    keys = text_to_image.keys_for(0, jnp.arange(2))
    with pytest.raises(UserError, match="the upsampler_256 reads captions; give a caption of"):
        text_to_image.upsample(loaded.cascade, loaded.params, base, keys)


def test_upsampling_with_captions_is_the_last_part_of_the_chain(engine, sampler):
    captions = ["a red circle", "a blue square"]
    expected = sampler(captions)
    keys = text_to_image.keys_for(5, jnp.arange(2))
    images = engine.upsample(expected.base, keys, captions=captions)
    np.testing.assert_allclose(images, expected.images, atol=1e-5)
    others = engine.upsample(expected.base, keys, captions=["a red circle", "two pink rings"])
    assert np.abs(others[1] - images[1]).max() > 1e-3


def test_images_are_enlarged_under_a_caption(engine):
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    result = engine.run(UpscaleRequest(images=(image,), caption="a red circle", seed=5))
    keys = text_to_image.keys_for(5, jnp.arange(1))
    low = jnp.asarray(image_codec.to_float(image[None]))
    expected = engine.upsample(low, keys, captions=["a red circle"])
    np.testing.assert_array_equal(result.images, to_uint8(np.asarray(expected)))
    with pytest.raises(UserError, match="caption is missing, but these upsamplers read captions"):
        engine.run(UpscaleRequest(images=(image,)))


def test_upsamplers_are_set_at_inference(engine, sampler):
    """Guidance, steps and level of a request are those of a stage that was exported so."""
    stage = engine.cascade.stage("upsampler_256")
    sampling = dataclasses.replace(stage.config.sampling, guidance_scale=4.0, steps="3")
    augment = dataclasses.replace(stage.config.augment, level=0.15)
    assert stage.config.augment.level != 0.15 < stage.config.augment.most
    cfg = dataclasses.replace(stage.config, sampling=sampling, augment=augment)
    base = sampler(["a red circle"]).base
    features = _features(engine.loaded, engine.tokenizers, "a red circle")
    keys = text_to_image.keys_for(5, jnp.arange(1))
    conditions = {"low_res": base, "text_features": features}
    keys = rng.fold_each(keys, "upsampler", 0)
    enlarge = jax.jit(functools.partial(stage.entry.sample, cfg, engine.params[stage.name]))
    expected = to_uint8(np.asarray(enlarge(conditions, keys=keys)["image"]))
    settings = {"upsampler_guidance": 4.0, "upsampler_steps": "3", "upsampler_level": 0.15}
    images = engine.sample("a red circle", seed=5, **settings).images
    assert np.abs(images.astype(int) - expected).max() <= 1
    for name in settings:
        rest = {key: value for key, value in settings.items() if key != name}
        other = engine.sample("a red circle", seed=5, **rest).images
        assert np.abs(other.astype(int) - expected).max() > 1, name
    options = batch_sampling.upsampler_sampling(engine.cascade, guidance=4.0, steps="3", level=0.15)
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    low, keys = image_codec.to_float(image[None]), text_to_image.keys_for(5, jnp.arange(1))
    request = UpscaleRequest(images=(image,), caption="a red circle", seed=5, **settings)
    large = engine.upsample(jnp.asarray(low), keys, captions=["a red circle"], options=options)
    np.testing.assert_array_equal(engine.run(request).images, to_uint8(np.asarray(large)))


def test_the_threshold_of_the_base_model_is_set_at_inference(engine):
    exported = engine.cascade.decoder_sampling.threshold
    for name in ("none", "static", "dynamic"):
        options = text.sample_options(TextRequest(captions=("a",), threshold=name), engine.cascade)
        assert options.decoder.threshold == name
    options = text.sample_options(TextRequest(captions=("a",)), engine.cascade)
    assert options.decoder.threshold == exported


def test_variance_and_cap_of_the_base_model_are_set_at_inference(engine):
    settings = {"threshold": "dynamic", "cap": 1.5, "sampler": "ancestral"}
    settings |= {"variance": "mix", "gamma": 0.3}
    options = text.sample_options(TextRequest(captions=("a",), **settings), engine.cascade)
    assert {name: getattr(options.decoder, name) for name in settings} == settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cap": 1.5, "threshold": "static"}, "--cap is 1.5, which has no effect without --thresh"),
        ({"variance": "large", "sampler": "ddim"}, "--variance is 'large', which has no effect"),
        ({"gamma": 0.5, "variance": "small"}, "--gamma is 0.5, which .* --variance=mix; add that"),
        ({"gamma": 0.5, "variance": "mix", "sampler": "ddim"}, "--variance is 'mix', which has no"),
    ],
)
def test_settings_without_effect_are_rejected(engine, settings, message):
    request = TextRequest(captions=("a",), **{"sampler": "ancestral", **settings})
    with pytest.raises(UserError, match=message):
        text.sample_options(request, engine.cascade)


def test_gamma_has_no_effect_where_the_exported_sampler_is_not_ancestral():
    exported = SamplingConfig(sampler="ddim", variance="mix")
    with pytest.raises(UserError, match="--gamma is 0.5, which has no effect without --sampler=an"):
        batch_sampling._check_effect(exported, {"gamma": 0.5})


def test_settings_that_upsamplers_were_not_trained_for_is_rejected(loaded):
    set_upsamplers, stage = batch_sampling.upsampler_sampling, loaded.cascade.stage("upsampler_256")
    most = stage.config.augment.most
    assert 0 < most < 1
    message = rf"--upsampler-level is 1, but the upsampler_256 was trained with levels up to {most}"
    advice = rf" on its low-res images; give at most {most}\.$"
    with pytest.raises(UserError, match=message + advice):
        set_upsamplers(loaded.cascade, level=1.0)
    bare = loaded.cascade.without_upsamplers()
    for name, value in {"guidance": 2.0, "steps": "3", "level": 0.1}.items():
        message = f"--upsampler-{name} is {value!r}, but these models have no upsampler"
        with pytest.raises(UserError, match=message):
            set_upsamplers(bare, **{name: value})
    plain = Cascade.of(upsampler_256=tiny.experiment("upsampler_256").model)
    message = r"level is 0.1, but the upsampler_256 was trained without noise .*; leave it out\.$"
    with pytest.raises(UserError, match=message):
        set_upsamplers(plain, level=0.1)
    with pytest.raises(UserError, match="guidance is 2, but the upsampler_256 reads no captions"):
        set_upsamplers(plain, guidance=2.0)
    assert set_upsamplers(plain, level=0.0, guidance=1.0).upsampler_level == 0


@pytest.mark.parametrize(("name", "side"), [("imagen_base", 16), ("imagen_sr256", 32)])
def test_sampling_can_be_planned(name, side):
    experiment = tiny.experiment(name)
    stage = experiment.build_stage()
    run, inputs = sampling.function(experiment.stage, experiment.model, batch_size=2)
    params = nn.meta.unbox(jax.eval_shape(stage.init, jax.random.key(0)))
    assert jax.eval_shape(run, params, inputs).shape == (2, side, side, 3)


def test_the_chain_is_trained_from_its_encoder_on():
    chain = list(registry.default_chain("imagen"))
    assert chain == ["text_encoder", "imagen_base", "upsampler_256", "upsampler_1024"]
    assert "text_encoder" not in registry.default_chain()
