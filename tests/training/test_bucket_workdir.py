"""Workdirs in object stores: what is copied when, and who may write."""

import contextlib
import functools
import json
import time

import jax
import numpy as np
import pytest

from tests.training import toy
from unclip_jax.core import object_lock
from unclip_jax.core.checks import UserError
from unclip_jax.core.storage import Url
from unclip_jax.core.trees import flatten_paths
from unclip_jax.training import bucket_workdir, checkpoint, workdir_lock
from unclip_jax.training.workdir import TakenOver


@pytest.fixture
def url(google_store, tmp_path):
    return google_store / tmp_path.name / "run"


@pytest.fixture(scope="module")
def state(tmp_path_factory):
    """The last state of a run in a local folder."""
    return toy.run(tmp_path_factory.mktemp("local"))


def train(url: Url, **options):
    with bucket_workdir.open_workdir(url) as workdir:
        return toy.run(workdir, log_every=1, **options)


def bits(state) -> dict[str, bytes]:
    return {path: np.asarray(x).tobytes() for path, x in flatten_paths(state).items()}


def records(url) -> list[int]:
    return [json.loads(line)["step"] for line in (url / "metrics.jsonl").read_bytes().splitlines()]


class Killed(BaseException):
    """As by kill -9: nothing is copied any more."""


class Mortal(toy.Stream):
    """Ends the run when batch number 7 is asked for, between two checkpoints."""

    def __next__(self):
        if self.position == 7:
            bucket_workdir._Copy._copy = lambda self: None
            raise Killed
        return super().__next__()


def test_a_killed_run_continues_from_the_store(url, state, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(bucket_workdir._Copy, "_copy", bucket_workdir._Copy._copy)  # restores it
        with pytest.raises(Killed):
            train(url, train_data=Mortal())
    assert records(url)[:3] == [1, 2, 3]
    assert (url / "checkpoints").names() == ["4"]
    assert bits(train(url)) == bits(state)
    assert records(url) == list(range(1, 11))
    names = url.names()
    assert {"checkpoints", "fingerprint.json", "goodput.json", "tensorboard"} <= set(names)
    assert workdir_lock.FILE not in names
    assert {"8", "10"} <= set((url / "checkpoints").names())
    check_damage(url, state)


def check_damage(url, state):
    """A checkpoint that is cut short is set aside, and the one before it is restored."""
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )
    meta = url / "checkpoints" / "10" / "meta" / "metadata"
    meta.write_bytes(meta.read_bytes()[:-5])
    with checkpoint.Checkpoints(url, keep=3) as checkpoints:
        restored = checkpoints.restore(abstract)
        assert restored is not None and restored.position == {"position": 8}
        assert 10 not in checkpoints.steps
    assert (url / "damaged").names() == ["10-0"]


def test_another_experiment_is_rejected(url):
    (url / "fingerprint.json").write_bytes(b'{"identity": {"other": 1}}')
    with pytest.raises(UserError, match="belongs to another experiment"):
        train(url)


def test_checkpoints_without_a_fingerprint(url):
    (url / "checkpoints" / "4" / "x").write_bytes(b"")
    with pytest.raises(UserError, match=f"{url} holds checkpoints but no fingerprint.json"):
        train(url)


def test_a_trainer_that_is_alive_keeps_others_out(url):
    with (
        bucket_workdir.open_workdir(url),
        pytest.raises(UserError, match=r"another trainer is at work in gs://.*/run: process \d+"),
        bucket_workdir.open_workdir(url),
    ):
        pass


def lock(url, **facts) -> None:
    content = {**object_lock.own_process(), "token": "x", "beats": 1, **facts}
    (url / workdir_lock.FILE).write_bytes(json.dumps(content).encode())


def test_a_lock_of_a_process_that_is_gone_is_taken_over(url):
    lock(url, pid=2**22 + 1, started="1")
    with bucket_workdir.open_workdir(url) as workdir:
        assert workdir.checkpoints == url


def test_a_lock_of_another_host_is_taken_over_when_it_stops_counting(url, monkeypatch):
    monkeypatch.setattr(object_lock, "STALE", 0.3)
    lock(url, host="elsewhere", name="elsewhere")
    with bucket_workdir.open_workdir(url):
        pass
    lock(url, host="elsewhere", name="elsewhere")
    beat = functools.partial(lock, url, host="elsewhere", beats=2)
    monkeypatch.setattr(object_lock.time, "sleep", lambda _: beat())
    with (
        pytest.raises(UserError, match="another trainer is at work"),
        bucket_workdir.open_workdir(url),
    ):
        pass


