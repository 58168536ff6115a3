"""The sample command as a user calls it, on an untrained cascade."""

import json

import jax
import pytest
from PIL import Image, ImageChops

from tests import cascades
from unclip_jax import sample
from unclip_jax.cli import process_flags
from unclip_jax.convert import compact
from unclip_jax.core.checks import UserError
from unclip_jax.handoff import shipped


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    return cascades.write(tmp_path_factory.mktemp("run"))


def read(path):
    with Image.open(path) as image:
        return image.copy()


def size(path):
    return read(path).size


def test_a_call_writes_grid_images_and_a_record_to_draw_them_again(run_dir, tmp_path, capsys):
    out = tmp_path / "grid.png"
    arguments = [f"--models={run_dir}", "--seed=3", "--num=2", "--steps=4", f"--out={out}"]
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
    for batch in ("1", "3"):
        out = tmp_path / f"batch{batch}.png"
        base = [f"--models={run_dir}", "--steps=4", f"--out={out}", f"--batch={batch}"]
        sample.main([*cascades.CAPTIONS, *base])
    for index in range(3):
        one, other = (read(tmp_path / f"batch{batch}" / f"{index:04d}.png") for batch in ("1", "3"))
        assert max(high for _, high in ImageChops.difference(one, other).getextrema()) <= 1


def test_stage_by_stage_gives_the_same_images(run_dir, tmp_path, monkeypatch):
    for name, more in (("whole", []), ("staged", ["--by-stage", "--batch=2"])):
        base = [f"--models={run_dir}", "--steps=4", "--seed=5", f"--out={tmp_path / name}.png"]
        sample.main([*cascades.CAPTIONS, *base, *more])
    for index in range(3):
        one, other = (read(tmp_path / n / f"{index:04d}.png") for n in ("whole", "staged"))
        assert max(high for _, high in ImageChops.difference(one, other).getextrema()) <= 1
    whole, staged = (json.loads((tmp_path / f"{n}.json").read_text()) for n in ("whole", "staged"))
    for name in ("command", "request", "prior", "code_version", "labels", "options"):
        assert staged[name] == whole[name]
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(process_flags, "start_alike", lambda args: None)
    with pytest.raises(UserError, match="by-stage samples on one device; run it in one process"):
        sample.main(["x", f"--models={run_dir}", "--by-stage"])


def test_the_best_of_several_is_the_same_with_previews_and_by_a_schedule(run_dir, tmp_path):
    plain = ["--best-of=3", "--steps=4", "--guidance=2", "--seed=1", f"--models={run_dir}"]
    runs = {
        "plain": [],
        "previews": ["--previews=2"],
        "schedule": ["--guidance-schedule=interval:0:1"],
        "negative": ["--negative=a blue square"],
    }
    images = {}
    for name, more in runs.items():
        out = tmp_path / f"{name}.png"
        sample.main(["a red circle", "a green star", *plain, *more, f"--out={out}"])
        names = json.loads(out.with_suffix(".json").read_text())["images"]
        images[name] = [read(tmp_path / each) for each in names]
    chosen = {**images, "previews": images["previews"][2::3]}  # after two previews each
    for name in ("previews", "schedule"):
        for one, other in zip(chosen["plain"], chosen[name], strict=True):
            assert max(high for _, high in ImageChops.difference(one, other).getextrema()) <= 1
    assert len(images["negative"]) == 2
    assert ImageChops.difference(images["negative"][0], images["plain"][0]).getbbox()


def test_the_best_of_several_pictures_is_kept_and_recorded(run_dir, tmp_path):
    out = tmp_path / "grid.png"
    sample.main(["a red circle", f"--models={run_dir}", f"--out={out}", "--steps=4", "--best-of=3"])
    record = json.loads(out.with_suffix(".json").read_text())
    assert record["options"]["best_of"] == 3 and len(record["images"]) == 1


def test_samplers_are_chosen_on_the_command_line(run_dir, tmp_path):
    out = tmp_path / "grid.png"
    arguments = [f"--models={run_dir}", f"--out={out}", "--steps=logsnr3", "--prior-steps=3"]
    sample.main(["a red circle", *arguments, "--sampler=dpmpp_2m", "--prior-sampler=heun"])
    options = json.loads(out.with_suffix(".json").read_text())["options"]
    assert options["decoder"]["sampler"] == "dpmpp_2m" and options["prior"]["sampler"] == "heun"


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
        (["x", "--sampler=quick"], "unknown sampling.sampler 'quick'. Known: ancestral, ddim"),
        (
            ["x", "--by-stage", "--previews=2"],
            "by-stage samples whole batches, without clip_scale, negative",
        ),
        (["x", "--by-stage", "--best-of=2"], "previews and best_of; leave one of them out"),
    ],
)
def test_mistakes_are_one_line(run_dir, arguments, message):
    with pytest.raises(UserError, match=message):
        sample.main([f"--models={run_dir}", *arguments])


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
        sample.main(["a red circle", "--steps=4", *arguments])
        assert json.loads((tmp_path / "samples.json").read_text())["models"]["path"] == str(path)
    first = (tmp_path / "samples" / "0000.png").read_bytes()
    sample.main(["a red circle", "--steps=4", f"--models={run_dir}"])
    assert (tmp_path / "samples" / "0000.png").read_bytes() == first  # both in float32
