"""Real processes on loopback: each with devices of its own, together one program."""

import contextlib
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence

from tests import compiler

ROOT = pathlib.Path(__file__).parents[1]
PATIENCE = 600  # seconds; a busy machine needs many


def free_port() -> int:
    """A port that nobody listened at a moment ago."""
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start(command: Sequence[str], *, devices: int, **environment: str) -> subprocess.Popen[str]:
    """A Python process with so many pretended CPU devices."""
    settings = {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": compiler.flags(devices),
        "PYTHONPATH": str(ROOT),
        **environment,
    }
    return subprocess.Popen(
        [sys.executable, *command],
        env={**os.environ, **settings},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )


def start_together(
    command: Sequence[str], *, count: int, devices: int
) -> list[subprocess.Popen[str]]:
    """`count` processes that run `command` as one program, configured by the environment."""
    address = f"127.0.0.1:{free_port()}"
    return [
        start(
            command,
            devices=devices,
            JAX_COORDINATOR_ADDRESS=address,
            JAX_NUM_PROCESSES=str(count),
            JAX_PROCESS_ID=str(index),
        )
        for index in range(count)
    ]


def outcome(running: Sequence[subprocess.Popen[str]]) -> list[tuple[int, str, str]]:
    """Wait for all: (exit status, stdout, stderr) of each; none survives this call."""
    try:
        results = [process.communicate(timeout=PATIENCE) for process in running]
        return [(p.returncode, *text) for p, text in zip(running, results, strict=True)]
    finally:
        for process in running:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
                process.wait()


def appears(path: pathlib.Path, running: Sequence[subprocess.Popen[str]]) -> None:
    """Wait until `path` is there, for as long as all processes live."""
    end = time.monotonic() + PATIENCE
    while not path.exists():
        assert time.monotonic() < end, f"{path} did not appear"
        assert all(process.poll() is None for process in running), outcome(running)
        time.sleep(0.05)
