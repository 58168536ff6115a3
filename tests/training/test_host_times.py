"""The host that keeps the others waiting is named, for its data or for its own work."""

import json
import logging
import socket

import jax
import pytest

from unclip_jax.training.host_times import FILE, HostTimes, StepTimes


def times(folder, others):
    """The times of this process and of others, in seconds per step."""
    return HostTimes(
        folder, exchange=lambda own: [own, *([f"h{i}", *t] for i, t in enumerate(others, 1))]
    )


def of_hosts(data=(0.01, 0.01, 0.01), host=(0.02, 0.02, 0.02), step=1.0):
    """Times of three other hosts that wait for their data and work for so long."""
    return [(step, d, max(step - d - h, 0.0)) for d, h in zip(data, host, strict=True)]


OWN = StepTimes(1.0, 0.01, 0.97)


def test_the_longest_times_are_returned(tmp_path):
    others = of_hosts(data=(0.1, 0.4, 0.05), host=(0.3, 0.2, 0.5))
    assert times(tmp_path, others)(10, OWN) == pytest.approx(
        {"data_seconds_max": 0.4, "host_seconds_max": 0.5}
    )
    assert times(tmp_path, [])(10, OWN) == HostTimes(tmp_path)(10, OWN) == {}


def test_times_of_every_process_are_in_a_file(tmp_path):
    times(tmp_path, of_hosts())(10, OWN)
    times(tmp_path, of_hosts(data=(0.1, 0.2, 0.3), host=(0.4, 0.5, 0.25)))(20, OWN)
    record = json.loads((tmp_path / FILE).read_text())
    rows = record["processes"]
    assert record["step"] == 20
    assert [row["process"] for row in rows] == [0, 1, 2, 3]
    assert [row["host"] for row in rows] == [socket.gethostname(), "h1", "h2", "h3"]
    assert [row["data_seconds"] for row in rows] == [0.01, 0.1, 0.2, 0.3]
    assert [row["step_seconds"] for row in rows] == [1.0] * 4
    assert [row["device_seconds"] for row in rows] == pytest.approx([0.97, 0.5, 0.3, 0.45])
    assert [row["host_seconds"] for row in rows] == pytest.approx([0.02, 0.4, 0.5, 0.25])


@pytest.mark.parametrize(
    ("others", "step", "message"),
    [
        (
            of_hosts(data=(0.01, 0.6, 0.01)),
            1.0,
            "all processes wait for process 2 on h2, which waits 0.6 of 1 s per step for its data "
            "(the median process: 0.01 s)",
        ),
        (of_hosts(data=(0.01, 0.05, 0.01)), 1.0, ""),  # a small share of a step
        (of_hosts(data=(0.5, 0.6, 0.5)), 1.0, ""),  # all but this one alike
        (of_hosts(data=(0.01, 0.6, 0.01)), 0.0, ""),  # of the step that compiles
        (
            of_hosts(host=(0.02, 0.02, 0.7)),
            1.0,
            "all processes wait for process 3 on h3, which works 0.7 of 1 s per step outside its "
            "devices (the median process: 0.02 s)",
        ),
        (of_hosts(host=(0.02, 0.02, 0.09)), 1.0, ""),
        (of_hosts(host=(0.4, 0.4, 0.7)), 1.0, ""),
    ],
)
def test_a_slow_host_is_named_once(tmp_path, caplog, others, step, message):
    caplog.set_level(logging.WARNING)
    compare = times(tmp_path, others)
    for number in range(3):
        compare(number, OWN._replace(step_seconds=step))
    assert len(caplog.messages) == (1 if message else 0)
    assert all(text.startswith(message) for text in caplog.messages)


@pytest.mark.parametrize(
    ("data", "num_warnings"),
    [
        ((0.01, 0.1, 0.01), False),  # a tenth of a step
        ((0.01, 0.101, 0.01), True),
        ((0.2, 0.4, 0.2), False),  # twice the median, of this process's 0.01 and these
        ((0.2, 0.401, 0.2), True),
    ],
)
def test_a_host_is_slow_beyond_a_tenth_of_a_step_and_twice_the_median(
    tmp_path, caplog, data, num_warnings
):
    caplog.set_level(logging.WARNING)
    own = StepTimes(1.0, data[0], 1.0 - data[0])
    times(tmp_path, of_hosts(data=data, host=(0.0,) * 3))(1, own)
    assert [text.split()[4:8] for text in caplog.messages] == [
        ["process", "2", "on", "h2,"]
    ] * num_warnings


def test_a_host_is_named_again_after_another_or_a_pause(tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    slow, fast = (0.01, 0.6, 0.01), (0.01,) * 3
    windows = iter([slow, slow, (0.6, 0.01, 0.01), slow, fast, slow])
    compare = HostTimes(
        tmp_path,
        exchange=lambda own: [
            own,
            *([f"h{i}", *t] for i, t in enumerate(of_hosts(next(windows)), 1)),
        ],
    )
    for step in range(6):
        compare(step, OWN)
    hosts = [text.partition(" on ")[2][:2] for text in caplog.messages]
    assert hosts == ["h2", "h1", "h2", "h2"]


def test_one_process_writes_and_says_for_all(tmp_path, caplog, monkeypatch):
    caplog.set_level(logging.WARNING)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    longest = times(tmp_path, of_hosts(data=(0.01, 0.6, 0.01)))(10, OWN)
    assert longest["data_seconds_max"] == 0.6
    assert not caplog.messages and not (tmp_path / FILE).exists()


def test_work_on_the_host_is_what_is_left_of_a_step():
    assert StepTimes(1.0, 0.25, 0.5).host_seconds == 0.25
    assert StepTimes(1.0, 0.5, 0.75).host_seconds == 0.0  # times are of different windows
    assert StepTimes(0.0, 0.0, 0.0).host_seconds == 0.0


def test_the_file_has_a_line_per_number(tmp_path):
    HostTimes(tmp_path, exchange=lambda own: [["a", 1.0, 0.25, 0.5], ["b", 1.0, 0.5, 0.25]])(7, OWN)
    lines = (tmp_path / FILE).read_text().splitlines()
    assert lines[:4] == ["{", ' "step": 7,', ' "processes": [', "  {"]
    assert len(lines) == 3 + 2 * 8 + 2 and lines[-1] == "}"


def test_a_host_may_be_slow_in_both_ways(tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    times(tmp_path, of_hosts(data=(0.5, 0.01, 0.01), host=(0.02, 0.4, 0.02)))(1, OWN)
    assert [text.partition(", which")[0].rpartition(" ")[2] for text in caplog.messages] == [
        "h1",
        "h2",
    ]
