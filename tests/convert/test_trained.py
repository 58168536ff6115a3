"""Stages that are trained here in Karlo's form go to the layout of diffusers and come back."""

import dataclasses
import json

import numpy as np
import pytest

from tests import cascades
from tests.convert.test_clip import same
from tests.stages import tiny
from unclip_jax.convert import diffusers, importing, requirements
from unclip_jax.core.checks import UserError
from unclip_jax.experiment.loading import read
from unclip_jax.handoff import export, load
from unclip_jax.handoff.manifest import Manifest

SMALL = {
    "clip": ["image_width=32", "image_depth=1", "text_depth=1"],
    "prior": ["width=32", "depth=1"],
    "decoder": ["unet.channels=16", "unet.head_channels=16", "unet.norm_groups=8"],
    "upsampler_256": ["unet.channels=16"],
}


def experiment(name):
    changes = [f"--config.model.model.{each}" for each in SMALL[name]]
    mine = read(f"{tiny.ROOT}/experiments/{name}.py:karlo", overrides=changes)
    if name != "prior":
        return mine
    z = tuple(float(v) for v in np.float32(np.linspace(0.5, 2, mine.model.model.embed_dim)))
    return dataclasses.replace(mine, model=dataclasses.replace(mine.model, z_mean=z, z_std=z))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_untrained(tmp_path_factory.mktemp("run"))


def write_untrained(folder):
    """A cascade of the size `karlo` in `folder`, with smaller networks."""
    facts = {}
    words = cascades.tokenizer()
    words.save(folder / "tokenizer")
    for name in cascades.NAMES:
        stage = experiment(name).build_stage()
        mine = {} if name.startswith("upsampler") else {"tokenizer_hash": words.hash, **facts}
        manifest = export.write_export(
            folder / name / "export",
            params=tiny.random_params(stage),
            manifest=Manifest(stage=stage.name, size="karlo", step=0, **stage.describe, **mine),
            tokenizer_dir=folder / "tokenizer" if mine else None,
            identity="clip_id" if name == "clip" else None,
        )
        facts = {"clip_id": manifest.clip_id} if name == "clip" else facts
    return folder


def test_it_survives_a_round_trip(run, tmp_path):
    out, again = tmp_path / "out", tmp_path / "again"
    assert {"prior", "decoder", "text_proj"} <= {*diffusers.write(run, out)}
    settings = json.loads((out / "tokenizer" / "tokenizer_config.json").read_text())
    assert settings["model_max_length"] == 24  # to which the pipeline pads captions
    assert json.loads((out / "decoder" / "config.json").read_text())["cross_attention_dim"] == 64
    importing.convert([out], again)
    for name in cascades.NAMES:
        paths = [folder / name / "export" for folder in (run, again)]
        ours, theirs = (load.read_manifest(path) for path in paths)
        trees = [load.read_params(p, abstract=load.stored_shapes(p)) for p in paths]
        trees[0].pop("log_scale", None)  # CLIP's temperature, which a pipeline has no place for
        same(*trees)
        for key in ("z_mean", "z_std", "last_step", "embedding"):
            assert theirs.config.get(key) == ours.config.get(key), (name, key)


@pytest.mark.parametrize("name", cascades.NAMES)
def test_every_size_but_karlo_says_what_is_in_the_way(name):
    shapes = read(f"{tiny.ROOT}/experiments/{name}.py:shapes").build_stage().describe["config"]
    with pytest.raises(UserError, match=f"the {name} has .*launch/cascade karlo"):
        requirements.check({name: shapes})
    requirements.check({name: experiment(name).build_stage().describe["config"]})


def test_all_stages_that_are_in_the_way_are_named_at_once():
    shapes = {
        name: read(f"{tiny.ROOT}/experiments/{name}.py:shapes").build_stage().describe["config"]
        for name in cascades.NAMES
    }
    with pytest.raises(UserError) as error:
        requirements.check(shapes)
    assert all(f"the {name} has " in str(error.value) for name in cascades.NAMES)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("prior", {"z_mean": []}, r"no z_mean \(train with config.model.standardise\)"),
        ("decoder", {"condition": "z_txt"}, r"condition 'z_txt' \(not 'z_img'\)"),
        ("upsampler_256", {"augment": {"most": 0.5}}, "augment.most 0.5"),
        ("decoder", {"embedding": "unit"}, r"embedding 'unit' \(not 'raw'\)"),
    ],
)
def test_each_option_in_the_way_is_named(name, change, message):
    config = experiment(name).build_stage().describe["config"]
    with pytest.raises(UserError, match=message):
        requirements.check({name: {**config, **change}})


@pytest.mark.parametrize("name", ["prior", "decoder", "upsampler_256"])
def test_a_chain_of_another_length_goes_back(name):
    config = experiment(name).build_stage().describe["config"]
    requirements.check({name: {**config, "diffusion": {"num_timesteps": 500}}})
    config["model"]["num_timesteps"] = 500  # the network would scale t
    with pytest.raises(UserError, match=r"model.num_timesteps 500 \(not 1000\)"):
        requirements.check({name: config})


def test_features_of_another_width_than_embeddings_are_in_the_way():
    config = experiment("decoder").build_stage().describe["config"]
    config["model"]["clip_text_width"] = 48
    with pytest.raises(UserError, match=r"model.clip_text_width 48 \(not 96\)"):
        requirements.check({"decoder": config})
