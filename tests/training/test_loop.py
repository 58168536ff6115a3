import dataclasses
import json
import logging
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.training import toy
from unclip_jax.core.checks import UserError
from unclip_jax.core.trees import flatten_paths
from unclip_jax.parallel.mesh import MeshConfig
from unclip_jax.training import loop, memory
from unclip_jax.training.loop import TrainConfig, check_fit, newest
from unclip_jax.training.optimizer import OptimConfig
from unclip_jax.training.prefetch import PrefetchedBatch
from unclip_jax.training.signals import Interrupted

ROOT = pathlib.Path(__file__).parents[2]
MUON = OptimConfig(name="muon", learning_rate=1e-2, muon_learning_rate=0.02, warmup_steps=2)

SAM = OptimConfig(learning_rate=1e-2, sam=0.1)
SAM_OF_ONE = OptimConfig(learning_rate=1e-2, sam=0.1, sam_batch=1)


def bits(state) -> dict[str, bytes]:
    return {path: np.asarray(leaf).tobytes() for path, leaf in flatten_paths(state).items()}


def records(workdir: pathlib.Path) -> list[dict]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def losses(workdir: pathlib.Path) -> list[float]:
    return [record["loss"] for record in records(workdir) if "loss" in record]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict[str, bytes]:
    """The final bits of a run of 10 steps that nothing disturbed."""
    return bits(toy.run(tmp_path_factory.mktemp("whole")))


class Falters(toy.Stream):
    """Calls `action` when batch number `at` is asked for."""

    def __init__(self, at: int, action):
        super().__init__()
        self._at, self._action = at, action

    def __next__(self):
        if self.position == self._at:
            self._action()
        return super().__next__()


def crash():
    raise RuntimeError("power cut")


def test_training_finds_the_map_that_made_the_data(tmp_path: pathlib.Path):
    optim = OptimConfig(learning_rate=0.1, schedule="linear")
    state = toy.run(tmp_path, steps=150, save_every=150, optim=optim)
    error = np.abs(np.asarray(state.ema_params["map"]["kernel"]) - toy.truth())
    assert error.mean() < 0.1 < np.abs(toy.truth()).mean()
    assert losses(tmp_path)[-1] < 0.03 * losses(tmp_path)[0]


def test_exactly_the_batches_of_the_run_are_read(tmp_path: pathlib.Path):
    data = toy.Stream(limit=10)
    state = toy.run(tmp_path, train_data=data)
    assert data.positions == list(range(10)) and int(state.step) == 10


@pytest.mark.parametrize("at", [5, 6, 9])
def test_a_crash_is_continued_bit_for_bit(tmp_path: pathlib.Path, whole, at: int):
    with pytest.raises(RuntimeError, match="power cut"):
        toy.run(tmp_path, train_data=Falters(at, crash))
    data = toy.Stream()
    assert bits(toy.run(tmp_path, train_data=data)) == whole
    assert data.positions == list(range(4 if at < 9 else 8, 10))


@pytest.mark.parametrize(
    ("optim", "accumulate"), [(MUON, 1), (toy.OPTIM, 2), (SAM, 2), (SAM_OF_ONE, 1)]
)
def test_a_crash_is_continued_bit_for_bit_with_muon_microbatches_and_sam(
    tmp_path: pathlib.Path, optim, accumulate: int
):
    settings = {"optim": optim, "accumulate": accumulate}
    expected = bits(toy.run(tmp_path / "whole", **settings))
    with pytest.raises(RuntimeError, match="power cut"):
        toy.run(tmp_path / "cut", train_data=Falters(7, crash), **settings)
    assert bits(toy.run(tmp_path / "cut", **settings)) == expected


def checkpoints(workdir: pathlib.Path) -> list[int]:
    return sorted(int(path.name) for path in (workdir / "checkpoints").glob("[0-9]*"))


def test_checkpoints_are_saved_by_time_too(tmp_path: pathlib.Path, whole):
    state = toy.run(tmp_path, save_every=100, save_minutes=1e-9, keep=100)
    assert checkpoints(tmp_path) == list(range(1, 11))
    assert bits(state) == whole


