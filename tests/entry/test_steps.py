"""The steps command on an untrained prior: its output can be used, and mistakes are one line."""

import dataclasses
import re

import numpy as np
import pytest

from tests import cascades
from unclip_jax import embed, prepare, sample, steps
from unclip_jax.core.checks import UserError
from unclip_jax.data import sources
from unclip_jax.data.embedding_writer import EmbeddingWriter
from unclip_jax.diffusion import respace
from unclip_jax.experiment import loading, sampling_grid
from unclip_jax.objectives.gaussian import Distillation


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Untrained models, and data that fit them."""
    folder = tmp_path_factory.mktemp("steps")
    cascades.write(folder / "run")
    clip = folder / "run/clip/export"
    data = ["shapes:train=32,validation=32", f"--out={folder / 'data'}"]
    prepare.main([*data, f"--tokenizer={clip / 'tokenizer'}"])
    arguments = [f"--clip={clip}", f"--data={folder / 'data'}", "--batch=32"]
    embed.main([*arguments, f"--out={folder / 'embeddings'}"])
    return folder


def arguments(folder, *more, stage="prior"):
    return [
        f"--config=finetune:{stage}",
        f"--config.init_from={folder / 'run' / stage / 'export'}",
        f"--config.data.path={folder / 'data'}",
        f"--config.data.embeddings={folder / 'embeddings'}",
        "--config.train.batch_size=8",
        "--steps=3",
        "--examples=16",
        *more,
    ]


def test_the_result_is_printed_beside_the_usual_grids_and_can_be_sampled_with(
    place, capsys, tmp_path
):
    steps.main(arguments(place))
    text = capsys.readouterr().out
    assert "on 16 other examples" in text and re.search(r"\n\d+ grids tried", text)
    errors = dict(re.findall(r"^(\S+) +(\d+\.\d+)$", text, re.MULTILINE))
    (grid,) = re.findall(r"--sampler=dpmpp_2m --steps=(\S+)", text)
    assert errors.keys() == {"3", "logsnr3", "trailing3", grid}
    assert len(respace.timesteps(grid, num_timesteps=1000)) == 3
    out = tmp_path / "x.png"
    models = [f"--models={place / 'run'}", "--steps=2", f"--prior-steps={grid}"]
    sample.main(["a red circle", *models, "--prior-sampler=dpmpp_2m", f"--out={out}"])
    assert out.is_file()


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--sampler=ancestral", "unknown --sampler 'ancestral'. Known: ddim"),
        ("--steps=1", "--steps is 1"),
        ("--examples=0", "--examples is 0; it must be greater than 0"),
        ("--config.train.batch_size=32", "fills 1 batches of 32, but 2 are needed"),
        ("--config.data.eval_split=", "config.data.eval_split is empty; name a held-out split"),
        ("--config.init_from=/nowhere", "/nowhere is not a finished export"),
    ],
)
def test_mistakes_are_one_line(place, argument, message):
    with pytest.raises(UserError, match=message):
        steps.main(arguments(place, argument))


def test_stages_without_steps_are_rejected(place):
    with pytest.raises(UserError, match="stage 'clip' does not diffuse, so it has no steps"):
        steps.main(arguments(place, stage="clip"))


def test_embeddings_of_another_clip_are_rejected(place, tmp_path):
    source = sources.open_source(place / "data", split="train")
    keys = [source[i]["key"] for i in range(32)]
    writer = EmbeddingWriter(tmp_path / "train", info={"clip_id": "d" * 64})
    rows = np.ones((32, 32), np.float32)
    writer.add(keys, [""] * 32, z_img=rows, z_txt=rows)
    writer.finish()
    with pytest.raises(UserError, match=f"those of {'d' * 12}"):
        steps.main(arguments(place, f"--config.data.embeddings={tmp_path}"))


def test_distilled_stages_keep_their_steps(place):
    experiment = loading.read("finetune:prior", overrides=arguments(place)[1:4])
    model = experiment.model
    diffusion = dataclasses.replace(model.diffusion, distillation=Distillation(steps=4))
    sampling = dataclasses.replace(model.sampling, sampler="ddim", steps="trailing4")
    model = dataclasses.replace(model, diffusion=diffusion, sampling=sampling)
    student = dataclasses.replace(experiment, model=model)
    with pytest.raises(UserError, match="was distilled to 4 steps, which may not change"):
        sampling_grid.of_export(student, sampler="ddim", count=4)


def test_the_comparison_has_other_examples_and_other_noise(place, monkeypatch):
    calls = []

    def on(self, params, batches, *, seed):
        calls.append((seed, {bytes(np.asarray(batch["z_img"])) for batch in batches}))
        return lambda plan: 1.0

    monkeypatch.setattr(sampling_grid._Errors, "on", on)
    steps.main(arguments(place))
    (seed, searched), (other_seed, compared) = calls
    assert seed != other_seed and len(searched) == len(compared) == 2
    assert not searched & compared
