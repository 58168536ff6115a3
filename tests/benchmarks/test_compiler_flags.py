"""Flags of XLA in turns with the program without them."""

import json
import re

import pytest

from benchmarks import compiler_flags, interleaved
from unclip_jax.core.checks import UserError

CONFIG = "--config=experiments/prior.py:tiny"


def test_flags_follow_those_of_the_environment_and_unknown_ones_have_a_row(monkeypatch):
    monkeypatch.setattr(interleaved, "REST", 0.0)
    monkeypatch.setitem(compiler_flags.SIDES, "ours", "tests.benchmarks.flags_side")
    monkeypatch.setenv("XLA_FLAGS", "--first")
    sets = ["--unknown", "--fast", "--other --flags"]
    rows = compiler_flags.measure({"compile_seconds": 7.0}, sets, rounds=3, count=1)
    assert list(rows) == ["none", *sets]
    assert "ended with status 6" in rows["--unknown"]["error"]
    assert rows["none"]["ratio"] == {"median": 1.0, "least": 1.0, "greatest": 1.0}
    assert rows["--fast"]["ratio"]["median"] > 1.5  # 4 without load
    assert rows["--fast"]["seconds"]["least"] < 0.04 <= rows["none"]["seconds"]["least"]
    assert rows["--other --flags"]["seconds"]["least"] >= 0.04


def test_the_table_has_a_row_for_every_set_of_flags():
    spread = {"median": 0.5, "least": 0.25, "greatest": 1.0}
    row = {"seconds": spread, "ratio": spread, "compile_seconds": 7.2}
    text = compiler_flags.table({"none": row, "--a": row, "--b": {"error": "b ended"}}, "step")
    assert text.splitlines() == [
        "| flags | s per step | time without / with | s to compile |",
        "| --- | --- | --- | --- |",
        "| none | 0.5 [0.25, 1] |  | 7 |",
        "| `--a` | 0.5 [0.25, 1] | 0.5 [0.25, 1] | 7 |",
        "| `--b` | failed |  |  |",
    ]


@pytest.mark.nightly
def test_a_train_step_is_measured_with_flags(tmp_path, capsys):
    out = tmp_path / "flags.json"
    small = ["--config.model.model.depth=1", "--config.train.batch_size=32"]
    flags = "--xla_cpu_enable_fast_math=true"
    compiler_flags.main(
        [CONFIG, *small, f"--flags={flags}", "--rounds=1", "--count=1", f"--json={out}"]
    )
    rows = json.loads(out.read_text())["rows"]
    assert rows[flags]["ratio"]["median"] == pytest.approx(
        rows["none"]["seconds"]["median"] / rows[flags]["seconds"]["median"]
    )
    assert f"| `{flags}` |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "--flags are []; give at least one set"),
        (["--flags="], "--flags are ['']; give at least one set"),
        (["--flags=--a", "--flags=--a"], "each set once"),
        (["--flags=--a", "--what=sing"], "unknown --what 'sing'"),
        (["--flags=--a", "--rounds=0"], "--rounds"),
        (["--flags=--a", "--batch=-1"], "--batch"),
    ],
)
def test_mistakes_are_reported(argv, message):
    with pytest.raises(UserError, match=re.escape(message)):
        compiler_flags.parse([CONFIG, *argv])
