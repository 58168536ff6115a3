"""A run directory of single files is a run directory: smaller, complete and as strict."""

import dataclasses
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import cascades
from unclip_jax.convert import __main__ as command
from unclip_jax.convert import compact
from unclip_jax.core import trees
from unclip_jax.core.checks import UserError
from unclip_jax.handoff import load as handoff
from unclip_jax.handoff import sidecar
from unclip_jax.inference import load

EVALUATION = {
    "split": "validation",
    "num": 20,
    "seed": 0,
    "checker": {
        "prior": {"colour": {"value": 0.75}, "joint": {"value": 0.5}},
        "z_img": {"colour": {"value": 1.0}, "joint": {"value": 0.625}},
    },
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = cascades.write(tmp_path_factory.mktemp("run"))
    (folder / "evaluation.json").write_text(json.dumps(EVALUATION))
    return folder


@pytest.fixture(scope="module")
def small(run, tmp_path_factory):
    out = tmp_path_factory.mktemp("compact") / "toy"
    argv = [str(run), f"--out={out}", "--to=compact", "--dtype=bfloat16", "--licence=Apache-2.0"]
    command.main(argv)
    return out


def test_every_parameter_is_that_of_the_run_rounded(run, small):
    before, after = load.load_cascade(run), load.load_cascade(small)
    assert after.cascade == before.cascade and after.clip_id == before.clip_id
    assert not trees.shape_differences(before.params, after.params)
    leaves = trees.flatten_paths(after.params)
    for name, leaf in trees.flatten_paths(before.params).items():
        rounded = leaf.astype(jnp.bfloat16) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf
        np.testing.assert_array_equal(leaves[name], rounded)
    assert {path.name for path in (small / "decoder" / "export").iterdir()} == {
        *("manifest.json", "params.safetensors", "tokenizer")
    }


def test_manifests_differ_in_licence_and_digests_alone(run, small):
    for name in cascades.NAMES:
        before, after = (handoff.read_manifest(f / name / "export") for f in (run, small))
        assert after == dataclasses.replace(before, licence="Apache-2.0")


def test_the_card_states_steps_licence_and_scores(small):
    card = (small / "README.md").read_text()
    assert "Licence of the weights: Apache-2.0." in card and "| upsampler_256 |" in card
    assert "on 20 captions of the split 'validation', seed 0" in card
    assert "| z_img from | colour | joint |\n|---|---|---|\n| prior | 0.75 | 0.50 |" in card
    assert "| z_img | 1.00 | 0.62 |" in card
    assert json.loads((small / "evaluation.json").read_text()) == EVALUATION


def test_files_that_were_added_to_an_export_come_along(run, tmp_path, monkeypatch):
    value = {"variances": [1.0, 2.0]}
    monkeypatch.setattr(
        compact.sidecar, "read", lambda path, name: value if "prior" in str(path) else None
    )
    compact.write(run, tmp_path / "out")
    monkeypatch.undo()
    assert sidecar.read(tmp_path / "out" / "prior" / "export", sidecar.VARIANCE) == value


def test_mistakes_are_one_line(run, small, tmp_path):
    with pytest.raises(UserError, match="exists and is not empty"):
        compact.write(run, small)
    for text, message in (
        ('{"checker": {"prior": 3}}', "evaluation.json is not a result of `evaluate`"),
        ("[]", "evaluation.json holds a list, not an object"),
    ):
        folder = tmp_path / "run"
        folder.mkdir(exist_ok=True)
        for name in cascades.NAMES:
            if not (folder / name).exists():
                (folder / name).symlink_to(run / name)
        (folder / "evaluation.json").write_text(text)
        with pytest.raises(UserError, match=message):
            compact.write(folder, tmp_path / "out")
        assert not (tmp_path / "out").exists()


def test_it_can_be_written_again_from_itself(small, tmp_path):
    compact.write(small, tmp_path / "again", dtype="bfloat16")
    first, second = (load.load_cascade(folder).params for folder in (small, tmp_path / "again"))
    jax.tree.map(np.testing.assert_array_equal, first, second)


def test_sampling_defaults_of_the_written_run_are_the_requested_ones(run, tmp_path):
    settings = ("decoder.steps=trailing3", "decoder.sampler=ddim", "prior.guidance_scale=1.5")
    argv = [str(run), f"--out={tmp_path / 'fast'}", "--to=compact"]
    command.main(argv + [f"--sampling={setting}" for setting in settings])
    before, after = load.load_cascade(run).cascade, load.load_cascade(tmp_path / "fast").cascade
    decoder = dataclasses.replace(before.decoder.sampling, steps="trailing3", sampler="ddim")
    prior = dataclasses.replace(before.prior.sampling, guidance_scale=1.5)
    assert after.decoder == dataclasses.replace(before.decoder, sampling=decoder)
    assert after.prior == dataclasses.replace(before.prior, sampling=prior)
    assert after.upsamplers == before.upsamplers and after.clip == before.clip
    # The scores of the run are of its former sampling.
    assert not (tmp_path / "fast" / "evaluation.json").exists()
    assert "z_img from" not in (tmp_path / "fast" / "README.md").read_text()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("decoder.steps", "--sampling is 'decoder.steps'; expected STAGE.FIELD=VALUE"),
        ("steps=8", "--sampling is 'steps=8'; expected STAGE.FIELD=VALUE"),
        ("decodr.steps=8", "has no stage 'decodr'. Did you mean 'decoder'?"),
        ("decoder.step=8", "sampling of decoder has no setting 'step'. Did you mean 'steps'?"),
        ("clip.steps=8", "sampling of clip has no setting 'steps'"),
        ("decoder.sampler=ddmi", "Did you mean 'ddim'?"),
        ("decoder.steps=trailing999999", "trailing999999"),
        ("decoder.guidance_scale=much", "decoder.sampling.guidance_scale"),
        ("decoder.guidance_scale=-1", "sampling.guidance_scale is -1"),
        ("decoder.variance=learned_range", "without a learned variance"),
        ("decoder.percentile=NaN", "sampling.percentile is nan"),
        ("decoder.percentile=500", "sampling.percentile is 500"),
    ],
)
def test_sampling_defaults_that_no_stage_can_have_are_rejected(run, tmp_path, setting, message):
    with pytest.raises(UserError, match=re.escape(message)):
        compact.write(run, tmp_path / "out", sampling=[setting])
    assert not (tmp_path / "out").exists()
