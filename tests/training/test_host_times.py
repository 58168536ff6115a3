"""The host whose data come late is named."""

import logging

import pytest

from unclip_jax.training.host_times import HostTimes


def times(others):
    """The times of this process and of others, which waited so long."""
    return HostTimes(
        exchange=lambda own: [own, *([f"h{i}", wait] for i, wait in enumerate(others, 1))]
    )


def test_the_longest_time_is_returned():
    assert times([0.1, 0.4, 0.05])(0.2, 1.0) == {"data_seconds_max": 0.4}
    assert times([0.1])(0.2, 0.0) == {"data_seconds_max": 0.2}
    assert times([])(0.2, 1.0) == HostTimes()(0.2, 1.0) == {}


@pytest.mark.parametrize(
    ("others", "seconds", "message"),
    [
        ([0.01, 0.6, 0.01], 1, "all processes wait for process 2 on h2, which waits 0.6 of 1 s"),
        ([0.01, 0.05, 0.01], 1, ""),  # a small share of a step
        ([0.5, 0.6, 0.5], 1, ""),  # all alike
        ([0.01, 0.6, 0.01], 0, ""),  # of the step that compiles
    ],
)
def test_a_late_host_is_named_once(caplog, others, seconds, message):
    caplog.set_level(logging.WARNING)
    compare = times(others)
    for _ in range(3):
        compare(0.01, float(seconds))
    assert len(caplog.messages) == (1 if message else 0)
    assert all(text.startswith(message) for text in caplog.messages)
