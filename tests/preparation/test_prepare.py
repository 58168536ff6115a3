"""`python -m unclip_jax.prepare` from end to end."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from unclip_jax import prepare
from unclip_jax.core.checks import UserError
from unclip_jax.data import dataset_manifest
from unclip_jax.data.prepared import open_split
from unclip_jax.tokenization import caption_tokenizer

ROOT = pathlib.Path(__file__).parents[2]


def run(*arguments: str | pathlib.Path) -> None:
    prepare.main([str(argument) for argument in arguments])


@pytest.fixture
def tars(samples, tmp_path: pathlib.Path) -> pathlib.Path:
    """Twelve pairs for training in two tars, three for validation."""
    for i in range(2):
        samples.write_tar(tmp_path / f"train-{i}.tar", samples.pairs(range(6 * i, 6 * i + 6)))
    samples.write_tar(tmp_path / "val-0.tar", samples.pairs(range(20, 23)))
    return tmp_path


def inputs(tars: pathlib.Path) -> tuple[str, str]:
    return f"train={tars}/train-*.tar", f"validation={tars}/val-*.tar"


def test_tars_become_splits_with_tokenizer_and_report(
    samples, tars: pathlib.Path, capsys: pytest.CaptureFixture[str]
):
    out = tars / "out"
    run(*inputs(tars), f"--out={out}", "--shards=2")
    content = dataset_manifest.read(out)
    assert [(split.name, split.count) for split in content.splits] == [
        ("train", 12),
        ("validation", 3),
    ]
    source = open_split(out, split="train")
    assert [source[i] for i in range(12)] == [samples.record(i) for i in range(12)]
    assert caption_tokenizer.load(out / "tokenizer").hash == content.tokenizer
    facts = json.loads((out / "report.json").read_text())
    assert (facts["train"]["read"], facts["validation"]["kept"]) == (12, 3)
    output = capsys.readouterr()
    assert "validation" in output.out
    assert "12" in output.out
    assert "100%" in output.err  # the progress bar
    assert sorted(path.name for path in out.iterdir()) == [
        "manifest.json",
        "report.json",
        "tokenizer",
        *[f"train-0000{i}-of-00002.array_record" for i in range(2)],
        *[f"validation-0000{i}-of-00002.array_record" for i in range(2)],
    ]


def test_running_again_changes_nothing(tars: pathlib.Path, capsys: pytest.CaptureFixture[str]):
    out = tars / "out"
    run(*inputs(tars), f"--out={out}")
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    capsys.readouterr()
    run(*inputs(tars), f"--out={out}")
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()} == before
    assert "split 'train' of" in capsys.readouterr().out


def test_splits_can_be_added_later_and_share_the_tokenizer(tars: pathlib.Path):
    out = tars / "out"
    run(inputs(tars)[0], f"--out={out}")
    before = dataset_manifest.read(out).tokenizer
    run(f"{tars}/val-0.tar", "--split=validation", f"--out={out}")
    content = dataset_manifest.read(out)
    assert [split.name for split in content.splits] == ["train", "validation"]
    assert content.tokenizer == before
    assert json.loads((out / "report.json").read_text()).keys() == {"train", "validation"}


def test_a_lost_shard_is_rebuilt_alike(tars: pathlib.Path):
    out = tars / "out"
    run(*inputs(tars), f"--out={out}", "--shards=2")
    before = dataset_manifest.read(out)
    (out / "train-00001-of-00002.array_record").write_bytes(b"")
    run(*inputs(tars), f"--out={out}", "--shards=2")
    assert dataset_manifest.read(out).split("train") == before.split("train")
    assert len(open_split(out, split="train")) == 12


def test_bad_records_are_reported_by_reason(
    samples, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
):
    members = samples.pairs(range(40))
    members += [("cut.png", samples.png(1)[:50]), ("cut.txt", b"a")]
    members += [("mute.png", samples.png(1)), ("blank.png", samples.png(1)), ("blank.txt", b" ")]
    members += [("long.png", samples.png(1, height=10, width=100)), ("long.txt", b"a")]
    members += [("dot.png", samples.png(1, height=1, width=1)), ("dot.txt", b"a")]
    members += [("latin.png", samples.png(1)), ("latin.txt", b"caf\xe9")]
    members += [("page.png", b"<html>"), ("page.txt", b"a")]
    samples.write_tar(tmp_path / "x.tar", members)
    run(tmp_path / "x.tar", f"--out={tmp_path}/out", "--max-bad=0.2")
    facts = json.loads((tmp_path / "out" / "report.json").read_text())["train"]
    assert (facts["read"], facts["kept"]) == (47, 40)
    assert facts["skipped"] == {
        "truncated image": 1,
        "no caption": 1,
        "empty caption": 1,
        "absurd aspect ratio": 1,
        "too small": 1,
        "bad UTF-8": 1,
        "not an image": 1,
    }
    assert facts["named"]["truncated image"] == ["cut"]
    assert "train: 1 skipped, absurd aspect ratio: long" in capsys.readouterr().out


def test_a_stop_leaves_a_report_and_no_manifest(samples, tmp_path: pathlib.Path):
    members = samples.pairs(range(10)) + [(f"mute{i}.png", samples.png(i)) for i in range(5)]
    samples.write_tar(tmp_path / "x.tar", members)
    with pytest.raises(UserError, match="stopped: 2 of .*2 no caption"):
        run(tmp_path / "x.tar", f"--out={tmp_path}/out")
    facts = json.loads((tmp_path / "out" / "report.json").read_text())["train"]
    assert facts["skipped"] == {"no caption": 2}
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_the_procedural_world(tmp_path: pathlib.Path):
    run("shapes:train=20,validation=5", f"--out={tmp_path}/out", "--image-size=32", "--seed=4")
    source = open_split(tmp_path / "out", split="train")
    assert len(source) == 20
    assert source[0]["caption"] in json.loads(source[0]["scene"])["captions"]
    assert source[3]["key"] == "train-4-00000003"
    tokenizer = caption_tokenizer.load(tmp_path / "out" / "tokenizer")
    _, mask = tokenizer.encode([source[i]["caption"] for i in range(20)], length=64)
    assert mask.sum(axis=1).max() < 32


def test_clips_own_tokenizer(shared: pathlib.Path, tars: pathlib.Path):
    run(inputs(tars)[1], f"--out={tars}/out", f"--tokenizer={shared}/data/clip_bpe")
    assert caption_tokenizer.load(tars / "out" / "tokenizer").vocab_size == 49408
    caption_tokenizer.train(["x"], vocab_size=600).save(tars / "other")
    with pytest.raises(UserError, match="another tokenizer than the one given"):
        run(inputs(tars)[1], f"--out={tars}/out", f"--tokenizer={tars}/other")


def test_no_tokenizer(tars: pathlib.Path):
    run(inputs(tars)[1], f"--out={tars}/out", "--tokenizer=none")
    assert dataset_manifest.read(tars / "out").tokenizer == ""
    assert not (tars / "out" / "tokenizer").exists()


def test_a_tokenizer_is_added_without_naming_the_inputs_again(tars: pathlib.Path):
    out = tars / "out"
    run(inputs(tars)[1], f"--out={out}", "--tokenizer=none")
    run(f"--out={out}")
    content = dataset_manifest.read(out)
    assert [split.count for split in content.splits] == [3]
    assert caption_tokenizer.load(out / "tokenizer").hash == content.tokenizer
    with pytest.raises(UserError, match="no data set at .*nowhere"):
        run(f"--out={tars}/nowhere")
    assert not (tars / "nowhere").exists()


def test_unknown_tokenizer_is_found_before_the_work(tars: pathlib.Path):
    with pytest.raises(UserError, match="no tokenizer in .*nowhere"):
        run(inputs(tars)[1], f"--out={tars}/out", f"--tokenizer={tars}/nowhere")
    assert not (tars / "out" / "manifest.json").exists()


def test_a_split_made_from_something_else(tars: pathlib.Path):
    run(inputs(tars)[0], f"--out={tars}/out")
    with pytest.raises(UserError, match="already holds a split 'train' made from other inputs"):
        run(f"{tars}/val-0.tar", f"--out={tars}/out")


def test_emoji_in_one_command(shared: pathlib.Path, tmp_path: pathlib.Path):
    out = tmp_path / "emoji"
    run(f"validation={shared}/data/emoji/validation-*.tar", f"--out={out}")
    source = open_split(out, split="validation")
    assert len(source) == 358
    assert json.loads((out / "report.json").read_text())["validation"]["skipped"] == {}


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "unclip_jax.prepare", *arguments]


def test_mistakes_are_one_line(tmp_path: pathlib.Path):
    process = subprocess.run(
        command(f"{tmp_path}/nowhere", f"--out={tmp_path}/out"),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 2
    assert process.stderr == (
        f"error: input {tmp_path}/nowhere does not exist; give a folder, a tar or a glob of them.\n"
    )


def test_a_folder_that_cannot_be_written(tars: pathlib.Path):
    (tars / "file").touch()
    process = subprocess.run(
        command(inputs(tars)[1], f"--out={tars}/file/out"),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 2
    assert process.stderr.startswith(f"error: cannot write {tars}/file/out: Not a directory; give")
    assert process.stderr.count("\n") == 1


def test_ctrl_c_is_polite_and_loses_nothing(tmp_path: pathlib.Path):
    arguments = ("shapes:train=6000", f"--out={tmp_path}/out", "--shards=60", "--image-size=32")
    process = subprocess.Popen(
        command(*arguments),
        cwd=ROOT,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        # whoever runs the tests in the background ignores ctrl-C, and children inherit that
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 60
    logs = tmp_path / "out" / ".prepare"  # a shard is complete once its log is written
    while time.monotonic() < deadline and len(list(logs.glob("*.json"))) < 2:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.splitlines()[-1] == "interrupted: run the same command again to continue."
    assert "Traceback" not in errors
    complete = [tmp_path / "out" / path.stem for path in logs.glob("*.json")]
    finished = {path: path.stat().st_mtime_ns for path in complete}
    assert 2 <= len(finished) < 60
    rerun = subprocess.run(command(*arguments), cwd=ROOT, capture_output=True, check=False)
    assert rerun.returncode == 0
    assert all(path.stat().st_mtime_ns == when for path, when in finished.items())
    source = open_split(tmp_path / "out", split="train")
    assert [source[i]["key"] for i in (0, 5999)] == ["train-0-00000000", "train-0-00005999"]
    assert len(source) == 6000
    assert not os.path.exists(tmp_path / "out" / ".prepare")
