"""One trainer per workdir; what a dead one leaves does not keep others out."""

import contextlib
import errno
import json
import os
import pathlib
import subprocess
import sys
import threading
import time
from typing import Any

import jax
import pytest

from unclip_jax.core import object_lock
from unclip_jax.core.checks import UserError
from unclip_jax.training import workdir_lock
from unclip_jax.training.workdir_lock import FILE, locked

BEAT, STALE_SECONDS, VISIBLE = workdir_lock.BEAT, workdir_lock.STALE, workdir_lock.VISIBLE
ELSEWHERE = {"token": "t", "host": "elsewhere 7", "name": "elsewhere", "pid": 5, "started": "1"}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Heartbeats, and their end, within a second."""
    monkeypatch.setattr(workdir_lock, "BEAT", 0.05)
    monkeypatch.setattr(workdir_lock, "STALE", 0.6)


def leave(workdir: pathlib.Path, content: dict[str, Any] | str) -> pathlib.Path:
    """Writes the lock of another trainer."""
    path = workdir / FILE
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def own(**changes: Any) -> dict[str, Any]:
    return {"token": "t", **object_lock.own_process(), **changes}


def test_six_heartbeats_in_a_row_may_fail_before_a_trainer_counts_as_dead():
    """A slow storage is no reason to take over: 30 seconds, within which files become visible."""
    assert (BEAT, STALE_SECONDS, VISIBLE) == (5.0, 30.0, 20.0)
    assert 6 * BEAT <= STALE_SECONDS and VISIBLE < STALE_SECONDS


def test_a_second_trainer_is_rejected_and_a_third_is_not(tmp_path: pathlib.Path):
    with locked(tmp_path / "run"):
        with (
            pytest.raises(
                UserError, match=f"another trainer is at work in .*run: process {os.getpid()}"
            ),
            locked(tmp_path / "run"),
        ):
            pass
        assert (tmp_path / "run" / FILE).exists()
    assert list((tmp_path / "run").iterdir()) == []
    with locked(tmp_path / "run"):
        pass


def test_a_trainer_that_fails_leaves_no_lock(tmp_path: pathlib.Path):
    with pytest.raises(KeyboardInterrupt), locked(tmp_path):
        raise KeyboardInterrupt
    assert not (tmp_path / FILE).exists()


def dead() -> dict[str, Any]:
    process = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True
    )
    return own(pid=int(process.stdout))


STALE = {
    "a process that is gone": dead,
    "a number that another process has now": lambda: own(started="1"),
    "another host": lambda: ELSEWHERE,
    "half-written": lambda: '{"token": "t", "ho',
    "empty": lambda: "",
    "something else": lambda: "[1, 2]",
}


@pytest.mark.parametrize("kind", STALE)
def test_stale_locks_are_taken_over(tmp_path: pathlib.Path, kind: str):
    leave(tmp_path, STALE[kind]())
    with locked(tmp_path):
        assert json.loads((tmp_path / FILE).read_text())["pid"] == os.getpid()
    assert list(tmp_path.iterdir()) == []


def test_a_killed_trainer_does_not_keep_the_next_one_out(tmp_path: pathlib.Path):
    script = (
        "import os, signal, sys, pathlib\n"
        "from unclip_jax.training.workdir_lock import locked\n"
        "with locked(pathlib.Path(sys.argv[1])): os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    root = pathlib.Path(__file__).parents[2]
    process = subprocess.run([sys.executable, "-c", script, str(tmp_path)], cwd=root, check=False)
    assert process.returncode < 0
    assert (tmp_path / FILE).exists()
    with locked(tmp_path):
        pass


def test_a_trainer_on_another_host_is_waited_for_a_heartbeat_and_rejected(tmp_path: pathlib.Path):
    path, stop = leave(tmp_path, ELSEWHERE), threading.Event()

    def beat():
        while not stop.wait(0.1):
            os.utime(path)

    heartbeat = threading.Thread(target=beat)
    heartbeat.start()
    start = time.monotonic()
    try:
        with (
            pytest.raises(UserError, match="process 5 on elsewhere; wait for it, stop it"),
            locked(tmp_path),
        ):
            pass
    finally:
        stop.set()
        heartbeat.join()
    assert time.monotonic() - start < 0.6
    assert json.loads(path.read_text()) == ELSEWHERE


def test_clocks_of_hosts_may_differ(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    path = leave(tmp_path, ELSEWHERE)
    modified = workdir_lock._modified  # the storage's clock is an hour behind this host's
    monkeypatch.setattr(workdir_lock, "_modified", lambda each: (modified(each) or 0) - 3600)
    start = time.monotonic()
    with locked(tmp_path):
        pass
    assert time.monotonic() - start > 0.5
    assert not path.exists()


def test_the_lock_of_a_living_trainer_has_a_heartbeat(tmp_path: pathlib.Path):
    with locked(tmp_path):
        first = (tmp_path / FILE).stat().st_mtime_ns
        deadline = time.monotonic() + 10
        while (tmp_path / FILE).stat().st_mtime_ns == first and time.monotonic() < deadline:
            time.sleep(0.02)
        assert (tmp_path / FILE).stat().st_mtime_ns > first


def test_a_lock_that_was_taken_over_is_not_removed(tmp_path: pathlib.Path):
    with locked(tmp_path):
        leave(tmp_path, ELSEWHERE)
    assert json.loads((tmp_path / FILE).read_text()) == ELSEWHERE


def test_a_new_lock_is_not_removed_with_a_stale_one(tmp_path: pathlib.Path):
    new = own(token="new")  # which another trainer created after the stale one was read
    path = leave(tmp_path, new)
    workdir_lock._remove(path, ELSEWHERE)
    assert json.loads(path.read_text()) == new
    assert list(tmp_path.iterdir()) == [path]


def test_a_workdir_that_cannot_be_written(tmp_path: pathlib.Path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(UserError, match="cannot write to the workdir .*: Not a directory"),
        locked(tmp_path / "file" / "run"),
    ):
        pass


def test_a_folder_that_another_process_does_not_see_is_rejected(tmp_path, monkeypatch):
    def gather(value):
        return [value, False] if isinstance(value, bool) else [value, value]

    monkeypatch.setattr(workdir_lock, "gather", gather)
    with (
        pytest.raises(UserError, match="not the same folder in all processes: process 1 does not"),
        workdir_lock.locked(tmp_path),
    ):
        pass
    assert not (tmp_path / workdir_lock.FILE).exists()


def test_a_process_that_sees_another_folder_says_so_to_all(tmp_path, monkeypatch):
    messages = []

    def gather(value):
        messages.append(value)
        return ["" if len(messages) == 1 else "token of process 0", value]

    monkeypatch.setattr(workdir_lock, "gather", gather)
    monkeypatch.setattr(workdir_lock, "VISIBLE", 0.0)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    with contextlib.suppress(UserError), workdir_lock.locked(tmp_path):
        pass
    assert messages[-1] is False


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.EIO, errno.ENOTEMPTY])
def test_storage_that_cannot_rename_folders_is_rejected(tmp_path, monkeypatch, code):
    """As a bucket that gcsfuse mounts; files can be renamed there."""
    rename = pathlib.Path.rename

    def only_files(path, target):
        if path.is_dir() and any(path.iterdir()):
            raise OSError(code, os.strerror(code))
        return rename(path, target)

    monkeypatch.setattr(pathlib.Path, "rename", only_files)
    with (
        pytest.raises(
            UserError, match=rf"cannot rename folders .*\({os.strerror(code)}\).*gs:// URL"
        ),
        locked(tmp_path / "run"),
    ):
        pass
    assert not list((tmp_path / "run").iterdir())
