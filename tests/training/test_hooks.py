import json
import math
import os
import pathlib
import signal
import types

import jax
import numpy as np
import pytest

from tests.training import toy
from unclip_jax.core.checks import UserError
from unclip_jax.training import hooks
from unclip_jax.training.hooks import (
    SAVE,
    Every,
    MetricsWriter,
    NaNGuard,
    Profiler,
    ProgressBar,
    SaveClock,
    StepDone,
)
from unclip_jax.training.signals import SIGNALS


def step_event(step: int, *, loss: float = 1.0, bad: float = 0.0) -> StepDone:
    metrics = {"loss": loss, "grad_norm": 2.0, "bad_steps": bad}
    return StepDone(step, metrics, toy.batch_at(step))


def records(workdir: pathlib.Path) -> list[dict]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def writer(workdir: pathlib.Path, *, start: int = 0, every: int = 2) -> MetricsWriter:
    return MetricsWriter(workdir, every=every, start=start, batch_size=16)


def test_hooks_are_due_at_their_interval():
    every = Every(4, lambda moment: None)
    assert [step for step in range(1, 10) if every.due(step, last=step == 9)] == [4, 8, 9]
    assert not Every(0, lambda moment: None).due(4, last=True)


def test_metrics_are_means_over_the_window(tmp_path: pathlib.Path):
    log = writer(tmp_path)
    for step, loss in enumerate([1.0, 3.0, 5.0, math.nan], start=1):
        log(step_event(step, loss=loss, bad=float(math.isnan(loss))))
    log.write(4, {"val/loss": 0.5, "broken": math.inf})
    log.close()
    first, second, third = records(tmp_path)
    assert (first["step"], first["loss"], first["bad_steps"]) == (2, 2.0, 0)
    assert (second["step"], second["loss"], second["bad_steps"]) == (4, 5.0, 1)
    assert first["examples_per_second"] > 0
    assert third == {"step": 4, "val/loss": 0.5, "broken": None}
    assert any((tmp_path / "tensorboard").iterdir())


def test_examples_per_second_leave_out_the_step_that_compiles(tmp_path, monkeypatch):
    times = iter([10.0, 12.0, 13.0, 20.0])
    clock = types.SimpleNamespace(perf_counter=lambda: next(times))
    log = writer(tmp_path)  # of 16 examples per step
    monkeypatch.setattr(hooks, "time", clock)
    for step in range(1, 5):
        log(step_event(step))
    log.close()
    assert [record["examples_per_second"] for record in records(tmp_path)] == [8.0, 4.0]


def test_a_resumed_run_drops_later_records_of_a_killed_one(tmp_path: pathlib.Path):
    log = writer(tmp_path)
    for step in range(1, 9):
        log(step_event(step))
    log.close()
    with (tmp_path / "metrics.jsonl").open("a") as lines:
        lines.write('{"step": 10, "lo')  # killed while writing
    log = writer(tmp_path, start=4)
    log(step_event(5))
    log(step_event(6, loss=7.0))
    log.close()
    assert [record["step"] for record in records(tmp_path)] == [2, 4, 6]
    assert records(tmp_path)[-1]["loss"] == 4.0


def test_the_guard_saves_the_batch_and_stops_after_enough_in_a_row(tmp_path: pathlib.Path):
    guard = NaNGuard(tmp_path, most=3)
    for step, bad in [(1, 0), (2, 1), (3, 0), (4, 1), (5, 2)]:
        guard(step_event(step, loss=math.nan if bad else 1.0, bad=float(bad)))
    with pytest.raises(UserError, match=r"in the 3 steps from 4 to 6; .*bad_batch_step4_process0"):
        guard(step_event(6, loss=math.nan, bad=3.0))
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["bad_batch_step2_process0.npz", "bad_batch_step4_process0.npz"]
    with np.load(tmp_path / names[1], allow_pickle=False) as batch:
        np.testing.assert_array_equal(batch["x"], toy.batch_at(4)["x"])


def test_the_bar_counts_from_where_the_run_starts(capsys):
    bar = ProgressBar(name="toy", steps=10, start=4, batch_size=16)
    bar(step_event(5, loss=2.0))
    bar.note({"val/loss": 0.25})
    bar(step_event(6, loss=math.nan))
    bar(step_event(7, loss=3.0))
    bar.close()
    output = capsys.readouterr().err
    assert "toy:" in output and "7/10" in output
    assert "loss=2.05" in output and "val/loss=0.25" in output and "examples/s=" in output


def postfix(bar: ProgressBar) -> dict[str, str]:
    return dict(part.split("=") for part in bar._bar.postfix.split(", "))


def test_the_bar_shows_a_running_loss_and_the_rate_without_the_first_step(monkeypatch):
    """0.95 of what it was and 0.05 of the new one; losses that are not finite are left out."""
    times = iter([10.0, 30.0, 32.0, 36.0])
    monkeypatch.setattr(hooks, "time", types.SimpleNamespace(perf_counter=lambda: next(times)))
    bar = ProgressBar(name="toy", steps=10, start=0, batch_size=16)
    expected = [("nan", "0"), ("2", "0.8"), ("1.95", "1.45"), ("1.902", "1.85")]
    for step, loss in enumerate([math.nan, 2.0, 1.0, 1.0], start=1):
        bar(step_event(step, loss=loss))
        assert (postfix(bar)["loss"], postfix(bar)["examples/s"]) == expected[step - 1]
        assert bar._bar.n == step
    bar.note({"val/loss": 1 / 3})
    bar.close()


