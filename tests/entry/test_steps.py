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
    (grid,) = re.findall(r"--prior-sampler=dpmpp_2m --prior-steps=(\S+)", text)
    assert errors.keys() > {"3", "logsnr3", "trailing3"} and len(errors) == 4
    assert float(errors[grid]) == min(map(float, errors.values()))
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
        (
            "--config.data.eval_split=",
            "no held-out split to search on; name one with config.data.eval_split",
        ),
        ("--config.init_from=/nowhere", "/nowhere is not a finished export"),
    ],
)
def test_mistakes_are_one_line(place, argument, message):
    with pytest.raises(UserError, match=message):
        steps.main(arguments(place, argument))


def test_stages_without_steps_are_rejected(place):
    with pytest.raises(UserError, match="is a clip that does not diffuse, so it has no steps"):
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


def changed(place, stage="prior", **changes):
    """The experiment of a stage whose model has other settings."""
    experiment = loading.read(f"finetune:{stage}", overrides=arguments(place, stage=stage)[1:4])
    return dataclasses.replace(experiment, model=dataclasses.replace(experiment.model, **changes))


def test_distilled_stages_keep_their_steps(place):
    model = changed(place).model
    diffusion = dataclasses.replace(model.diffusion, distillation=Distillation(steps=4))
    sampling = dataclasses.replace(model.sampling, sampler="ddim", steps="trailing4")
    student = changed(place, diffusion=diffusion, sampling=sampling)
    with pytest.raises(UserError, match="was distilled to 4 steps, which may not change"):
        sampling_grid.of_export(student, sampler="ddim", count=4)


def test_a_second_network_for_the_last_step_fixes_the_steps(place):
    experiment = changed(place, stage="upsampler_256", last_step=True)
    with pytest.raises(UserError, match="has a second network for its last step"):
        sampling_grid.of_export(experiment, count=4)


def test_guidance_away_from_the_empty_caption_is_rejected(place):
    model = changed(place).model
    network = dataclasses.replace(
        model.model, caption="clip_sequence", padding="mask", null="empty", clip_text_width=32
    )
    sampling = dataclasses.replace(model.sampling, guidance_scale=2.0)
    experiment = changed(place, model=network, sampling=sampling, drop_text=0.0)
    message = "the guidance is 2, .*search with --config.model.sampling.guidance_scale=1"
    with pytest.raises(UserError, match=message):
        sampling_grid.of_export(experiment, count=4)


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
