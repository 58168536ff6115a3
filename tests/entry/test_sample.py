"""The sample command as a user calls it, on an untrained cascade."""

import json

import jax
import jax.numpy as jnp
import pytest
from PIL import Image, ImageChops

from tests import cascades
from unclip_jax import sample
from unclip_jax.cli import process_flags
from unclip_jax.convert import compact
from unclip_jax.core.checks import UserError
from unclip_jax.engine.inference_engine import InferenceEngine
from unclip_jax.handoff import shipped
from unclip_jax.inference.text_to_image import CascadeOutput

# Two images at once, on one chain: most of the calls below run one compiled program.
CHAIN = ("--steps=4", "--batch=2")


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    return cascades.write(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module", autouse=True)
def engines():
    with pytest.MonkeyPatch.context() as patch:
        cascades.share_engines(patch)
        yield


def read(path):
    with Image.open(path) as image:
        return image.copy()


def size(path):
    return read(path).size


def test_a_call_writes_grid_images_and_a_record_to_draw_them_again(run_dir, tmp_path, capsys):
    out = tmp_path / "grid.png"
    arguments = [f"--models={run_dir}", "--seed=3", "--num=2", *CHAIN, f"--out={out}"]
    sample.main(["a red circle", "", *arguments])
    assert "4 images of 32 px" in capsys.readouterr().out
    record = json.loads(out.with_suffix(".json").read_text())
    assert record["request"]["seed"] == 3 and record["options"]["decoder"]["steps"] == "4"
    assert [size(tmp_path / name) for name in record["images"]] == [(32, 32)] * 4
    assert size(out)[0] > 2 * 32
    first = (tmp_path / record["images"][0]).read_bytes()
    sample.main([*record["request"]["captions"], *arguments])
    assert (tmp_path / record["images"][0]).read_bytes() == first


def test_batches_do_not_change_images(run_dir, tmp_path):
    for batch in ("1", "2"):  # the last of three images is alone in its batch of two
        out = tmp_path / f"batch{batch}.png"
        base = [f"--models={run_dir}", "--steps=4", f"--out={out}", f"--batch={batch}"]
        sample.main([*cascades.CAPTIONS, *base])
    for index in range(3):
        one, other = (read(tmp_path / f"batch{batch}" / f"{index:04d}.png") for batch in ("1", "2"))
        assert max(high for _, high in ImageChops.difference(one, other).getextrema()) <= 1


def test_stage_by_stage_gives_the_same_images(run_dir, tmp_path, monkeypatch):
    for name, more in (("whole", []), ("staged", ["--by-stage"])):
        base = [f"--models={run_dir}", *CHAIN, "--seed=5", f"--out={tmp_path / name}.png"]
        sample.main([*cascades.CAPTIONS, *base, *more])
    for index in range(3):
        one, other = (read(tmp_path / n / f"{index:04d}.png") for n in ("whole", "staged"))
        assert max(high for _, high in ImageChops.difference(one, other).getextrema()) <= 1
    whole, by_stage = (
        json.loads((tmp_path / f"{n}.json").read_text()) for n in ("whole", "staged")
    )
    for name in ("command", "request", "prior", "code_version", "labels", "options"):
        assert by_stage[name] == whole[name]
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(process_flags, "start_alike", lambda args: None)
    with pytest.raises(UserError, match="--by-stage samples on one device; run it in one process"):
        sample.main(["x", f"--models={run_dir}", "--by-stage"])


def test_the_best_of_several_is_the_same_with_previews_and_by_a_schedule(run_dir, tmp_path):
    plain = ["--best-of=3", *CHAIN, "--guidance=2", "--seed=1", f"--models={run_dir}"]
    runs = {"plain": [], "stepwise": ["--previews=2", "--guidance-schedule=interval:0:1"]}
    images = {}
    for name, more in runs.items():
        out = tmp_path / f"{name}.png"
        sample.main(["a red circle", "a green star", *plain, *more, f"--out={out}"])
        record = json.loads(out.with_suffix(".json").read_text())
        assert record["options"]["best_of"] == 3
        images[name] = [read(tmp_path / each) for each in record["images"]]
    assert len(images["plain"]) == 2
    for one, other in zip(images["plain"], images["stepwise"][2::3], strict=True):  # 2 previews
        assert max(high for _, high in ImageChops.difference(one, other).getextrema()) <= 1


def test_samplers_are_chosen_on_the_command_line(run_dir, tmp_path, monkeypatch):
    calls = []

    def sample_cascade(engine, captions, *, seed, options):
        calls.append(options)
        return CascadeOutput(None, jnp.zeros((1, 16, 16, 3)), jnp.zeros((1, 32, 32, 3)))

    monkeypatch.setattr(InferenceEngine, "sample_cascade", sample_cascade)
    out = tmp_path / "grid.png"
    arguments = [f"--models={run_dir}", f"--out={out}", "--steps=logsnr3", "--prior-steps=3"]
    arguments += ["--batch=2", "--sampler=dpmpp_2m", "--prior-sampler=heun"]
    sample.main(["a red circle", *arguments])
    (options,) = calls
    assert (options.decoder.sampler, options.decoder.steps) == ("dpmpp_2m", "logsnr3")
    assert (options.prior.sampler, options.prior.steps) == ("heun", "3")
    record = json.loads(out.with_suffix(".json").read_text())["options"]
    assert record["decoder"]["sampler"] == "dpmpp_2m" and record["prior"]["sampler"] == "heun"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["x", "--num=0"], r"num is 0; it must lie in \[1, 4096\]"),
        (["x", "--num=5000"], r"num is 5000; it must lie in \[1, 4096\]"),
        (["x" * 10_001], "captions has 10001 characters; give at most 10000"),
        (["x", "--out=grid.gif"], "out is 'grid.gif'; give a name that ends in .png"),
        (["x", "--guidance=-1"], "guidance is -1.0; it must lie in"),
        (["x", "--steps=ddim999"], "ddim999"),
        (["x", "--best-of=513"], r"best_of is 513; it must lie in \[1, 512\]"),
        (["x", "--best-of=64", "--num=65"], r"number of images is 4160; it must lie in"),
        (
            ["x", "--sampler=quick"],
            "unknown sampler 'quick'. Known: ancestral, consistency, ddim",
        ),
        (
            ["x", "--by-stage", "--previews=2"],
            "--by-stage samples whole batches, without --clip-scale, --classifier-scale, ",
        ),
        (["x", "--by-stage", "--best-of=2"], "--previews and --best-of; leave one of them out"),
    ],
)
def test_mistakes_are_one_line(run_dir, arguments, message):
    with pytest.raises(UserError, match=message):
        sample.main([f"--models={run_dir}", "--batch=2", *arguments])


def test_a_folder_without_models_says_what_to_give(tmp_path):
    with pytest.raises(UserError, match="clip"):
        sample.main([f"--models={tmp_path}", "x"])


def test_without_models_installed_ones_are_taken(run_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(shipped, "WEIGHTS", tmp_path / "weights")
    for arguments in (["x"], ["upscale", "x.png"], ["interpolate", "x.png", "y.png"]):
        with pytest.raises(
            UserError, match=r"no trained models .*train them with `make train-demo"
        ):
            sample.main(arguments)
    small = tmp_path / "weights" / shipped.DEFAULT
    compact.write(run_dir, small)
    for arguments, path in (([], small), (["--models=portraits"], small)):
        sample.main(["a red circle", "", *CHAIN, *arguments])
        assert json.loads((tmp_path / "samples.json").read_text())["models"]["path"] == str(path)
    first = (tmp_path / "samples" / "0000.png").read_bytes()
    sample.main(["a red circle", "", *CHAIN, f"--models={run_dir}"])
    assert (tmp_path / "samples" / "0000.png").read_bytes() == first  # both in float32
