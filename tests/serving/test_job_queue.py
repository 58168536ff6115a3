"""The queue of jobs."""

import threading

import pytest

from unclip_jax.core.checks import UserError
from unclip_jax.inference.progress import Progress
from unclip_jax.serving.job_queue import Job, JobQueue, QueueFull


class AccessMiddleware:
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
    queue, gate = JobQueue(waiting=1), AccessMiddleware()
    first = queue.submit(Job(gate))
    assert gate.begun.wait(10)
    yield queue, gate, first, queue.submit(Job(lambda report: "second"))
    gate.go.set()


def test_jobs_are_done_in_order_and_progress_can_be_seen(busy):
    queue, gate, first, second = busy
    assert (queue.ahead(first), queue.ahead(second)) == (0, 1)
    assert queue.state() == {"running": 1, "waiting": 1, "limit": 1}
    gate.go.set()
    assert second.wait(10) and first.done
    assert (first.result, second.result) == ("done", "second")
    assert first.progress is not None and first.progress.stage == "decode"


def test_a_full_queue_rejects_jobs_until_one_is_cancelled(busy):
    queue, gate, _, second = busy
    for _ in range(20):
        with pytest.raises(
            QueueFull, match="1 requests are waiting already, the limit of this server"
        ):
            queue.submit(Job(gate))
    second.cancel()
    assert queue.state()["waiting"] == 0
    assert second.done and second.cancelled and second.result is None
    assert queue.ahead(queue.submit(Job(gate))) == 1


def test_a_cancelled_job_ends_at_its_next_report_of_progress(busy):
    _, gate, first, second = busy
    first.cancel()
    gate.go.set()
    assert first.wait(10) and second.wait(10)
    assert first.result is None and first.error is None and second.result == "second"


def test_user_errors_are_passed_on_and_bugs_are_logged(caplog):
    queue = JobQueue(waiting=2)

    def mistake(report):
        raise UserError("the seed\nis wrong.")

    def bug(report):
        raise KeyError("secret")

    jobs = [queue.submit(Job(work)) for work in (mistake, bug)]
    assert all(job.wait(10) for job in jobs)
    assert (jobs[0].error, jobs[0].bug) == ("the seed is wrong.", False)
    assert jobs[1].error == "the server failed (KeyError); see its log." and jobs[1].bug
    assert "secret" in caplog.text


def test_a_job_that_nobody_asks_about_is_cancelled(busy):
    queue, gate, _, second = busy
    second._lease_s = 0.0
    assert second.cancelled and queue.state()["waiting"] == 0
    leased = Job(gate, lease_s=3600)
    leased._renewed -= 3599
    leased.renew()
    leased._renewed -= 3599
    assert not leased.cancelled


def test_a_job_that_runs_too_long_ends_with_advice():
    queue = JobQueue(waiting=2)
    job = queue.submit(Job(lambda report: report(Progress("decode", 1, 2)), limit_s=0.0))
    assert job.wait(10)
    assert "ran for more than 0 seconds" in job.error and "fewer images or steps" in job.error
    assert not job.bug


def test_the_remaining_time_follows_from_earlier_jobs_of_a_kind(busy):
    queue, gate, first, second = busy
    assert queue.remaining_s(second) is None  # nothing of its kind has run
    queue._rates[""] = [2.0, 4.0, 100.0]
    first.cost, second.cost = 1000, 3
    expected = 4 * 1000 - first.seconds + 4 * 3
    assert queue.remaining_s(second) == pytest.approx(expected, abs=1)
    assert queue.remaining_s(first) == pytest.approx(expected - 12, abs=1)
    gate.go.set()
    assert second.wait(10) and queue.remaining_s(second) is None
