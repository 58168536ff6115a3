"""The documented commands, in order, on the smallest size: captions and pictures in, pictures out.

The commands run as a user runs them, each in its own process with one device. CLIP and the prior
are trained by `make test`; the stages that generate images by `make nightly`.
"""

import hashlib
import json
import math
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import orbax.checkpoint as ocp
import pytest
from PIL import Image

from tests import compiler
from unclip_jax.core.trees import flatten_paths

ROOT = pathlib.Path(__file__).parents[1]
STAGES = ("clip", "prior", "decoder", "upsampler_256")
pytestmark = pytest.mark.slow
# Half of LLVM's work: without any, steps take longer than their compilation saves.
LIGHT = ("--xla_backend_optimization_level=1", "--xla_cpu_parallel_codegen_split_count=1")


def environment():
    flags = (
        ""
        if os.environ.get("UNCLIP_THOROUGH") == "1"
        else " ".join(compiler.supported_flags(LIGHT))
    )
    env = {**os.environ, "PYTHON": sys.executable, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    env["JAX_COMPILATION_CACHE_DIR"] = str(ROOT / ".pytest_cache" / "xla")
    env["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.5"
    return env


def call(*arguments, check=True):
    process = subprocess.run(
        [str(a) for a in arguments], cwd=ROOT, env=environment(), capture_output=True, text=True
    )
    if check and process.returncode:
        pytest.fail(f"{arguments} ended with {process.returncode}:\n{process.stderr[-3000:]}")
    return process


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    """The run directory of a `tiny` cascade up to its prior."""
    folder = tmp_path_factory.mktemp("cascade") / "tiny"
    call("launch/cascade", "tiny", f"--run={folder}", "--until=prior")
    return folder


@pytest.fixture(scope="module")
def whole_run(run_dir):
    """The run directory of all stages; those that were finished are not trained again."""
    stderr = call("launch/cascade", "tiny", f"--run={run_dir}").stderr
    assert f"{run_dir}/prior is finished" in stderr
    return run_dir


def width(path):
    with Image.open(path) as image:
        return image.width


def last(run_dir, stage):
    """The last validation metrics of a stage."""
    lines = (run_dir / stage / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    return [record for record in records if "val/loss" in record][-1]


def manifests(run_dir, *names):
    folders = {name: run_dir / name / "export" for name in names}
    return {name: json.loads((f / "manifest.json").read_text()) for name, f in folders.items()}


def test_the_prior_is_exported_and_fits_clip(run_dir):
    cards = manifests(run_dir, "clip", "prior")
    assert cards["clip"]["clip_id"] == cards["prior"]["clip_id"]
    assert all(card["parameters"] > 0 and card["step"] > 0 for card in cards.values())


@pytest.mark.nightly
def test_every_stage_is_exported_and_fits(whole_run):
    cards = manifests(whole_run, *STAGES)
    assert len({cards[name]["clip_id"] for name in ("clip", "prior", "decoder")}) == 1
    assert all(card["parameters"] > 0 and card["step"] > 0 for card in cards.values())


def test_clip_finds_pairs_far_above_chance(run_dir):
    metrics = last(run_dir, "clip")
    chance = 1 / 128
    assert metrics["val/image_to_text@1"] > 20 * chance
    assert metrics["val/text_to_image@1"] > 20 * chance


def test_the_prior_follows_captions(run_dir):
    metrics = last(run_dir, "prior")
    assert metrics["val/cosine_image"] > metrics["val/cosine_unrelated"] + 0.2


@pytest.mark.nightly
def test_the_decoder_needs_the_right_z_img(whole_run):
    metrics = last(whole_run, "decoder")
    assert metrics["val/loss_wrong_z"] > 1.1 * metrics["val/loss"]


@pytest.mark.nightly
def test_training_left_labelled_images(whole_run):
    for stage in ("decoder", "upsampler_256"):
        pictures = sorted((whole_run / stage / "samples").glob("step_*.png"))
        assert pictures and width(pictures[-1]) > 200


def test_a_second_call_has_nothing_left_to_do(run_dir):
    process = call("launch/cascade", "tiny", f"--run={run_dir}", "--until=prior")
    for stage in ("clip", "prior"):
        assert f"{run_dir}/{stage} is finished" in process.stderr


@pytest.mark.nightly
def test_sample_and_evaluate_speak_of_the_trained_cascade(whole_run, tmp_path):
    run_dir = whole_run
    out = tmp_path / "grid.png"
    python = (sys.executable, "-m")
    call(*python, "unclip_jax.sample", f"--models={run_dir}", "a red circle", f"--out={out}")
    assert width(out) >= 128
    data = f"--data={run_dir}/data"
    process = call(*python, "unclip_jax.evaluate", f"--models={run_dir}", data, "--num=20")
    assert "CLIP retrieval@1 of 256 pairs" in process.stdout
    result = json.loads((run_dir / "evaluation.json").read_text())
    assert set(result["checker"]) == {"prior", "z_txt", "z_img"}


@pytest.fixture(scope="module")
def both_priors(whole_run):
    """stderr of training the autoregressive prior beside the other."""
    run_dir = whole_run
    places = (
        f"--config.data.path={run_dir}/data",
        f"--config.data.embeddings={run_dir}/embeddings",
    )
    config = ("--config=experiments/prior_ar.py:tiny", f"--workdir={run_dir}/prior_ar")
    return call(sys.executable, "-m", "unclip_jax.train", *config, *places).stderr


@pytest.mark.nightly
def test_the_other_prior_trains_on_the_same_embeddings_and_draws(run_dir, both_priors, tmp_path):
    python = (sys.executable, "-m")
    assert "16 of 32 principal components explain" in both_priors
    metrics = last(run_dir, "prior_ar")
    assert metrics["val/loss"] < math.log(32) - 0.3  # an even guess over the buckets
    assert metrics["val/drawn_cosine_image"] > metrics["val/drawn_cosine_unrelated"] + 0.2
    out = tmp_path / "grid.png"
    draw = ("unclip_jax.sample", f"--models={run_dir}", "a red circle", f"--out={out}")
    call(*python, *draw, "--prior=prior_ar")
    assert width(out) >= 128
    data = (f"--models={run_dir}", f"--data={run_dir}/data", "--num=4", "--prior=prior_ar")
    call(*python, "unclip_jax.evaluate", *data)
    assert json.loads((run_dir / "evaluation_prior_ar.json").read_text())["prior"] == "prior_ar"


def training(run_dir, stage, workdir):
    command = [sys.executable, "-m", "unclip_jax.train", f"--config=experiments/{stage}.py:tiny"]
    command += [f"--workdir={workdir}", f"--config.data.path={run_dir}/data"]
    if stage in ("prior", "prior_ar", "decoder"):
        command.append(f"--config.data.embeddings={run_dir}/embeddings")
    short = {"steps": 12, "save_every": 3, "eval_every": 0, "sample_every": 0}
    command.append("--config.optim.warmup_steps=2")
    return command + [f"--config.train.{key}={value}" for key, value in short.items()]


@pytest.mark.nightly
def test_a_prior_that_reads_clip_and_the_last_upsampler_train_and_draw(whole_run, tmp_path):
    """Trains the two remaining options: captions read through CLIP, and 32 -> 64 px."""
    run_dir = whole_run
    other = tmp_path / "run"
    other.mkdir()
    for name in ("clip", "decoder", "upsampler_256"):
        (other / name).symlink_to(run_dir / name)
    clip = ("caption=clip_sequence", "clip_text_width=48")
    reading = [f"--config.model.model.{each}" for each in clip]
    reading.append(f"--config.data.clip={other}/clip/export")
    call(*training(run_dir, "prior", other / "prior"), *reading, "--config.train.eval_every=6")
    assert math.isfinite(last(other, "prior")["val/drawn_cosine_image"])
    call(*training(run_dir, "upsampler_1024", other / "upsampler_1024"))
    out = tmp_path / "grid.png"
    draw = ("unclip_jax.sample", f"--models={other}", "a red circle", f"--out={out}")
    call(sys.executable, "-m", *draw, "--prior-guidance=2")
    assert width(tmp_path / "grid" / "0000.png") == 64


@pytest.mark.nightly
def test_the_comparison_of_priors_says_what_they_are_worth_and_cost(run_dir, both_priors):
    data = (f"--models={run_dir}", f"--data={run_dir}/data", "--num=8", "--embeddings=200")
    call(sys.executable, "-m", "studies.priors", *data)
    page = (run_dir / "priors.md").read_text()
    assert "| diffusion, guidance 4, best of 2 |" in page and "Images of the first 8" in page
    rows = {row["name"]: row for row in json.loads((run_dir / "priors.json").read_text())["rows"]}
    assert len(rows) == 8 and all("joint" in row["checker"] for row in rows.values())
    actual = {name: row["embeddings"] for name, row in rows.items()}
    truth, no_prior = actual["true image"], actual["no prior: z_txt"]
    assert truth["cosine_image"]["value"] == pytest.approx(1.0, abs=1e-5)
    assert no_prior["finds_caption"]["value"] == 1.0
    for name in ("autoregressive", "diffusion, guidance 1, best of 2"):
        assert truth["frechet"] < actual[name]["frechet"] < no_prior["frechet"]
    text = [
        actual[f"diffusion, guidance 1, best of {n}"]["cosine_text"]["value"] for n in (1, 2, 8)
    ]
    assert text == sorted(text)  # what the best of several is chosen by
    cost = [rows[f"diffusion, guidance 1, best of {n}"]["flops"] for n in (1, 2, 8)]
    each = cost[1] - cost[0]
    assert cost[2] - cost[1] == pytest.approx(6 * each, rel=1e-5)  # but for the dot products
    assert all(row["seconds"] > 0 for name, row in rows.items() if name != "true image")


def export_digests(workdir):
    with ocp.StandardCheckpointer() as checkpointer:
        tree = checkpointer.restore(workdir / "export" / "params")
    return {
        path: hashlib.sha256(np.asarray(leaf).tobytes()).hexdigest()
        for path, leaf in flatten_paths(tree).items()
    }


@pytest.mark.parametrize(
    "stage",  # one loop trains all of them; the autoregressive prior begins with fitted parameters
    [
        "prior",
        *(
            pytest.param(name, marks=pytest.mark.nightly)
            for name in ("prior_ar", "clip", "decoder", "upsampler_256")
        ),
    ],
)
def test_a_killed_run_ends_in_the_same_bits(run_dir, tmp_path, stage):
    call(*training(run_dir, stage, tmp_path / "whole"))
    workdir = tmp_path / "killed"
    process = subprocess.Popen(
        training(run_dir, stage, workdir), cwd=ROOT, env=environment(), stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 300
    while process.poll() is None and time.monotonic() < deadline:
        if any((workdir / "checkpoints").glob("[0-9]*")):
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.02)
    process.wait()
    assert process.returncode == -signal.SIGKILL, "the run ended before it could be killed"
    call(*training(run_dir, stage, workdir))
    assert export_digests(workdir) == export_digests(tmp_path / "whole")


def test_an_interrupted_run_saves_the_step_it_stopped_at(run_dir, tmp_path):
    command = training(run_dir, "prior", tmp_path / "run")
    command = [part.replace("steps=12", "steps=4000") for part in command]
    # no checkpoint is due before the signal, so any that is there was saved because of it
    command += ["--config.train.save_every=4000", "--config.train.log_every=1"]
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment(), stderr=subprocess.PIPE, text=True
    )
    metrics = tmp_path / "run" / "metrics.jsonl"
    while not (metrics.is_file() and metrics.read_text()):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "Traceback" not in stderr
    (step,) = [int(path.name) for path in (tmp_path / "run" / "checkpoints").glob("[0-9]*")]
    steps = [json.loads(line)["step"] for line in metrics.read_text().splitlines()]
    assert step == steps[-1] < 4000
    for grid in ("5", "3"):  # nothing that was trained depends on it
        call(*command, "--export-only", f"--config.model.sampling.steps={grid}")
        card = json.loads((tmp_path / "run" / "export" / "manifest.json").read_text())
        assert card["step"] == step and card["config"]["sampling"]["steps"] == grid


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("--config.data.path=nowhere",), "nowhere"),
        (("--config.data.embeddings=nowhere",), "nowhere"),
        (("--config.optim.learning_rate=0.5",), "learning_rate"),
        (("--config.data.tokenizer=nowhere",), "nowhere"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(run_dir, tmp_path_factory, change, message):
    workdir = run_dir / "prior"  # a finished run of other settings
    process = call(*training(run_dir, "prior", workdir), *change, check=False)
    assert process.returncode == 2
    error = process.stderr.strip().splitlines()[-1]
    assert error.startswith("error: ") and message in error
    assert "Traceback" not in process.stderr
