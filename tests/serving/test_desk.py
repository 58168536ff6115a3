"""The line before the desk."""

import threading

import pytest

from unclip_jax.core.checks import UserError
from unclip_jax.inference.progress import Progress
from unclip_jax.serving.job_queue import JobQueue, QueueFull


class Gate:
    """Work that says when it has begun and goes on when it is let."""

    def __init__(self):
        self.begun, self.go = threading.Event(), threading.Event()

    def __call__(self, watch):
        self.begun.set()
        assert self.go.wait(10)
        watch(Progress("decode", 1, 2))
        return "done"


@pytest.fixture
def busy():
    """A desk with one job at work and one in line, which is all it takes."""
    desk, gate = JobQueue(waiting=1), Gate()
    first = desk.submit(gate, owner="a")
    assert gate.begun.wait(10)
    yield desk, gate, first, desk.submit(lambda watch: "second", owner="b")
    gate.go.set()


def test_jobs_are_done_in_order_and_progress_can_be_seen(busy):
    desk, gate, first, second = busy
    assert (desk.ahead(first), desk.ahead(second)) == (0, 1)
    assert desk.state() == {"running": 1, "waiting": 1, "limit": 1}
    gate.go.set()
    assert second.wait(10) and first.done
    assert (first.result, second.result) == ("done", "second")
    assert first.progress is not None and first.progress.stage == "decode"


def test_a_full_line_is_refused_and_takes_the_next_when_somebody_leaves(busy):
    desk, gate, _, second = busy
    for _ in range(20):
        with pytest.raises(
            QueueFull, match="1 requests are waiting already, as many as this server"
        ):
            desk.submit(gate, owner="c")
    assert desk.cancel("b") == 1
    assert second.done and second.cancelled and second.result is None
    assert desk.ahead(desk.submit(gate, owner="c")) == 1


def test_work_ends_at_its_next_sign_of_progress_when_it_is_cancelled(busy):
    desk, gate, first, second = busy
    assert desk.cancel("a") == 1
    gate.go.set()
    assert first.wait(10) and second.wait(10)
    assert first.result is None and first.error is None and second.result == "second"


def test_mistakes_are_told_and_bugs_are_not(caplog):
    desk = JobQueue(waiting=2)

    def mistake(watch):
        raise UserError("the seed\nis wrong.")

    def bug(watch):
        raise KeyError("secret")

    jobs = [desk.submit(work, owner="a") for work in (mistake, bug)]
    assert all(job.wait(10) for job in jobs)
    assert (jobs[0].error, jobs[0].bug) == ("the seed is wrong.", False)
    assert jobs[1].error == "the server failed (KeyError); see its log." and jobs[1].bug
    assert "secret" in caplog.text
