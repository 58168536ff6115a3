"""unCLIP's decoder before an upsampler that reads captions: every request gives it its captions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import cascades
from unclip_jax.core.picture import to_uint8
from unclip_jax.editing.latents import Latent
from unclip_jax.engine.decode_batch import DecodeBatch
from unclip_jax.engine.inference_engine import InferenceEngine
from unclip_jax.engine.requests import TextDiffRequest
from unclip_jax.inference import guided_sampling, text_to_image
from unclip_jax.inference.decoding import DecodeOptions, faithful

NAMES = ("clip", "prior", "decoder", "text_encoder", "upsampler_256")
CAPTION = cascades.CAPTIONS[0]
IMAGE = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    files = {"upsampler_256": "imagen_sr256"}
    folder = cascades.write(tmp_path_factory.mktemp("run"), names=NAMES, files=files)
    cascades.write_guide(folder)
    return folder


@pytest.fixture(scope="module")
def engine(run_dir):
    return InferenceEngine.open(run_dir, batch=2)


def test_stage_by_stage_gives_the_images_of_the_whole_chain(engine):
    options = {"num": 2, "seed": 3, "steps": "2", "sampler": "ddim", "guidance": 1.0}
    whole = engine.sample(CAPTION, **options)
    parts = engine.sample(CAPTION, previews=1, **options)
    assert np.abs(whole.images.astype(int) - parts.images).max() <= 1
    own = {"upsampler_guidance": 4.0, "upsampler_level": 0.15}
    changed = engine.sample(CAPTION, **options, **own)
    assert np.abs(changed.images.astype(int) - whole.images).max() > 1
    parts = engine.sample(CAPTION, previews=1, **options, **own)
    assert np.abs(changed.images.astype(int) - parts.images).max() <= 1
    other = engine.sample(CAPTION, negative="a pink ring", **{**options, "guidance": 3.0})
    assert other.images.shape == whole.images.shape


def test_latents_are_enlarged_under_their_captions(engine):
    keys = text_to_image.keys_for(0, jnp.zeros(2, int))
    z_img = engine.text_embeddings([CAPTION, CAPTION])
    latent = Latent(z_img, engine.initial_noise(seed=0, indices=[0, 0]))
    captions = [None, CAPTION]
    batch = DecodeBatch(latent, captions, [0, 0], 0, DecodeOptions(faithful("2")))
    base = engine.decode_base(latent, captions=captions, steps="2")
    expected = to_uint8(np.asarray(engine.upsample(base, keys, captions=["", CAPTION])))
    images = engine.decode(batch).images
    assert np.abs(images.astype(int) - expected).max() <= 1
    swapped = to_uint8(np.asarray(engine.upsample(base, keys, captions=[CAPTION, ""])))
    assert np.abs(images.astype(int) - swapped).max() > 1


@pytest.mark.parametrize("inversion", ["ddim", "ddpm"])
def test_images_are_edited(engine, inversion):
    request = TextDiffRequest(
        image=IMAGE, target=CAPTION, frames=2, steps="2", inversion=inversion, caption="a ring"
    )
    result = engine.run(request)
    assert result.images.shape == (2, 32, 32, 3)


def test_a_guided_decoder_is_followed_by_the_caption(engine, run_dir):
    guide = guided_sampling.load_guide(run_dir / "guide" / "export")
    inputs = (engine.tokens([CAPTION]), guide.targets([CAPTION]), engine.text_embeddings([CAPTION]))
    options = {"guide": guide.config, "scale": jnp.float32(1), "sampling": faithful("2")}
    run = functools.partial(guided_sampling.sample, engine.cascade, **options)
    keys = text_to_image.keys_for(0, jnp.arange(1))
    assert jax.eval_shape(run, engine.params, guide.params, *inputs, keys).shape == (1, 32, 32, 3)


def test_settings_of_upsamplers_hold_under_a_guide(engine, run_dir):
    guide = guided_sampling.load_guide(run_dir / "guide" / "export")
    guided = InferenceEngine(engine.loaded._replace(guide=guide), batch=1)
    options = {"seed": 3, "steps": "2", "sampler": "ddim", "clip_scale": 1.0}
    exported = guided.sample(CAPTION, **options).images.astype(int)
    assert (
        np.abs(guided.sample(CAPTION, upsampler_level=0.15, **options).images - exported).max() > 1
    )
