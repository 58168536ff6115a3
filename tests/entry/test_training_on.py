"""Converted weights are trained on with the documented commands, and draw again."""

import json
import pathlib
import shutil
import sys

import pytest

from tests.convert.test_trained import write_untrained
from tests.test_cascade import call
from unclip_jax import embed, prepare, sample
from unclip_jax.convert import diffusers, importing
from unclip_jax.core import trees
from unclip_jax.handoff import load

ROOT = pathlib.Path(__file__).parents[2]
FEW = (
    "optim.warmup_steps=0",
    "train.steps=2",
    "train.batch_size=16",
    "train.eval_every=2",
    "train.ema_decay=0.5",
)
STAGES = ("prior", "decoder", "upsampler_256")
pytestmark = pytest.mark.nightly


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A pipeline directory, converted, and data embedded as its CLIP gives embeddings."""
    folder = tmp_path_factory.mktemp("training_on")
    diffusers.write(write_untrained(folder / "made"), folder / "karlo")
    terms = importing.ImportOptions(licence="theirs")
    importing.convert([folder / "karlo"], folder / "run", options=terms)
    clip = folder / "run" / "clip" / "export"
    data = ["shapes:train=64,validation=32", f"--out={folder / 'data'}"]
    prepare.main([*data, f"--tokenizer={clip / 'tokenizer'}"])
    out = [f"--data={folder / 'data'}", f"--out={folder / 'raw'}"]
    embed.main([f"--clip={clip}", *out, "--raw", "--batch=32"])
    return folder


def run_training(place, name):
    """Train stage `name` on for two steps."""
    overrides = [
        f"init_from={place / 'run' / name / 'export'}",
        f"data.path={place / 'data'}",
        *FEW,
    ]
    if name != "upsampler_256":
        overrides += [f"data.embeddings={place / 'raw'}", "data.empty_captions=0.1"]
    config = f"--config={ROOT}/experiments/finetune.py:{name}"
    more = [f"--config.{each}" for each in overrides]
    call(
        sys.executable,
        "-m",
        "unclip_jax.train",
        config,
        f"--workdir={place / 'tuned' / name}",
        *more,
    )


@pytest.fixture(scope="module")
def tuned_run(place):
    """A run directory of what was trained on, with the CLIP that it belongs to."""
    for name in STAGES:
        run_training(place, name)
    shutil.copytree(place / "run" / "clip", place / "tuned" / "clip")
    return place / "tuned"


@pytest.mark.parametrize("name", STAGES)
def test_a_converted_stage_is_trained_on(place, tuned_run, name):
    before, after = (folder / name / "export" for folder in (place / "run", tuned_run))
    cards = [load.read_manifest(path) for path in (before, after)]
    configs = [{**card.config, "z_scale": card.z_scale} for card in cards]
    assert configs[0] == configs[1]
    assert cards[1].licence == cards[0].licence == "theirs"
    assert (cards[1].step, cards[1].size) == (2, "finetune")
    one, other = (
        trees.flatten_paths(load.read_params(p, abstract=load.stored_shapes(p)))
        for p in (before, after)
    )
    changes = {path: abs(one[path] - other[path]).max() for path in one}
    assert 0 < max(changes.values()) < 1e-3  # two steps of 1e-5 and less


def test_what_was_trained_on_draws_with_its_clip_and_goes_back(tuned_run, tmp_path):
    steps = ["--steps=2", "--prior-steps=2", "--by-stage"]
    sample.main(["a red circle", f"--models={tuned_run}", f"--out={tmp_path / 'x.png'}", *steps])
    assert (tmp_path / "x" / "0000.png").is_file()
    diffusers.write(tuned_run, tmp_path / "back")
    settings = json.loads((tmp_path / "back" / "model_index.json").read_text())
    assert settings["_class_name"] == "UnCLIPPipeline"
    assert "theirs" in (tmp_path / "back" / "README.md").read_text()
