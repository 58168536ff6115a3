"""Chains of any stages: without a CLIP or a prior, with own tokenizers, with a new stage."""

import dataclasses
import inspect
import shutil

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import cascades
from tests.stages import test_every_stage, tiny, toy_decoder
from unclip_jax.core.checks import UserError
from unclip_jax.experiment import loading
from unclip_jax.handoff import export
from unclip_jax.handoff import load as handoff
from unclip_jax.handoff.export import replace_manifest
from unclip_jax.handoff.manifest import Manifest
from unclip_jax.inference import batch_sampling, load, offload, text_to_image
from unclip_jax.inference.cascade import Cascade, CascadeStage, plan, tokenise
from unclip_jax.inference.text_to_image import SampleOptions
from unclip_jax.planning import sampling
from unclip_jax.stages import registry
from unclip_jax.tokenization import caption_tokenizer

CAPTIONS = cascades.CAPTIONS[:2]
FAST = SampleOptions()


@pytest.fixture(scope="module")
def glide(tmp_path_factory):
    """A run of GLIDE's decoder and an upsampler: no CLIP, no prior."""
    folder = tmp_path_factory.mktemp("glide")
    return cascades.write(folder, names=("decoder", "upsampler_256"), files={"decoder": "glide"})


def test_glide_loads_and_samples_without_a_clip_and_a_prior(glide):
    loaded = load.load_cascade(glide)
    assert list(loaded.params) == ["decoder", "upsampler_256"]
    assert loaded.manifests["decoder"].clip_id is None and loaded.clip_id is None
    sampler = batch_sampling.compile_sampler(loaded.cascade, FAST)
    options = {"seed": 0, "options": FAST, "sampler": sampler}
    images = batch_sampling.sample_images(loaded, CAPTIONS, **options)
    again = batch_sampling.sample_images(loaded, CAPTIONS[::-1], **options)
    assert images.shape == (2, 32, 32, 3)
    assert np.any(images[0] != again[0])  # the caption is read
    tokens = tokenise(loaded.cascade, load.load_tokenizers(loaded.tokenizer_dirs), CAPTIONS)
    assert list(tokens) == ["decoder"]
    keys = text_to_image.keys_for(0, jnp.arange(2))
    (one_by_one,) = offload.sample(
        load.find_cascade(glide), [offload.SampleBatch(tokens, keys)], options=FAST
    )
    assert np.abs(one_by_one.astype(int) - images.astype(int)).max() <= 1


def test_requests_that_need_a_missing_stage_name_it(glide):
    loaded = load.load_cascade(glide)
    keys = text_to_image.keys_for(0, jnp.arange(2))
    with pytest.raises(UserError, match=r"has no prior, .* its stages are decoder, upsampler_256"):
        text_to_image.sample_z_img(loaded.cascade, loaded.params, {}, keys)
    with pytest.raises(UserError, match="this cascade has no clip"):
        batch_sampling.sample_images(loaded, CAPTIONS, seed=0, options=SampleOptions(best_of=2))
    with pytest.raises(UserError, match="--prior-steps is '4', but these models have no prior"):
        batch_sampling.prior_sampling(loaded.cascade, {"steps": "4"})
    assert batch_sampling.prior_sampling(loaded.cascade, {"steps": None}) is None


def test_stages_run_if_a_later_stage_reads_what_they_yield():
    parts = {name: tiny.experiment(name).model for name in cascades.NAMES}
    cascade, names = Cascade.of(**parts), ["clip", "prior", "decoder", "upsampler_256"]
    assert [step.stage.name for step in plan(cascade)] == names
    assert [step.stage.name for step in plan(cascade, condition="z_img")] == names[2:]
    steps = plan(cascade, condition="z_txt")
    assert [step.stage.name for step in steps] == ["clip", *names[2:]]
    assert steps[1].inputs == {"z_img": "z_txt"}
    assert [step.stage.name for step in plan(cascade, goal="z_img")] == names[:2]
    blind = Cascade.of(**{**parts, "decoder": tiny.experiment("glide").model})
    assert [step.stage.name for step in plan(blind)] == names[2:]


@pytest.mark.parametrize("embedding", ["unit", "raw"])
def test_stages_exchange_embeddings_as_the_decoder_was_trained_on_them(embedding):
    parts = {name: tiny.experiment(name).model for name in cascades.NAMES}
    parts["decoder"] = dataclasses.replace(parts["decoder"], embedding=embedding)
    z = jnp.array([[3.0, 0.0, 4.0]])
    expected = z if embedding == "raw" else z / 5.0
    np.testing.assert_allclose(Cascade.of(**parts).embedding(z), expected, rtol=1e-6)


def test_a_chain_in_another_order_is_rejected():
    parts = {name: tiny.experiment(name).model for name in ("clip", "decoder", "prior")}
    with pytest.raises(UserError, match="the decoder reads z_img, which no stage before it yields"):
        Cascade.of(**parts)


def test_each_stage_reads_captions_through_its_own_tokenizer(tmp_path):
    run = cascades.write(tmp_path / "run", names=("clip", "prior", "decoder"))
    other = caption_tokenizer.train(["quite other words than those"], vocab_size=530)
    path = run / "decoder" / "export"
    shutil.rmtree(path / "tokenizer")
    other.save(path / "tokenizer")
    card = dataclasses.replace(handoff.read_manifest(path), tokenizer_hash=other.hash)
    replace_manifest(path, card)
    loaded = load.load_cascade(run)
    tokenizers = load.load_tokenizers(loaded.tokenizer_dirs)
    tokens = tokenise(loaded.cascade, tokenizers, CAPTIONS)
    length = loaded.cascade.decoder.model.context
    for name, tokenizer in (("prior", cascades.tokenizer()), ("decoder", other)):
        np.testing.assert_array_equal(
            tokens[name].tokens, tokenizer.encode(CAPTIONS, length=length)[0]
        )
    assert np.any(tokens["prior"].tokens != tokens["decoder"].tokens)


