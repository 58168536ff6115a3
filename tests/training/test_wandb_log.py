"""Metrics in Weights & Biases: what is sent, and that nothing is sent unless requested."""

import json
import sys
import time
import types

import pytest

from tests.training import toy
from unclip_jax.core.checks import UserError


class Run:
    """Records what is logged."""

    def __init__(self):
        self.records, self.metrics, self.finished = [], [], 0

    def log(self, values):
        self.records.append(values)

    def define_metric(self, name, *, step_metric):
        self.metrics.append((name, step_metric))

    def finish(self):
        self.finished += 1


@pytest.fixture
def library(monkeypatch):
    """A library whose runs are recorded."""
    module, run = types.ModuleType("wandb"), Run()
    started = []

    def init(**options):
        started.append(options)
        return run

    module.init, module.run, module.started = init, run, started
    module.Settings = lambda **options: options
    module.errors = types.SimpleNamespace(Error=ConnectionError)
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def test_records_are_those_of_the_file_and_a_continued_run_is_the_same(tmp_path, library):
    toy.run(tmp_path, steps=4, wandb="team/unclip")
    toy.run(tmp_path, steps=6, wandb="team/unclip")
    first, second = library.started
    assert (first["entity"], first["project"], first["resume"]) == ("team", "unclip", "allow")
    assert first["id"] == second["id"] and first["config"]["batch_size"] == 16
    assert first["name"] == str(tmp_path) and first["settings"] == {"console": "off"}
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4, 6]
    assert library.run.records == lines
    assert library.run.finished == 2 and ("*", "step") in library.run.metrics


def test_numbers_that_are_not_finite_are_left_out(tmp_path, library):
    toy.run(tmp_path, steps=4, log_every=1, train_data=toy.Stream(spoil=(0,)), wandb="unclip")
    first, second, *_ = library.run.records
    assert "loss" not in first and first["bad_steps"] == 1 and "loss" in second
    assert library.started[0]["entity"] is None


def test_nothing_is_started_unasked(tmp_path, library):
    toy.run(tmp_path, steps=4)
    assert not library.started and not (tmp_path / "wandb.json").exists()


def test_a_missing_library_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"'unclip', but .* pip install 'unclip_jax\[wandb\]'"):
        toy.run(tmp_path, steps=4, wandb="unclip")


def test_a_run_that_cannot_start_is_one_line(tmp_path, library):
    def init(**options):
        raise ConnectionError("no API key configured.\nUse wandb login")

    library.init = init
    with pytest.raises(UserError, match=r"\(no API key configured\); log in with") as error:
        toy.run(tmp_path, steps=4, wandb="unclip")
    assert "\n" not in str(error.value)


@pytest.mark.nightly
def test_the_library_writes_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    toy.run(tmp_path, steps=4, wandb="unclip")
    (log,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    for _ in range(200):  # its own process writes, also after the end of the run
        if b"examples_per_second" in log.read_bytes():
            break
        time.sleep(0.1)
    assert b"examples_per_second" in log.read_bytes() and b"batch_size" in log.read_bytes()