def test_checkpoints_at_multiples_are_kept_for_good(tmp_path: pathlib.Path):
    toy.run(tmp_path, save_every=1, keep=2, keep_every=4)
    assert checkpoints(tmp_path) == [4, 8, 9, 10]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_at_once_and_the_run_continues_bit_for_bit(
    tmp_path: pathlib.Path, whole, number: int, code: int
):
    stop = Falters(6, lambda: os.kill(os.getpid(), number))
    with pytest.raises(Interrupted) as error:
        toy.run(tmp_path, train_data=stop)
    assert error.value.code == code
    last_step = max(int(path.name) for path in (tmp_path / "checkpoints").iterdir())
    assert last_step == error.value.step == 6
    data = toy.Stream()
    assert bits(toy.run(tmp_path, train_data=data)) == whole
    assert data.positions == [6, 7, 8, 9]


def test_an_interrupted_run_saves_without_evaluating(tmp_path: pathlib.Path, caplog):
    stop = Falters(6, lambda: os.kill(os.getpid(), signal.SIGTERM))
    held_out = {"eval_data": lambda: [toy.batch_at(99)], "eval_every": 2}
    with pytest.raises(Interrupted):
        toy.run(tmp_path, train_data=stop, **held_out)
    assert "saved at step 6; the same command continues" in caplog.text
    assert [r["step"] for r in records(tmp_path) if "val/loss" in r] == [2, 4]


