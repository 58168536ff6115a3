"""Commands in several real processes do what one does: every stage, sampling, evaluation."""

import json
import pathlib

import numpy as np
import pytest
from PIL import Image

from tests import cascades, processes
from unclip_jax import prepare
from unclip_jax.data.embeddings import EmbeddingSource

WAYS = {"1 device": (1, 1), "8 devices": (1, 8), "2 x 4": (2, 4), "4 x 2": (4, 2)}
STAGES = ("clip", "prior_ar", "decoder", "upsampler_256", "upsampler_1024")
TINY = (
    "--config.train.steps=4",
    "--config.train.batch_size=32",
    "--config.train.log_every=1",
    "--config.train.eval_every=4",
    "--config.train.sample_every=4",
    "--config.train.num_samples=6",
    "--config.data.workers=1",
    "--config.optim.warmup_steps=0",
)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> pathlib.Path:
    """An untrained cascade, data with its tokenizer, and embeddings made by two processes."""
    folder = tmp_path_factory.mktemp("run")
    cascades.write(folder)
    arguments = ["shapes:train=96,validation=32", f"--out={folder}/data"]
    prepare.main([*arguments, f"--tokenizer={folder}/tokenizer"])
    embed(folder, folder / "embeddings", "2 x 4")
    return folder


def run(way: str, *command: str) -> list[tuple[int, str, str]]:
    """Run a command of ours in this way, to a good end."""
    count, devices = WAYS[way]
    module = ["-m", *command]
    if count == 1:
        outcomes = processes.outcome([processes.start(module, devices=devices)])
    else:
        outcomes = processes.outcome(processes.start_together(module, count=count, devices=devices))
    ends = [text[-1500:] for _, _, text in outcomes]
    assert [status for status, _, _ in outcomes] == [0] * count, "\n\n".join(ends)
    return outcomes


def embed(place: pathlib.Path, out: pathlib.Path, way: str) -> None:
    arguments = (
        f"--clip={place}/clip/export",
        f"--data={place}/data",
        f"--out={out}",
        "--batch=24",
    )
    run(way, "unclip_jax.embed", *arguments)


def train(place: pathlib.Path, name: str, way: str) -> tuple[list[float], pathlib.Path]:
    """Losses of a few steps, and the workdir."""
    workdir = place / "trained" / way / name
    where = (f"--config.data.path={place}/data", f"--config.data.embeddings={place}/embeddings")
    mesh = ("--config.mesh.fsdp=4",) if WAYS[way] != (1, 1) else ()
    config = f"--config=experiments/{name}.py:tiny"
    outputs = run(way, "unclip_jax.train", config, f"--workdir={workdir}", *where, *mesh, *TINY)
    for _, _, text in outputs[1:]:  # one voice
        assert "parameters on" not in text and "examples/s" not in text, text
    records = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records if "loss" in record] == [1, 2, 3, 4]
    validation = [record["val/loss"] for record in records if "val/loss" in record]
    assert len(validation) == 1
    return [record["loss"] for record in records if "loss" in record] + validation, workdir


def same_everywhere(place: pathlib.Path, name: str, ways: tuple[str, ...]) -> None:
    """Losses agree up to the order of sums; so do the pictures, up to a level."""
    result = {way: train(place, name, way) for way in ways}
    (first, at), *rest = result.values()
    for losses, workdir in rest:
        np.testing.assert_allclose(losses, first, rtol=2e-4)
        for path in sorted((at / "samples").glob("*.png")):
            there = workdir / "samples" / path.name
            pictures = [np.asarray(Image.open(p), np.int32) for p in (path, there)]
            assert np.mean(np.abs(pictures[0] - pictures[1])) < 0.5, path


