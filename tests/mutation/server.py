"""A process that runs test sessions in forks of itself, so that each begins with JAX imported.

Started in a copy of the tree by `runner.Server`: `python server.py MODULE ...` imports the modules,
then reads one job per line from standard input and answers with one line, both in JSON. It imports
nothing of the project itself; every fork imports it anew, with the mutant in its place.
"""

import collections
import contextlib
import importlib
import json
import os
import pathlib
import signal
import sys
import tempfile
import threading
import time
import traceback
from typing import Any

import psutil
import pytest

TRACED = ("unclip_jax", "experiments")
NOT_RUN = "not nightly and not parity"


class Recorder:
    """A pytest plugin: the first failure, durations, and the lines that each test reaches."""

    def __init__(self, *, first: list[str]):
        """Runs the tests named in `first` before others of their file."""
        self.failed, self.reason = "", ""
        self.durations: dict[str, float] = collections.defaultdict(float)
        self.lines: dict[str, set[tuple[str, int]]] = collections.defaultdict(set)
        self._first = set(first)
        self._test = "import"

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        files = list(dict.fromkeys(item.path for item in items))
        items.sort(key=lambda item: (files.index(item.path), item.nodeid not in self._first))

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._test = nodeid

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.durations[report.nodeid] += report.duration
        self._note(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self._note(report)

    def _note(self, report: Any) -> None:
        if report.failed and not self.failed:
            self.failed = report.nodeid
            self.reason = str(report.longrepr).strip().splitlines()[-1][:300]

    def trace(self, frame: Any, event: str, arg: Any) -> Any:
        """Follows the frames of the project's own modules, as `sys.settrace` calls it."""
        path = frame.f_code.co_filename
        if path not in self._traced:
            self._traced[path] = self._own(path)
        own = self._traced[path]
        if not own:
            return None
        self.lines[self._test].add((own, frame.f_lineno))

        def local(frame: Any, event: str, arg: Any) -> Any:
            self.lines[self._test].add((own, frame.f_lineno))
            return local

        return local

    _traced: dict[str, str] = {}  # noqa: RUF012

    @staticmethod
    def _own(path: str) -> str:
        with contextlib.suppress(ValueError):
            relative = pathlib.Path(path).relative_to(pathlib.Path.cwd())
            if relative.parts[0] in TRACED:
                return str(relative)
        return ""


def run_tests(job: dict[str, Any], answer: pathlib.Path) -> None:
    """Runs the tests of a job in this process and writes what they showed."""
    recorder = Recorder(first=job["first"])
    options = ["-x", "-q", "-p", "no:cacheprovider", "-m", NOT_RUN, *job["options"]]
    if job["trace"]:
        threading.settrace(recorder.trace)
        sys.settrace(recorder.trace)
    code = pytest.main([*options, *job["tests"]], plugins=[recorder])
    sys.settrace(None)
    result = {
        "status": "passed" if code == pytest.ExitCode.OK else "failed",
        "test": recorder.failed or f"exit {int(code)}" * (code != 0),
        "reason": recorder.reason,
        "durations": dict(recorder.durations),
        "lines": {name: sorted(lines) for name, lines in recorder.lines.items()},
    }
    answer.write_text(json.dumps(result))


def serve(job: dict[str, Any]) -> dict[str, Any]:
    """Runs a job in a fork; ends it with its children where it takes too long or too much."""
    with tempfile.TemporaryDirectory() as folder:
        answer, output = pathlib.Path(folder, "answer.json"), pathlib.Path(folder, "output")
        start = time.monotonic()
        child = os.fork()
        if child == 0:
            _become_child(job, answer, output)
        status = _wait(child, job, start)
        seconds = time.monotonic() - start
        if status == "ended" and answer.exists():
            return {**json.loads(answer.read_text()), "seconds": seconds}
        status = "crashed" if status == "ended" else status
        text = output.read_text(errors="replace")[-2000:] if output.exists() else ""
        return {"status": status, "test": "", "reason": text, "seconds": seconds}


def _become_child(job: dict[str, Any], answer: pathlib.Path, output: pathlib.Path) -> None:
    os.setsid()
    file = os.open(output, os.O_WRONLY | os.O_CREAT)
    for stream in (1, 2):
        os.dup2(file, stream)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    code = 1
    try:
        run_tests(job, answer)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # threads of JAX do not matter any more


def _wait(child: int, job: dict[str, Any], start: float) -> str:
    """Waits for a child; returns "ended", "timeout" or "memory"."""
    status = ""
    while not status:
        if os.waitpid(child, os.WNOHANG)[0]:
            status = "ended"
        elif time.monotonic() - start > job["timeout"]:
            status = "timeout"
        elif _memory(child) > job["memory"]:
            status = "memory"
        else:
            time.sleep(0.05)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # the group that `os.setsid` began
    if status != "ended":
        os.waitpid(child, 0)
    return status


def _memory(child: int) -> int:
    """Returns the resident bytes of a process and its children."""
    total = 0
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(child)
        for each in (process, *process.children(recursive=True)):
            with contextlib.suppress(psutil.Error):
                total += each.memory_info().rss
    return total


def main() -> None:
    """Imports the modules named on the command line, then serves jobs until the input ends."""
    sys.path[0] = str(pathlib.Path.cwd())
    for name in sys.argv[1:]:
        importlib.import_module(name)
    print("ready", flush=True)  # noqa: T201
    for line in sys.stdin:
        print(json.dumps(serve(json.loads(line))), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