def test_other_processes_show_no_bar_and_write_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    bar = ProgressBar(name="toy", steps=10, start=0, batch_size=16)
    bar(step_event(1))
    bar.close()
    log = writer(tmp_path, every=1)
    log(step_event(1))
    log.write(1, {"val/loss": 1.0})
    log.close()
    assert capsys.readouterr().err == "" and not list(tmp_path.iterdir())
    clock = SaveClock(1.0, now=iter([0.0, 1e6]).__next__)
    assert clock.request() is None  # the first process asks for all


def test_every_record_is_copied_with_its_step(tmp_path: pathlib.Path):
    entries = []
    log = MetricsWriter(
        tmp_path, every=2, start=0, batch_size=16, copy=lambda *record: entries.append(record)
    )
    log(step_event(1, loss=1.0))
    log(step_event(2, loss=3.0))
    log.write(2, {"val/loss": math.nan})
    log.close()
    (first, means), (second, other) = entries
    assert (first, second) == (2, 2) and means["loss"] == 2.0
    assert other.keys() == {"val/loss"} and math.isnan(other["val/loss"])  # as it is


def test_a_window_without_a_finite_value_has_no_mean(tmp_path: pathlib.Path):
    log = writer(tmp_path)
    log(step_event(1, loss=math.nan))
    log(step_event(2, loss=math.inf))
    log.close()
    assert records(tmp_path)[0]["loss"] is None


def test_times_of_a_window_go_to_the_comparison_of_hosts(tmp_path, monkeypatch):
    times = iter([10.0, 12.0, 13.0, 20.0])
    clock = types.SimpleNamespace(perf_counter=lambda: next(times))
    log, result = writer(tmp_path), []
    monkeypatch.setattr(hooks, "time", clock)
    log._hosts = lambda step, own: (result.append((step, *own)), {"host_seconds_max": 7.0})[1]
    for step in range(1, 5):
        base = step_event(step)
        log(StepDone(step, {**base.metrics, "data_seconds": step, "device_seconds": 0.5}, {}))
    log.close()
    assert result == [(2, 2.0, 1.5, 0.5), (4, 4.0, 3.5, 0.5)]
    assert [record["host_seconds_max"] for record in records(tmp_path)] == [7.0, 7.0]


def test_records_that_cannot_be_read_are_dropped(tmp_path: pathlib.Path):
    lines = ['{"step": 2}', "", "{", "[]", '{"loss": 1}', '{"step": null}', '{"step": 4}']
    (tmp_path / "metrics.jsonl").write_text("\n".join([*lines, '{"step": 5}', '{"step": 3}']))
    writer(tmp_path, start=4).close()
    assert [record["step"] for record in records(tmp_path)] == [2, 4, 3]


def test_the_first_batch_of_every_sequence_of_bad_steps_is_saved(tmp_path: pathlib.Path, caplog):
    guard = NaNGuard(tmp_path, most=2)
    guard(step_event(1, bad=1.0))
    with pytest.raises(UserError, match="in the 2 steps from 1 to 2; the first batch .*step1_"):
        guard(step_event(2, bad=2.0))
    guard(step_event(3))
    guard(step_event(4, bad=1.0))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"bad_batch_step{step}_process0.npz" for step in (1, 4)
    ]
    assert caplog.messages[0] == "step 1: loss or gradients not finite; skipped (1 in a row)"
    with pytest.raises(UserError, match="in the 1 steps from 5 to 5"):
        NaNGuard(tmp_path, most=1)(step_event(5, bad=1.0))


def test_the_profiler_records_its_window_and_only_that(tmp_path: pathlib.Path, monkeypatch):
    calls = []
    monkeypatch.setattr("jax.profiler.start_trace", lambda folder: calls.append(("on", folder)))
    monkeypatch.setattr("jax.profiler.stop_trace", lambda: calls.append(("off", step)))
    profiler = Profiler(tmp_path, start=3, steps=2)
    for step in range(1, 9):
        profiler(step_event(step))
    assert calls == [("on", str(tmp_path / "profile")), ("off", 5)]
    idle = Profiler(tmp_path, start=3, steps=0)
    for step in range(1, 9):
        idle(step_event(step))
    other_profiler = Profiler(tmp_path, start=1, steps=5)
    other_profiler(step_event(2))
    other_profiler.close()
    assert len(calls) == 4


def test_a_signal_records_the_next_steps(tmp_path: pathlib.Path, monkeypatch):
    calls = []
    monkeypatch.setattr("jax.profiler.start_trace", lambda folder: calls.append(("on", step)))
    monkeypatch.setattr("jax.profiler.stop_trace", lambda: calls.append(("off", step)))
    before = signal.getsignal(signal.SIGUSR1)
    profiler = Profiler(tmp_path, start=10, steps=0)
    for step in range(1, 20):
        if step in (4, 12):
            os.kill(os.getpid(), signal.SIGUSR1)
        profiler(step_event(step))
    profiler.close()
    assert calls == [("on", 4), ("off", 9), ("on", 12), ("off", 17)]
    assert signal.getsignal(signal.SIGUSR1) == before


def test_a_checkpoint_is_due_when_minutes_have_passed():
    times = iter([0.0, 0.0, 119.0, 120.0, 120.0, 121.0, 239.0, 240.0, 240.0, 300.0, 419.0])
    clock = SaveClock(2.0, now=lambda: next(times))  # two looks where a checkpoint is due
    assert [clock.request() for _ in range(6)] == [None, None, SAVE, None, None, SAVE]
    clock.note_saved()
    assert clock.request() is None
    assert SaveClock(0.0, now=lambda: 1e9).request() is None
    assert min(SIGNALS) > SAVE  # the larger request wins
