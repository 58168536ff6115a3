import json
import pathlib

import pytest

from tests.training import toy
from tests.training.test_hooks import done
from unclip_jax.training import goodput as goodput_module
from unclip_jax.training.goodput import PARTS, Goodput
from unclip_jax.training.hooks import StepDone


class Clock:
    """Stands in for `time` in the module."""

    def __init__(self, monkeypatch):
        self.now = 1000.0
        monkeypatch.setattr(goodput_module, "time", self)
        process = type("Process", (), {"create_time": lambda _: 990.0})
        monkeypatch.setattr(goodput_module.psutil, "Process", process)

    def time(self):
        return self.now

    perf_counter = time


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


def sessions(folder):
    return json.loads((folder / "goodput.json").read_text())


def step(goodput, clock, number, *, seconds, wait=0.0):
    clock.now += seconds
    base = done(number)
    goodput(StepDone(number, {**base.metrics, "data_seconds": wait}, base.batch))


def test_every_second_is_accounted_for_once(tmp_path: pathlib.Path, clock):
    goodput = Goodput(tmp_path, start=0)
    step(goodput, clock, 1, seconds=30)  # compiles
    step(goodput, clock, 2, seconds=3, wait=1)
    with goodput.account("save"):
        clock.now += 5
    step(goodput, clock, 3, seconds=2)
    with goodput.account("evaluate"):
        clock.now += 7
    goodput.write()
    (session,) = sessions(tmp_path)
    assert (session["first_step"], session["last_step"]) == (0, 3)
    expected = {"start": 10, "compile": 30, "data": 1, "save": 5, "evaluate": 7, "repeated": 0}
    assert session["seconds"] == {"total": 57, **expected}
    assert 57 - sum(expected.values()) == 2 + 2  # training


def test_steps_after_the_last_checkpoint_of_a_killed_session_are_repeated(tmp_path, clock):
    first = Goodput(tmp_path, start=0)
    for number in range(1, 8):
        step(first, clock, number, seconds=1)
    first.write()  # and killed; its last checkpoint was of step 4
    second = Goodput(tmp_path, start=4)
    for number in range(5, 10):
        step(second, clock, number, seconds=1)
    second.write()
    before, after = sessions(tmp_path)
    assert before["seconds"]["repeated"] == 0
    assert after["seconds"]["repeated"] == 2  # 6 and 7; 5 compiles
    assert after["last_step"] == 9


@pytest.mark.parametrize("text", ["", "{", "{}", "[1]", '[{"last_step": "3"}]'])
def test_a_damaged_file_is_begun_anew(tmp_path: pathlib.Path, text):
    (tmp_path / "goodput.json").write_text(text)
    Goodput(tmp_path, start=0).write()
    assert len(sessions(tmp_path)) == 1


def test_a_run_writes_one_session_per_call(tmp_path: pathlib.Path, caplog):
    with caplog.at_level("INFO"):
        toy.run(tmp_path, steps=4)
        toy.run(tmp_path, steps=8)
    first, second = sessions(tmp_path)
    assert (first["last_step"], second["first_step"], second["last_step"]) == (4, 4, 8)
    for session in (first, second):
        parts = session["seconds"]
        assert set(parts) == {"total", *PARTS}
        assert min(parts.values()) >= 0 and parts["compile"] > 0 and parts["save"] > 0
        assert sum(parts[name] for name in PARTS) <= parts["total"] + 0.01
    assert "steps in" in caplog.text