@pytest.mark.slow
@pytest.mark.nightly
def test_the_prior_learns_the_same_in_two_processes(place):
    same_everywhere(place, "prior", ("8 devices", "2 x 4"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("key", "values"), [("optim.warmup_steps", (0, 1)), ("train.batch_size", (32, 64))]
)
def test_processes_that_were_started_differently_are_rejected_by_all(tmp_path, key, values):
    command = ["-m", "unclip_jax.train", "--config=experiments/prior.py:tiny"]
    command += [f"--workdir={tmp_path}/run", "--connect-timeout=120", "--num-processes=2"]
    command += [f"--coordinator=127.0.0.1:{processes.free_port()}"]
    running = [
        processes.start([*command, f"--process-id={i}", f"--config.{key}={value}"], devices=1)
        for i, value in enumerate(values)
    ]
    for status, _, output in processes.outcome(running):
        assert status == 2, output[-1500:]
        assert output.splitlines()[-1].startswith(
            f"error: the processes were not started alike: config.{key} is {values[0]} in process "
            f"0 and {values[1]} in process 1."
        ), output[-1500:]
    assert not (tmp_path / "run").exists()


@pytest.mark.nightly
@pytest.mark.parametrize("name", ["prior", *STAGES])
def test_every_stage_learns_the_same_on_1_device_8_devices_and_2_and_4_processes(place, name):
    same_everywhere(place, name, tuple(WAYS))


@pytest.mark.nightly
def test_embeddings_do_not_depend_on_processes(place):
    embed(place, place / "alone", "1 device")
    for split in ("train", "validation"):
        one, two = (EmbeddingSource(place / n / split) for n in ("alone", "embeddings"))
        assert len(one) == len(two)
        for field in ("z_img", "z_txt"):
            np.testing.assert_array_equal(
                one.vectors(field, 0, len(one)), two.vectors(field, 0, len(two))
            )
        assert [one[i]["key"] for i in range(len(one))] == [two[i]["key"] for i in range(len(two))]


@pytest.mark.nightly
def test_samples_do_not_depend_on_processes(place, tmp_path):
    images = {}
    for way in ("1 device", "2 x 4"):
        out = tmp_path / f"{way[0]}.png"
        arguments = (f"--models={place}", f"--out={out}", "--steps=4", "--num=3", "--seed=5")
        outputs = run(way, "unclip_jax.sample", *cascades.CAPTIONS, *arguments)
        words = [
            "\n".join(line for line in text.splitlines() if not line.startswith("[Gloo]"))
            for _, text, _ in outputs
        ]  # XLA's collectives write there too
        assert [bool(text) for text in words] == [True] + [False] * (len(outputs) - 1)
        images[way] = np.asarray(Image.open(out), np.int32)
    assert np.max(np.abs(images["1 device"] - images["2 x 4"])) <= 1


@pytest.mark.nightly
@pytest.mark.parametrize(
    "arguments",
    [
        ("a red circle", "a star", "--previews=2"),
        ("variations", "{}/one.png", "--etas", "0", "1", "--num=1"),
        ("text-diff", "{}/one.png", "blue", "--inversion=ddpm", "--frames=2"),
    ],
)
def test_edits_do_not_depend_on_processes_and_one_of_them_writes(place, tmp_path, arguments):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 30, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "one.png")
    words, grids = [word.format(tmp_path) for word in arguments], []
    for way in ("1 device", "2 x 4"):
        out = tmp_path / f"{way[0]}.png"
        outputs = run(
            way, "unclip_jax.sample", *words, f"--models={place}", f"--out={out}", "--steps=4"
        )
        assert ["wrote" in text for _, text, _ in outputs] == [True] + [False] * (len(outputs) - 1)
        grids.append(np.asarray(Image.open(out), np.int32))
    assert np.max(np.abs(grids[0] - grids[1])) <= 1


@pytest.mark.nightly
def test_the_judgement_does_not_depend_on_processes(place):
    result = []
    for way in ("1 device", "2 x 4"):
        arguments = (f"--models={place}", f"--data={place}/data", "--num=10")
        run(way, "unclip_jax.evaluate", *arguments)
        result.append(json.loads((place / "evaluation.json").read_text()))
    one, two = result
    assert one["retrieval"] == two["retrieval"]
    for name, value in one["upsampler_psnr"].items():
        assert abs(value - two["upsampler_psnr"][name]) < 0.02
    assert one["checker"].keys() == two["checker"].keys()
