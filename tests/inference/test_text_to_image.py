import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import cascades
from unclip_jax.conditioning.captions import ClipText
from unclip_jax.core import rng
from unclip_jax.core.checks import UserError
from unclip_jax.core.picture import to_uint8
from unclip_jax.inference import batch_sampling, load, text_to_image
from unclip_jax.inference.cascade import Cascade, tokenise
from unclip_jax.inference.text_to_image import SampleOptions
from unclip_jax.stages import upsampler


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    return load.load_cascade(cascades.write(tmp_path_factory.mktemp("run")))


@pytest.fixture(scope="module")
def run(loaded):
    """The compiled chain, counting its traces."""
    traces = []

    @jax.jit
    def draw(params, captions, keys):
        traces.append(1)
        return text_to_image.sample(loaded.cascade, params, captions, keys)

    return draw, traces


def captions(loaded, words):
    return tokenise(loaded.cascade, cascades.tokenizers(loaded.cascade), words)


def test_image_i_depends_on_seed_and_i_alone(loaded, run):
    draw, _ = run
    words = [*cascades.CAPTIONS, "a blue circle"]
    keys = text_to_image.keys_for(5, jnp.arange(4))
    whole = draw(loaded.params, captions(loaded, words), keys)
    reverse = draw(loaded.params, captions(loaded, words[::-1]), keys[::-1])
    np.testing.assert_allclose(reverse.images[::-1], whole.images, atol=1e-4)
    np.testing.assert_allclose(reverse.z_img[::-1], whole.z_img, atol=1e-5)
    others = ["three pink rings", words[1], "", "a red circle"]
    mixed = draw(loaded.params, captions(loaded, others), keys)
    np.testing.assert_allclose(mixed.images[1], whole.images[1], atol=1e-4)
    assert np.abs(mixed.images[0] - whole.images[0]).max() > 1e-3


def test_many_seeds_and_captions_are_one_trace(loaded, run):
    draw, traces = run
    for seed in range(3):
        keys = text_to_image.keys_for(seed, jnp.arange(4))
        draw(loaded.params, captions(loaded, [f"a red circle {seed}"] * 4), keys)
    assert len(traces) == 1


def test_the_chain_ends_at_the_last_upsamplers_size_in_range(loaded, run):
    draw, _ = run
    keys = text_to_image.keys_for(0, jnp.arange(4))
    output = draw(loaded.params, captions(loaded, cascades.CAPTIONS[:1] * 4), keys)
    assert output.base.shape == (4, 16, 16, 3)
    assert output.images.shape == (4, loaded.cascade.image_size, loaded.cascade.image_size, 3)
    assert np.abs(output.images).max() <= 1.0


def test_z_txt_as_z_img_is_the_caption_embedding(loaded):
    keys = text_to_image.keys_for(0, jnp.arange(1))
    words = captions(loaded, cascades.CAPTIONS[:1])
    bare, options = loaded.cascade.without_upsamplers(), SampleOptions(condition="z_txt")

    @jax.jit
    def run(params):
        output = text_to_image.sample(bare, params, words, keys, options=options)
        return output.z_img, text_to_image.text_embedding(bare, params, captions=words)

    z_img, z_txt = run(loaded.params)
    np.testing.assert_allclose(z_img, z_txt, atol=1e-6)


def test_a_given_z_img_must_be_given(loaded):
    keys = text_to_image.keys_for(0, jnp.arange(1))
    words = captions(loaded, cascades.CAPTIONS[:1])
    with pytest.raises(UserError, match="condition 'z_img' needs z_img"):
        text_to_image.sample(
            loaded.cascade, loaded.params, words, keys, options=SampleOptions(condition="z_img")
        )


