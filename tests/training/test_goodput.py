import json
import pathlib

import pytest

from tests.training import toy
from tests.training.test_hooks import step_event
from unclip_jax.training import goodput as goodput_module
from unclip_jax.training.goodput import PARTS, Goodput
from unclip_jax.training.hooks import LoopState, StepDone


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
    base = step_event(number)
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


def test_checkpoints_between_steps_are_no_part_of_them(tmp_path, clock):
    """Neither of the one that compiles nor of those that are repeated, whether they succeed."""
    (tmp_path / "goodput.json").write_text('[{"last_step": 2}]')
    goodput = Goodput(tmp_path, start=0)

    def fails():
        clock.now += 100
        raise OSError

    for number in (1, 2, 3):
        with pytest.raises(OSError), goodput.account("save"):
            fails()
        step(goodput, clock, number, seconds=number, wait=0.5)
    goodput.write()
    seconds = sessions(tmp_path)[-1]["seconds"]
    assert (seconds["compile"], seconds["repeated"], seconds["save"]) == (1, 2, 300)
    assert (seconds["data"], seconds["total"]) == (0.5, 10 + 306)


def test_a_hook_is_accounted_for_and_called(tmp_path, clock):
    def hook(moment):
        clock.now += moment.step

    goodput = Goodput(tmp_path, start=0)
    wrapped_hook = goodput.accounted("evaluate", hook)
    wrapped_hook(LoopState(4, None, None))
    wrapped_hook(LoopState(3, None, None))
    goodput.write()
    assert sessions(tmp_path)[0]["seconds"]["evaluate"] == 7


def test_a_step_waits_no_longer_than_it_takes_and_not_unless_it_says_so(tmp_path, clock):
    goodput = Goodput(tmp_path, start=7)
    step(goodput, clock, 8, seconds=1)
    step(goodput, clock, 9, seconds=2, wait=5)
    clock.now += 3
    goodput(step_event(10))  # reports no data
    goodput.write()
    (session,) = sessions(tmp_path)
    assert session["seconds"]["data"] == 2
    assert (session["first_step"], session["last_step"]) == (7, 10)


def test_the_file_has_a_line_per_number_and_the_log_the_shares(tmp_path, clock, caplog):
    goodput = Goodput(tmp_path, start=100)
    step(goodput, clock, 101, seconds=60)
    step(goodput, clock, 102, seconds=10, wait=20 / 3)
    with goodput.account("save"):
        clock.now += 20
    with caplog.at_level("INFO"):
        goodput.close()
    assert (
        (tmp_path / "goodput.json").read_text()
        == """[
 {
  "first_step": 100,
  "last_step": 102,
  "seconds": {
   "total": 100.0,
   "start": 10.0,
   "compile": 60.0,
   "data": 6.667,
   "save": 20.0,
   "evaluate": 0.0,
   "repeated": 0.0
  }
 }
]
"""
    )
    assert caplog.messages[-1] == (
        "2 steps in 100 s: start 10 %, compile 60 %, data 7 %, save 20 %, evaluate 0 %, "
        "repeated 0 %, train 3 %"
    )


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