def test_a_folder_with_another_stage_is_rejected(tmp_path):
    run = cascades.write(tmp_path / "run", names=("clip", "prior", "decoder"))
    shutil.rmtree(run / "decoder")
    shutil.copytree(run / "prior", run / "decoder")
    with pytest.raises(UserError, match="is a prior; the folder decoder of a run must hold a deco"):
        load.load_cascade(run)


def test_the_first_missing_stage_of_a_chain_is_named(tmp_path):
    run = cascades.write(tmp_path / "run", names=("clip", "prior", "decoder"))
    shutil.rmtree(run / "prior")
    with pytest.raises(UserError, match=r"no export of the prior \(it has clip, decoder\)"):
        load.load_cascade(run)
    shutil.rmtree(run / "clip")
    with pytest.raises(UserError, match=r"no export of the clip \(it has decoder\)"):
        load.load_cascade(run)
    shutil.rmtree(run / "decoder")
    with pytest.raises(UserError, match=r"no export of the clip \(it has none\)"):
        load.load_cascade(run)


@pytest.fixture
def toy(monkeypatch):
    """The one line that adds a stage, and a config of it."""
    monkeypatch.setitem(registry.STAGES, "toy", toy_decoder.ENTRY)
    return toy_decoder.ToyStageConfig(toy_decoder.ToyModelConfig())


def write_toy(config, folder):
    """Exports a toy decoder, in front of a tiny upsampler."""
    stage, words = toy_decoder.make(config), cascades.tokenizer()
    cascades.write(folder, names=("upsampler_256",))
    card = Manifest(stage="toy", size="tiny", step=0, tokenizer_hash=words.hash, **stage.describe)
    export.write_export(
        folder / "toy" / "export",
        params=tiny.random_params(stage),
        manifest=card,
        tokenizer_dir=folder / "tokenizer",
    )
    return folder


@pytest.mark.parametrize(
    "check",
    [
        test_every_stage.test_the_random_batch_satisfies_the_spec,
        test_every_stage.test_the_loss_is_a_function_of_its_key,
        test_every_stage.test_evaluation_has_no_dropout_and_no_drops,
        test_every_stage.test_the_description_is_what_the_registry_builds_from,
    ],
)
def test_a_new_stage_passes_the_tests_of_every_stage(toy, check):
    stage = toy_decoder.make(toy)
    params = tiny.random_params(stage)
    case = (stage, params, jax.tree.map(jnp.asarray, tiny.random_batch(stage, 8)))
    fixtures = {"case": case, "step": test_every_stage.loss_and_gradient(case)}
    check(**{name: fixtures[name] for name in inspect.signature(check).parameters})


def test_a_new_stage_has_a_place_in_a_chain_of_a_run(toy, tmp_path):
    run = write_toy(toy, tmp_path / "run")
    assert list(registry.chain_folders("unclip", "decoder")) == ["decoder", "toy"]
    loaded = load.load_cascade(run)
    assert [stage.name for stage in loaded.cascade.stages] == ["toy", "upsampler_256"]
    assert loaded.cascade.image_size == 32
    images = batch_sampling.sample_images(loaded, CAPTIONS, seed=0, options=FAST)
    assert images.shape == (2, 32, 32, 3)


def test_the_manifest_of_a_new_stage_must_hold_what_it_declares(toy, tmp_path):
    assert toy_decoder.ENTRY.required_fields(toy) == ("tokenizer_hash", "image_size")
    run = write_toy(toy, tmp_path / "run")
    path = run / "toy" / "export"
    card = dataclasses.replace(handoff.read_manifest(path), tokenizer_hash=None)
    replace_manifest(path, card)
    with pytest.raises(UserError, match="the manifest of a toy lacks tokenizer_hash"):
        load.load_cascade(run)


def test_a_new_stage_is_planned_and_trained_on_by_name(toy, tmp_path):
    function, inputs = sampling.function("toy", toy, batch_size=2)
    stage = toy_decoder.make(toy)
    params = nn.meta.unbox(jax.eval_shape(stage.init, jax.random.key(0)))
    assert jax.eval_shape(function, params, inputs).shape == (2, 16, 16, 3)
    where = write_toy(toy, tmp_path / "run") / "toy" / "export"
    experiment = loading.read(
        "experiments/finetune.py:toy", overrides=[f"--config.init_from={where}"]
    )
    assert (experiment.stage, experiment.name, experiment.model) == ("toy", "toy", toy)
    assert experiment.data.load_size == 16 and experiment.data.embeddings == ""


def test_a_run_with_two_decoders_is_rejected(toy, tmp_path):
    run = write_toy(toy, tmp_path / "run")
    cascades.write(run, names=("decoder",), files={"decoder": "glide"})
    with pytest.raises(UserError, match=r"has several decoders \(decoder, toy\); move all but one"):
        load.load_cascade(run)


def test_a_stage_says_where_in_a_chain_it_is():
    with pytest.raises(UserError, match="unknown role of a stage 'decodr'. Did you mean 'decoder'"):
        dataclasses.replace(toy_decoder.ENTRY, role="decodr")
    stage = CascadeStage("upsampler_1024", tiny.experiment("upsampler_1024").model)
    assert stage.entry.name == "upsampler" and stage.reads == ("low_res",)