def test_a_trainer_that_was_taken_over_saves_no_more(url):
    with contextlib.suppress(UserError), bucket_workdir.open_workdir(url) as workdir:
        lock(url, pid=7, name="there")
        with pytest.raises(UserError, match="has taken over gs://.*process 7 on there"):
            workdir.before_save()
    assert (url / workdir_lock.FILE).exists()


def test_of_two_trainers_that_start_at_once_the_first_to_write_stays(url, monkeypatch):
    create = Url.create
    monkeypatch.setattr(Url, "create", lambda u, content: (lock(url, pid=7), create(u, content)))
    with (
        pytest.raises(UserError, match="at work in .*: process 7"),
        bucket_workdir.open_workdir(url),
    ):
        pass


def test_a_copy_that_fails_is_tried_again_before_a_checkpoint(url, state, monkeypatch):
    monkeypatch.setattr(checkpoint, "PAUSE", 0.0)
    calls = []

    def before_save():
        calls.append(1)
        if len(calls) < 3:
            raise UserError("the store does not answer")

    with checkpoint.Checkpoints(url, keep=1, before_save=before_save) as checkpoints:
        checkpoints.save(1, state, position=1)
        checkpoints.wait()
        assert len(calls) == 3 and checkpoints.steps == [1]


def test_a_trainer_that_was_taken_over_does_not_try_again(url, state, monkeypatch):
    monkeypatch.setattr(checkpoint, "PAUSE", 0.0)
    calls = []

    def before_save():
        calls.append(1)
        raise TakenOver("another trainer")

    with (
        contextlib.suppress(TakenOver),
        checkpoint.Checkpoints(url, keep=1, before_save=before_save) as checkpoints,
    ):
        checkpoints.save_now(1, state, position=1)
    assert calls == [1] and "checkpoints" not in url.names()


def test_the_manifest_of_an_export_is_copied_last_and_removed_first(url, monkeypatch):
    calls = []
    upload, unlink = Url.upload, Url.unlink
    monkeypatch.setattr(Url, "upload", lambda u, path: (calls.append(u.name), upload(u, path)))
    monkeypatch.setattr(Url, "unlink", lambda u: (calls.append(f"-{u.name}"), unlink(u)))
    with bucket_workdir.open_workdir(url) as workdir:
        (workdir.folder / "export").mkdir()
        for name in ("manifest.json", "a", "z"):
            (workdir.folder / "export" / name).write_text("1")
        workdir.before_save()
        assert calls == ["-manifest.json", "a", "z", "manifest.json"]
        calls.clear()
        workdir.before_save()
        assert calls == []
        (workdir.folder / "export" / "a").unlink()
        (workdir.folder / "export" / "x.tmp").write_text("incomplete")
        workdir.before_save()
        assert calls == ["-a"]
    assert (url / "export").names() == ["manifest.json", "z"]


def test_other_processes_copy_their_files_and_hold_no_lock(url, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    with bucket_workdir.open_workdir(url) as workdir:
        (workdir.folder / "a.npz").write_bytes(b"1")
        workdir.before_save()
        assert url.names() == ["a.npz"]
        (workdir.folder / "b").write_bytes(b"2")
    assert url.names() == ["a.npz", "b"]


def test_files_are_copied_every_minute(url, monkeypatch):
    """And again if the copy before failed."""
    assert bucket_workdir.PERIOD == 60.0
    monkeypatch.setattr(bucket_workdir, "PERIOD", 0.05)
    failures, upload = [], Url.upload

    def flaky(place, path):
        if not failures:
            failures.append(path)
            raise UserError("the store does not answer")
        upload(place, path)

    monkeypatch.setattr(Url, "upload", flaky)
    with bucket_workdir.open_workdir(url) as workdir:
        (workdir.folder / "a").write_bytes(b"1")
        end = time.monotonic() + 20
        while "a" not in url.names() and time.monotonic() < end:
            time.sleep(0.02)
        assert (url / "a").read_bytes() == b"1" and failures


def test_a_store_without_checkpoints_is_rejected():
    with (
        pytest.raises(UserError, match="Orbax.* writes to gs:// and to files, not to s3://"),
        bucket_workdir.open_workdir(Url("s3://bucket/run")),
    ):
        pass


def test_a_missing_bucket_is_one_line(google_store):
    with (
        pytest.raises(UserError, match="gs://no-such-bucket/run.*: no such object or bucket"),
        bucket_workdir.open_workdir(Url("gs://no-such-bucket/run")),
    ):
        pass
