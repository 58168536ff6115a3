"""The queue of jobs."""

import threading

import pytest

from unclip_jax.core.checks import UserError
from unclip_jax.inference.progress import Progress
from unclip_jax.serving.job_queue import JobQueue, QueueFull


class Gate:
    """Work that reports its start and waits for a signal to go on."""

    def __init__(self):
        self.begun, self.go = threading.Event(), threading.Event()

    def __call__(self, report):
        self.begun.set()
        assert self.go.wait(10)
        report(Progress("decode", 1, 2))
        return "done"


@pytest.fixture
def busy():
    """A queue with one job running and one waiting, which fill it."""
    queue, gate = JobQueue(waiting=1), Gate()
    first = queue.submit(gate, owner="a")
    assert gate.begun.wait(10)
    yield queue, gate, first, queue.submit(lambda report: "second", owner="b")
    gate.go.set()


def test_jobs_are_done_in_order_and_progress_can_be_seen(busy):
    queue, gate, first, second = busy
    assert (queue.ahead(first), queue.ahead(second)) == (0, 1)
    assert queue.state() == {"running": 1, "waiting": 1, "limit": 1}
    gate.go.set()
    assert second.wait(10) and first.done
    assert (first.result, second.result) == ("done", "second")
    assert first.progress is not None and first.progress.stage == "decode"


def test_a_full_queue_refuses_jobs_until_one_is_cancelled(busy):
    queue, gate, _, second = busy
    for _ in range(20):
        with pytest.raises(
            QueueFull, match="1 requests are waiting already, as many as this server"
        ):
            queue.submit(gate, owner="c")
    assert queue.cancel("b") == 1
    assert second.done and second.cancelled and second.result is None
    assert queue.ahead(queue.submit(gate, owner="c")) == 1


def test_a_cancelled_job_ends_at_its_next_report_of_progress(busy):
    queue, gate, first, second = busy
    assert queue.cancel("a") == 1
    gate.go.set()
    assert first.wait(10) and second.wait(10)
    assert first.result is None and first.error is None and second.result == "second"


def test_user_errors_are_passed_on_and_bugs_are_logged(caplog):
    queue = JobQueue(waiting=2)

    def mistake(report):
        raise UserError("the seed\nis wrong.")

    def bug(report):
        raise KeyError("secret")

    jobs = [queue.submit(work, owner="a") for work in (mistake, bug)]
    assert all(job.wait(10) for job in jobs)
    assert (jobs[0].error, jobs[0].bug) == ("the seed is wrong.", False)
    assert jobs[1].error == "the server failed (KeyError); see its log." and jobs[1].bug
    assert "secret" in caplog.text
