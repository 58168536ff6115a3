"""A prior is distilled with the documented command, and its student samples in a cascade."""

import json
import shutil

import numpy as np
import pytest

from tests import cascades
from unclip_jax import embed, prepare, sample, train
from unclip_jax.core import trees
from unclip_jax.core.checks import UserError
from unclip_jax.experiment import loading
from unclip_jax.handoff import load

FEW = (
    "optim.warmup_steps=0",
    "train.steps=2",
    "train.batch_size=16",
    "train.eval_every=2",
    "train.sample_every=0",
    "train.ema_decay=0.5",
    "distill.steps=3",
    "distill.substeps=2",
)


def command(folder, *overrides):
    return [
        "--config=distill:prior",
        f"--workdir={folder / 'student'}",
        f"--config.init_from={folder / 'run/prior/export'}",
        f"--config.data.path={folder / 'data'}",
        f"--config.data.embeddings={folder / 'embeddings'}",
        "--compilation-cache=",
        *(f"--config.{each}" for each in (*FEW, *overrides)),
    ]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Models, data that fit them, and the student of their prior."""
    folder = tmp_path_factory.mktemp("distill")
    cascades.write(folder / "run")
    tokenizer = f"--tokenizer={folder / 'run/clip/export/tokenizer'}"
    prepare.main(["shapes:train=64,validation=32", f"--out={folder / 'data'}", tokenizer])
    clip = [f"--clip={folder / 'run/clip/export'}", f"--data={folder / 'data'}"]
    embed.main([*clip, f"--out={folder / 'embeddings'}", "--batch=32"])
    train.main(command(folder))
    shutil.copytree(folder / "run", folder / "fast")
    shutil.rmtree(folder / "fast/prior/export")
    shutil.copytree(folder / "student/export", folder / "fast/prior/export")
    return folder


def test_the_export_states_how_it_was_distilled(place):
    card = load.read_manifest(place / "student/export")
    assert (card.stage, card.size, card.step) == ("prior", "distilled", 2)
    teacher = load.read_manifest(place / "run/prior/export").config["sampling"]
    scale = teacher["guidance_scale"]
    facts = {"method": "progressive", "steps": 3, "guidance_scale": scale}
    assert card.config["diffusion"]["distillation"] == facts
    own = card.config["sampling"]
    assert (own["steps"], own["sampler"], own["guidance_scale"]) == ("trailing3", "ddim", 1.0)
    assert card.clip_id == load.read_manifest(place / "run/clip/export").clip_id


def test_training_begins_at_the_teacher_and_moves_away(place):
    folders = [place / "run/prior/export", place / "student/export"]
    before, after = (
        trees.flatten_paths(load.read_params(p, abstract=load.stored_shapes(p))) for p in folders
    )
    change = max(np.abs(before[path] - after[path]).max() for path in before)
    assert 0 < change < 1e-3  # two steps of 1e-4


def test_errors_of_samples_are_measured(place):
    lines = (place / "student/metrics.jsonl").read_text().splitlines()
    metrics = json.loads(lines[-1])
    assert metrics["val/sample_error"] > 0 and metrics["val/plain_error"] > 0


def test_another_distillation_is_another_run(place):
    with pytest.raises(UserError, match="distill"):
        train.main(command(place, "distill.substeps=4"))


def test_the_student_samples_in_a_cascade(place, tmp_path):
    out = [f"--models={place / 'fast'}", "--steps=2", f"--out={tmp_path / 'x.png'}"]
    sample.main(["a red circle", *out])
    assert (tmp_path / "x.png").is_file()
    with pytest.raises(UserError, match="distilled to 3 steps; use 'trailing3'"):
        sample.main(["a red circle", *out, "--prior-steps=64"])


def test_a_teacher_is_needed(place):
    arguments = [a for a in command(place) if "init_from" not in a]
    with pytest.raises(UserError, match="name the export to train on with --config.init_from"):
        train.main(arguments)


def test_the_next_round_starts_from_the_export_of_the_last(place):
    student = f"--config.init_from={place / 'student/export'}"
    overrides = [a for a in command(place) if a.startswith("--config.")] + [student]
    following = ["--config.distill.steps=1", "--config.distill.substeps=3"]
    experiment = loading.read("distill:prior", overrides=overrides + following)
    assert (experiment.distill.steps, experiment.distill.substeps) == (1, 3)
    assert experiment.model.diffusion.distillation.steps == 3  # of the teacher
    with pytest.raises(UserError, match="distill.steps is 3 and .*substeps 2; their product must"):
        loading.read("distill:prior", overrides=overrides)