@pytest.mark.parametrize("at", [1, 5, 9])
def test_kill_9_is_continued_bit_for_bit(tmp_path: pathlib.Path, whole, at: int):
    script = f"""
import os, signal, sys
sys.path.insert(0, {str(ROOT)!r})
import jax
jax.config.update("jax_platforms", "cpu")
from tests.training import toy
class Dies(toy.Stream):
    def __next__(self):
        if self.position == {at}:  # right after a save has begun
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__next__()
toy.run({str(tmp_path)!r}, train_data=Dies())
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=120)
    assert run.returncode == -signal.SIGKILL, run.stderr.decode()
    data = toy.Stream()
    assert bits(toy.run(tmp_path, train_data=data)) == whole
    assert data.positions[-1] == 9 and data.positions[0] in ({1: (0,), 5: (0, 4), 9: (4, 8)}[at])


def test_a_finished_run_returns_its_state_without_reading_data(tmp_path: pathlib.Path, whole):
    toy.run(tmp_path)
    assert bits(toy.run(tmp_path, train_data=Falters(10, crash))) == whole


def test_a_damaged_checkpoint_costs_only_the_steps_after_the_previous_one(
    tmp_path: pathlib.Path, whole
):
    toy.run(tmp_path)
    for path in (tmp_path / "checkpoints" / "10" / "state").rglob("*"):
        if path.is_file():
            os.truncate(path, path.stat().st_size // 2)
    data = toy.Stream()
    assert bits(toy.run(tmp_path, train_data=data)) == whole
    assert data.positions == [8, 9]


@pytest.mark.parametrize(
    "other",
    [
        {"devices": 1},
        {"devices": 4, "mesh": MeshConfig(fsdp=2), "rules": "fsdp"},
        {"mesh": MeshConfig(fsdp=8), "rules": "fsdp"},
        {"mesh": MeshConfig(fsdp=4, tensor=2), "rules": "fsdp_tp"},
        {"mesh": MeshConfig(fsdp=2), "rules": "fsdp", "accumulate": 1},
    ],
)
def test_the_loss_curve_does_not_depend_on_devices(tmp_path: pathlib.Path, other: dict):
    toy.run(tmp_path / "8", log_every=1)
    other = dict(other)
    if "devices" in other:
        other["devices"] = jax.devices()[: other["devices"]]
    toy.run(tmp_path / "other", log_every=1, **other)
    expected = losses(tmp_path / "8")
    assert len(expected) == 10
    np.testing.assert_allclose(losses(tmp_path / "other"), expected, rtol=1e-5)


def test_a_run_moves_from_8_devices_to_4_to_1(tmp_path: pathlib.Path):
    expected = toy.run(tmp_path / "whole")
    steps = [(5, {}), (9, {"mesh": MeshConfig(fsdp=4), "rules": "fsdp", "devices": 4}), (99, {})]
    for at, where in steps[:2]:
        where = {**where, "devices": jax.devices()[: where["devices"]]} if where else {}
        with pytest.raises(RuntimeError, match="power cut"):
            toy.run(tmp_path / "moved", train_data=Falters(at, crash), **where)
    state = toy.run(tmp_path / "moved", devices=jax.devices()[:1])
    for path, leaf in flatten_paths(state.params).items():
        np.testing.assert_allclose(leaf, flatten_paths(expected.params)[path], rtol=1e-4)


def test_the_step_is_traced_once_and_no_hidden_transfer_slows_it(tmp_path: pathlib.Path):
    traces = []

    def loss(params, batch, key):
        traces.append(batch["x"].shape)
        return toy.loss(params, batch, key)

    guard = jax.transfer_guard("disallow")
    data = Falters(6, guard.__enter__)  # after one save and one validation
    try:
        toy.run(
            tmp_path,
            stage=toy.Toy(loss=loss),
            steps=20,
            train_data=data,
            eval_data=lambda: [toy.batch_at(99)],
            eval_every=5,
        )
    finally:
        guard.__exit__(None, None, None)
    assert len(traces) == 2  # the memory check's and the step's


def test_validation_and_sample_grids_run_at_their_intervals(tmp_path: pathlib.Path):
    def preview(params, batch, key):
        return jnp.zeros((batch["x"].shape[0], 4, 4, 3)) + params["map"]["bias"][0]

    toy.run(
        tmp_path,
        stage=toy.Toy(preview=preview),
        eval_data=lambda: (toy.batch_at(100 + i) for i in range(2)),
        eval_every=4,
        sample_every=5,
        labels=lambda batch: ["a red circle"] * len(batch["x"]),
    )
    val = [(r["step"], r["val/loss"]) for r in records(tmp_path) if "val/loss" in r]
    assert [step for step, _ in val] == [4, 8, 10]
    assert val[-1][1] < val[0][1]
    names = sorted(path.name for path in (tmp_path / "samples").iterdir())
    assert names == ["step_00000005.png", "step_00000010.png"]


def test_a_batch_with_nans_is_skipped_and_the_run_continues(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
):
    with caplog.at_level(logging.WARNING):
        state = toy.run(tmp_path, train_data=toy.Stream(spoil=(6,)))
    assert int(state.step) == 10 and int(state.bad_steps) == 0
    assert "step 7: loss or gradients not finite; skipped (1 in a row)" in caplog.text
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))
    with np.load(tmp_path / "bad_batch_step7_process0.npz") as batch:
        assert np.isnan(batch["y"]).all()


def test_too_many_skipped_steps_stop_the_run(tmp_path: pathlib.Path):
    message = r"not finite in the 3 steps from 6 to 8; .*bad_batch_step6_process0.npz"
    with pytest.raises(UserError, match=message):
        toy.run(tmp_path, train_data=toy.Stream(spoil=(5, 6, 7, 8)), max_bad_steps=3)
    state = toy.run(tmp_path, train_data=toy.Stream())  # mended data: continues from step 4
    assert int(state.step) == 10


def test_a_checkpoint_is_saved_when_the_data_end(tmp_path: pathlib.Path, whole):
    with pytest.raises(UserError, match=r"the training data ended after 7 batches"):
        toy.run(tmp_path, train_data=toy.Stream(limit=7))
    data = toy.Stream()
    assert bits(toy.run(tmp_path, train_data=data)) == whole
    assert data.positions == [7, 8, 9]


def test_a_run_can_start_from_given_parameters(tmp_path: pathlib.Path):
    params = {"map": {"kernel": toy.truth(), "bias": np.zeros(toy.OUT, np.float32)}}
    toy.run(tmp_path, initial=lambda: params)
    assert losses(tmp_path)[0] < 0.5  # the noise alone: 0.01 * 16


def test_fitted_parameters_enter_fresh_runs_only(tmp_path: pathlib.Path):
    calls = []

    def fit():
        calls.append(len(calls))
        return {"map": {"kernel": toy.truth(), "bias": np.zeros(toy.OUT, np.float32)}}

    toy.run(tmp_path, fitted=fit)
    assert losses(tmp_path)[0] < 0.5  # as above
    toy.run(tmp_path, fitted=fit)
    assert calls == [0]


def test_another_experiments_workdir_is_rejected(tmp_path: pathlib.Path):
    toy.run(tmp_path)
    with pytest.raises(UserError, match=r"belongs to another experiment: its name is \"toy\""):
        toy.run(tmp_path, identity={"name": "prior"})


def test_a_run_that_cannot_fit_is_rejected_before_any_file_is_written(
    tmp_path: pathlib.Path, monkeypatch
):
    monkeypatch.setattr(memory, "available", lambda mesh: 1000)
    with pytest.raises(UserError, match=r"toy: 136 parameters on 8 x cpu .* It cannot fit"):
        toy.run(tmp_path / "new")
    assert not (tmp_path / "new").exists()
    assert int(toy.run(tmp_path / "new", check_memory=False).step) == 10


def test_check_fit_rejects_the_same_without_tracing_the_loss(monkeypatch):
    how = {"optim": toy.OPTIM, "mesh": MeshConfig(), "rules": "dp"}
    stage = toy.Toy(loss=lambda *_: pytest.fail("traced"))
    check_fit(stage, config=toy.CONFIG, **how)
    monkeypatch.setattr(memory, "available", lambda mesh: 1000)
    with pytest.raises(UserError, match=r"It cannot fit: choose a smaller size"):
        check_fit(stage, config=toy.CONFIG, **how)
    check_fit(stage, config=dataclasses.replace(toy.CONFIG, check_memory=False), **how)
    with pytest.raises(UserError, match=r"batch_size is 12"):
        check_fit(stage, config=dataclasses.replace(toy.CONFIG, batch_size=12), **how)


def test_newest_state_is_restored_without_training(tmp_path: pathlib.Path, whole):
    settings = {"config": toy.CONFIG, "optim": toy.OPTIM, "mesh": MeshConfig(), "rules": "dp"}
    settings.update(workdir=tmp_path, identity={"name": "toy"})
    with pytest.raises(UserError, match=r"holds no run; train first"):
        newest(toy.TOY, **settings)
    with pytest.raises(RuntimeError, match="power cut"):
        toy.run(tmp_path, train_data=Falters(2, crash))
    with pytest.raises(UserError, match=r"holds no checkpoint yet; train first"):
        newest(toy.TOY, **settings)
    toy.run(tmp_path)
    assert bits(newest(toy.TOY, **settings)) == whole
    with pytest.raises(UserError, match=r"belongs to another experiment"):
        newest(toy.TOY, **{**settings, "identity": {"name": "clip"}})


def test_a_batch_that_does_not_divide_is_rejected_before_anything_is_made(tmp_path: pathlib.Path):
    with pytest.raises(UserError, match=r"config.train.batch_size is 12; .* multiple of 8"):
        toy.run(tmp_path / "new", batch_size=12)
    assert not (tmp_path / "new").exists()


def test_a_run_that_cannot_begin_leaves_its_folder_free(tmp_path: pathlib.Path):
    """For mended data or settings; not where checkpoints are."""

    def fails():
        raise UserError("these parameters do not fit")

    for _ in range(2):
        with pytest.raises(UserError, match="do not fit"):
            toy.run(tmp_path / "new", initial=fails)
        assert not (tmp_path / "new" / "fingerprint.json").exists()
    toy.run(tmp_path / "new", identity={"name": "another"}, steps=4)
    (tmp_path / "claimed").mkdir()
    (tmp_path / "claimed" / "fingerprint.json").write_bytes(
        (tmp_path / "new" / "fingerprint.json").read_bytes()
    )
    with pytest.raises(UserError, match="do not fit"):
        toy.run(tmp_path / "claimed", initial=fails, identity={"name": "another"})
    assert (tmp_path / "claimed" / "fingerprint.json").exists()


def test_the_startup_line_is_logged(tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.INFO, logger="unclip_jax"):
        toy.run(tmp_path, mesh=MeshConfig(fsdp=8), rules="fsdp")
    assert re.search(r"toy: 136 parameters on 8 x cpu .*; needs .* and this machine", caplog.text)
    assert re.search(r"toy: \d+\.\d% of .* is replicated on every device", caplog.text)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, r"config.train.steps is 0; it must be greater than 0"),
        ({"keep": -1}, r"config.train.keep is -1"),
        ({"log_every": 0}, r"config.train.log_every is 0"),
        ({"eval_every": -5}, r"config.train.eval_every is -5; it must lie in \[0, "),
        ({"ema_decay": 1.5}, r"config.train.ema_decay is 1.5; it must lie in \[0.0, 1.0\]"),
    ],
)
def test_invalid_settings_are_rejected(change: dict, message: str):
    with pytest.raises(UserError, match=message):
        TrainConfig(**{"steps": 10, "batch_size": 16, **change})


def test_waiting_for_data_and_devices_is_timed(monkeypatch):
    """The time until the metrics of a step have arrived is that of waiting for the devices."""

    def slow(metrics):
        time.sleep(0.05)
        return metrics

    monkeypatch.setattr(loop.jax, "device_get", slow)
    batch = PrefetchedBatch({}, {}, 0, wait_seconds=0.25)
    reports = []
    loop._report((3, {"loss": np.float32(2.0)}, batch), [reports.append])
    (numbers,) = [each.metrics for each in reports]
    assert numbers["loss"] == 2.0 and numbers["data_seconds"] == 0.25
    assert 0.05 <= numbers["device_seconds"] < 5
