"""Codes of the frozen discrete VAE take the place of images in the batches of DALL-E."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import cascades
from tests.stages import tiny
from unclip_jax import prepare
from unclip_jax.core import batch as batches
from unclip_jax.core.checks import UserError
from unclip_jax.experiment import frozen_dvae, input_pipeline
from unclip_jax.experiment.loading import read
from unclip_jax.handoff import load as handoff
from unclip_jax.inference.load import load_dvae
from unclip_jax.stages import dvae


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    folder = cascades.write(tmp_path_factory.mktemp("run"), names=("dvae", "dalle", "clip"))
    inputs = ["shapes:train=40,validation=16", f"--out={folder}/data", "--image-size=16"]
    prepare.main([*inputs, f"--tokenizer={folder}/tokenizer"])
    return folder


def settings(run_dir, *more):
    data = [f"data.path={run_dir}/data", f"data.dvae={run_dir}/dvae/export"]
    changes = ["train.batch_size=8", *data, *more]
    spec = f"{tiny.ROOT}/experiments/dalle.py:tiny"
    return read(spec, overrides=[f"--config.{each}" for each in changes])


def test_images_are_replaced_by_their_codes(run_dir):
    export = run_dir / "dvae" / "export"
    images = np.random.default_rng(0).uniform(-1, 1, (3, 16, 16, 3)).astype(np.float32)
    result = frozen_dvae.reader(export, load_size=16)(
        {"image": images, "caption": np.array(["a"] * 3)}
    )
    cfg, params, _ = load_dvae(export)
    expected = jax.jit(functools.partial(dvae.encode, cfg))(params, jnp.asarray(images))
    assert result.keys() == {"codes", "caption"}
    np.testing.assert_array_equal(result["codes"], np.asarray(expected).reshape(3, 16))


def test_training_reads_codes_and_knows_whose_they_are(run_dir):
    experiment = settings(run_dir)
    stage = experiment.build_stage()
    inputs = input_pipeline.open_inputs(experiment, stage)
    (batch,) = itertools.islice(iter(inputs.train), 1)
    batches.check(stage.batch_spec, {name: batch[name] for name in stage.batch_spec})
    assert len(np.unique(batch["codes"])) > 1 and "image" not in batch
    card = handoff.read_manifest(run_dir / "dvae" / "export")
    assert inputs.facts["dvae_id"] == card.dvae_id is not None
    export = run_dir / "dvae" / "export"
    assert inputs.train.origin["dvae"] == handoff.content_digest(export)
    elsewhere = dataclasses.replace(experiment.data, dvae="elsewhere")
    moved = dataclasses.replace(experiment, data=elsewhere)
    assert moved.identity() == experiment.identity()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ("data.dvae=", "config.data.dvae is empty, but stage 'dalle' is trained on the codes"),
        ("data.load_size=32", "load_size is 32, but the discrete VAE in .* reads images of 16 pix"),
        ("model.model.grid=2", "config.model.model.grid is 2, but .* has grid 4; set it to that"),
        ("model.model.code_count=63", "code_count is 63, but .* has code_count 64"),
    ],
)
def test_a_discrete_vae_that_does_not_fit_is_rejected(run_dir, changes, message):
    def opened():
        experiment = settings(run_dir, changes)
        return input_pipeline.open_inputs(experiment, experiment.build_stage())

    with pytest.raises(UserError, match=message):
        opened()


def test_an_exported_transformer_is_trained_on_with_the_codes_of_its_run(run_dir):
    where = run_dir / "dalle" / "export"
    spec = f"{tiny.ROOT}/experiments/finetune.py:dalle"
    experiment = read(spec, overrides=[f"--config.init_from={where}"])
    assert experiment.model == tiny.experiment("dalle").model
    assert experiment.data.dvae == str(run_dir / "dvae" / "export")
    assert experiment.data.load_size == 16 and experiment.data.embeddings == ""


def test_another_stage_is_no_discrete_vae(run_dir):
    with pytest.raises(UserError, match="is a clip; give the export of a dvae"):
        frozen_dvae.reader(run_dir / "clip" / "export", load_size=16)
