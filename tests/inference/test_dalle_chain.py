"""DALL-E's chain in a run: caption to codes to image, chosen by CLIP, beside unCLIP's."""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import cascades
from unclip_jax.core.checks import UserError
from unclip_jax.handoff import load as handoff
from unclip_jax.handoff.export import replace_manifest
from unclip_jax.inference import batch_sampling, load, offload, text_to_image
from unclip_jax.inference.cascade import plan, tokenise
from unclip_jax.inference.text_to_image import SampleOptions
from unclip_jax.planning import sampling
from unclip_jax.stages import registry

CAPTIONS = cascades.CAPTIONS[:2]
CHAIN = ("clip", "dvae", "dalle", "upsampler_256")


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    return cascades.write(tmp_path_factory.mktemp("dalle"), names=CHAIN)


@pytest.fixture(scope="module")
def loaded(run_dir):
    """Without the upsampler, which has tests of its own."""
    loaded = load.load_cascade(run_dir, prior_name="dalle")
    return loaded._replace(cascade=loaded.cascade.without_upsamplers())


def test_the_chain_is_dalle_then_dvae(run_dir):
    cascade = load.find_cascade(run_dir, prior_name="dalle").cascade
    names = ["clip", "dalle", "dvae", "upsampler_256"]
    assert [stage.name for stage in cascade.stages] == names
    assert [step.stage.name for step in plan(cascade)] == names[1:]
    assert (cascade.base_size, cascade.image_size) == (16, 32)
    alone = load.find_cascade(run_dir)  # by the default prior
    assert alone.cascade == cascade
    assert registry.default_chain("dalle").keys() >= {"dalle", "dvae", "clip"}
    assert not {"dalle", "dvae"} & registry.default_chain().keys()


def test_images_depend_on_their_caption_seed_and_number_alone(loaded, run_dir):
    options = SampleOptions()
    images = batch_sampling.sample_images(loaded, CAPTIONS, seed=0, options=options)
    one = batch_sampling.sample_images(
        loaded, CAPTIONS[1:], seed=0, options=options, first_index=1, batch_size=1
    )
    assert np.abs(images[1:].astype(int) - one.astype(int)).max() <= 1  # but for rounding
    assert images.shape == (2, 16, 16, 3) and np.any(images[0] != images[1])
    tokens = tokenise(loaded.cascade, load.load_tokenizers(loaded.tokenizer_dirs), CAPTIONS)
    keys = text_to_image.keys_for(0, jnp.arange(2))
    files = load.find_cascade(run_dir, prior_name="dalle")._replace(cascade=loaded.cascade)
    (by_stage,) = offload.sample(files, [offload.SampleBatch(tokens, keys)], options=options)
    assert np.abs(by_stage.astype(int) - images.astype(int)).max() <= 1


def test_the_best_of_several_is_that_of_the_highest_score(loaded):
    cascade = loaded.cascade
    tokens = tokenise(cascade, load.load_tokenizers(loaded.tokenizer_dirs), CAPTIONS)
    keys = text_to_image.keys_for(3, jnp.arange(2))

    def candidates(params):
        each = [
            text_to_image.sample(cascade, params, tokens, text_to_image.candidate_keys(keys, i))
            for i in range(3)
        ]
        score = lambda x: text_to_image.caption_score(  # noqa: E731
            cascade, params, images=x, captions=tokens
        )
        return jnp.stack([e.images for e in each]), jnp.stack([score(e.images) for e in each])

    images, scores = jax.jit(candidates)(loaded.params)
    best = jax.jit(
        lambda p: (
            text_to_image.sample(cascade, p, tokens, keys, options=SampleOptions(best_of=3)).images
        )
    )(loaded.params)
    expected = np.take_along_axis(
        np.asarray(images), np.asarray(scores).argmax(0)[None, :, None, None, None], 0
    )[0]
    np.testing.assert_allclose(best, expected, atol=1e-5)


def test_settings_reach_the_stage_that_has_them(loaded):
    options = batch_sampling.sample_options(
        loaded.cascade, prior={"top_k": 3}, decoder={"guidance_scale": 2.0, "steps": None}
    )
    assert (options.prior.top_k, options.prior.guidance_scale) == (3, 2.0)
    assert options.decoder is None
    with pytest.raises(UserError, match="--steps is '4', but this decoder has no such setting"):
        batch_sampling.sample_options(loaded.cascade, prior={}, decoder={"steps": "4"})
    with pytest.raises(UserError, match="--candidates is 4, but the dalle samples no embeddings"):
        batch_sampling.sample_images(
            loaded, CAPTIONS, seed=0, options=SampleOptions(num_candidates=4)
        )
    with pytest.raises(UserError, match=r"best_of is 513; it must lie in \[1, 512\]"):
        SampleOptions(best_of=513)


def test_codes_of_another_discrete_vae_are_rejected(run_dir, tmp_path):
    run = shutil.copytree(run_dir, tmp_path / "run")
    path = run / "dalle" / "export"
    card = dataclasses.replace(handoff.read_manifest(path), dvae_id="ab" * 32)
    replace_manifest(path, card)
    with pytest.raises(UserError, match="the dalle and the dvae do not fit: dvae_id is 'abab"):
        load.find_cascade(run)
    shutil.rmtree(run / "dalle")
    with pytest.raises(UserError, match=r"no export of the dalle \(it has clip, dvae, upsampler"):
        load.find_cascade(run, prior_name="dalle")


def test_chains_share_a_run_and_each_takes_the_upsamplers_of_its_size(run_dir, tmp_path):
    run = shutil.copytree(run_dir, tmp_path / "run")
    shutil.rmtree(run / "clip")
    cascades.write(run, names=("clip", "prior", "decoder"))
    names = {
        chain: [s.name for s in load.find_cascade(run, prior_name=chain).cascade.stages]
        for chain in ("unclip", "dalle")
    }
    assert names["unclip"] == ["clip", "prior", "decoder", "upsampler_256"]
    assert names["dalle"] == ["clip", "dalle", "dvae", "upsampler_256"]
    with pytest.raises(UserError, match="the chains unclip and dalle; choose by --chain=unclip or"):
        load.find_cascade(run)
    (run / "dalle").rename(tmp_path / "dalle")  # a dvae alone is no chain
    assert load.find_cascade(run).cascade.has("decoder")
    (tmp_path / "dalle").rename(run / "dalle")
    path = run / "dvae" / "export"
    replace_manifest(path, dataclasses.replace(handoff.read_manifest(path), image_size=32))
    names = [s.name for s in load.find_cascade(run, prior_name="dalle").cascade.stages]
    assert names == ["clip", "dalle", "dvae"]
    with pytest.raises(UserError, match="unknown prior or chain 'dale'. Did you mean 'dalle'"):
        load.find_cascade(run, prior_name="dale")


@pytest.mark.parametrize(("name", "shape"), [("dalle", (2, 16)), ("dvae", (2, 16, 16, 3))])
def test_both_stages_can_be_planned(loaded, name, shape):
    config = loaded.cascade.stage(name).config
    function, inputs = sampling.function(name, config, batch_size=2)
    assert jax.eval_shape(function, loaded.params[name], inputs).shape == shape