def test_the_best_of_several_is_the_one_nearest_to_its_caption(loaded, run):
    """Against drawing every candidate alone and embedding what came out."""
    draw, _ = run
    words = captions(loaded, [*cascades.CAPTIONS, "a blue circle"])
    keys = text_to_image.keys_for(3, jnp.arange(4))
    embed_text, embed_image = (
        jax.jit(functools.partial(embed, loaded.cascade, loaded.params))
        for embed in (text_to_image.text_embedding, text_to_image.image_embedding)
    )
    z_txt = np.asarray(embed_text(captions=words))
    candidates = [keys, *(rng.fold_each(keys, "candidate", number) for number in (1, 2))]
    outputs = [draw(loaded.params, words, own) for own in candidates]
    side = loaded.cascade.clip.model.image_size
    scores = []
    for each in outputs:
        pixels = jax.image.resize(each.images, (4, side, side, 3), "bicubic").clip(-1, 1)
        scores.append(np.sum(np.asarray(embed_image(images=pixels)) * z_txt, axis=1))
    best = np.argmax(scores, axis=0)
    assert len(set(best)) > 1, "the case must tell the candidates apart"
    options = SampleOptions(best_of=3)
    best_of = functools.partial(text_to_image.sample, loaded.cascade, options=options)
    selection = jax.jit(best_of)(loaded.params, words, keys)
    # the upsampler reads 8 bits, so it has to read the very image that was chosen
    own = jax.random.wrap_key_data(
        jnp.stack([jax.random.key_data(candidates[number][row]) for row, number in enumerate(best)])
    )
    upsample = jax.jit(functools.partial(text_to_image.upsample, loaded.cascade))
    upsampled = upsample(loaded.params, selection.base, own)
    np.testing.assert_allclose(selection.images, upsampled, atol=1e-4)
    for row, number in enumerate(best):
        np.testing.assert_allclose(selection.base[row], outputs[number].base[row], atol=1e-4)
        np.testing.assert_allclose(selection.z_img[row], outputs[number].z_img[row], atol=1e-5)


def test_a_score_that_is_not_a_number_is_never_the_best(monkeypatch):
    """The image is a random number, its score the number itself, or nan above a half."""

    def draw(cascade, params, captions, keys, **options):
        image = jax.vmap(lambda key: jax.random.uniform(key, (1, 1, 1)))(keys)
        return text_to_image.CascadeOutput(None, image, image)

    def score(cascade, params, *, images, z_txt):
        return jnp.where(images > 0.5, jnp.nan, images)[:, 0, 0, 0]

    text = ClipText(jnp.ones((16, 2)), jnp.ones((16, 1, 2)), jnp.ones((16, 1), bool))
    monkeypatch.setattr(text_to_image, "_sample", draw)
    monkeypatch.setattr(text_to_image, "clip_score", score)
    monkeypatch.setattr(text_to_image, "clip_text", lambda *a, **k: text)
    keys = text_to_image.keys_for(0, jnp.arange(16))
    options = SampleOptions(best_of=2)
    output = text_to_image.sample(Cascade(()), {}, {}, keys, options=options)
    candidates = [
        np.asarray(draw(None, {}, {}, text_to_image.candidate_keys(keys, i)).images).ravel()
        for i in range(2)
    ]
    scores = np.where(np.stack(candidates) > 0.5, -1.0, np.stack(candidates))
    expected = np.take_along_axis(np.stack(candidates), scores.argmax(0)[None], 0)[0]
    assert (scores.max(0) < 0).any() and (scores[0] < 0).sum() > (scores.max(0) < 0).sum()
    np.testing.assert_array_equal(np.asarray(output.images).ravel(), expected)


def test_a_number_of_images_to_choose_from_is_bounded():
    with pytest.raises(UserError, match=r"best_of is 0; it must lie in \[1, 512\]"):
        SampleOptions(best_of=0)


def test_quantised_images_are_what_8_bits_hold():
    images = jnp.linspace(-1, 1, 3 * 64).reshape(1, 8, 8, 3)
    levels = (np.asarray(upsampler.quantise(images)) + 1) * 127.5
    np.testing.assert_allclose(levels, np.round(levels), atol=1e-4)
    np.testing.assert_array_equal(to_uint8(images), np.round(levels))


def test_sets_of_one_cascade_share_a_program_whatever_their_guidance(loaded, monkeypatch):
    traces = []
    sample = text_to_image.sample

    def counting_sample(*args, **kwargs):
        traces.append(1)
        return sample(*args, **kwargs)

    monkeypatch.setattr(text_to_image, "sample", counting_sample)
    sampling = dataclasses.replace(loaded.cascade.decoder.sampling, guidance_scale=2.0)
    images = {
        (scale, first): batch_sampling.sample_images(
            loaded,
            cascades.CAPTIONS[:2],
            seed=0,
            first_index=first,
            options=SampleOptions(decoder=dataclasses.replace(sampling, guidance_scale=scale)),
        )
        for scale, first in ((2.0, 0), (2.0, 7), (4.0, 0))
    }
    assert len(traces) == 1
    assert np.any(images[2.0, 0] != images[4.0, 0]) and np.any(images[2.0, 0] != images[2.0, 7])
