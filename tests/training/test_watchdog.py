import pathlib
import threading

import pytest

from tests.training import toy
from tests.training.test_hooks import step_event
from unclip_jax.training import watchdog as watchdog_module
from unclip_jax.training.watchdog import RESTART, Watchdog


class Clock:
    """Stands in for `time` in the module."""

    now = 0.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    result = Clock()
    monkeypatch.setattr(watchdog_module, "time", result)
    return result


def test_a_run_without_steps_ends_with_the_stacks_of_its_threads(tmp_path: pathlib.Path, clock):
    exit_event, codes = threading.Event(), []
    watchdog = Watchdog(
        tmp_path, minutes=1 / 60, end=lambda code: (codes.append(code), exit_event.set())
    )
    for step in range(5):
        clock.now += 0.9
        watchdog(step_event(step))
        assert not exit_event.wait(timeout=0.15)  # it looks every tenth of the limit
    clock.now += 1.01
    assert exit_event.wait(timeout=20)
    watchdog.close()
    assert codes == [RESTART]
    stacks = (tmp_path / "stalled_process0.txt").read_text()
    assert "test_a_run_without_steps_ends_with_the_stacks_of_its_threads" in stacks


def test_0_minutes_never_end_a_run(tmp_path: pathlib.Path, clock):
    codes = []
    watchdog = Watchdog(tmp_path, minutes=0.0, end=codes.append)
    clock.now += 1e9
    watchdog.close()
    assert codes == [] and not any(tmp_path.iterdir())


def test_the_status_is_the_one_after_which_launchers_start_again():
    text = (pathlib.Path(__file__).parents[2] / "launch" / "until_done").read_text()
    assert f"PREEMPTED={RESTART}" in text


def test_a_hanging_batch_ends_a_run(tmp_path: pathlib.Path, monkeypatch):
    """The watchdog of a run sees its steps: it ends a hanging run and no other."""
    codes, exit_event = [], threading.Event()

    class Hangs(toy.Stream):
        def __next__(self):
            if self.position == 5:
                exit_event.wait(timeout=20)
            return super().__next__()

    monkeypatch.setattr(
        "unclip_jax.training.loop.Watchdog",
        lambda folder, minutes: Watchdog(
            folder, minutes=minutes, end=lambda code: (codes.append(code), exit_event.set())
        ),
    )
    toy.run(tmp_path, train_data=Hangs(), stall_minutes=3 / 60)
    assert codes == [RESTART]
    assert "toy" in (tmp_path / "stalled_process0.txt").read_text()
