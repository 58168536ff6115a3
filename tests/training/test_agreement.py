"""Two real processes: they know each other, stop together, and what they leave fits one process."""

import json
import pathlib
import signal

import numpy as np
import pytest

from tests import processes
from tests.training import toy
from tests.training.test_loop import losses, records
from unclip_jax.core.checks import UserError
from unclip_jax.parallel.mesh import MeshConfig, make_mesh
from unclip_jax.parallel.multihost import ConsensusStop, check_same, gather

LIKE = {"mesh": MeshConfig(data=2, fsdp=4), "rules": "fsdp", "log_every": 1}


def test_with_one_process_everything_returns_at_once():
    stop = ConsensusStop(make_mesh(MeshConfig()))
    assert [stop(None), stop(15), stop(None)] == [None, 15, None]
    assert gather({"a": 1}) == [{"a": 1}]
    check_same({"a": 1})


@pytest.mark.parametrize("count", [2, pytest.param(4, marks=pytest.mark.nightly)])
def test_processes_train_as_one_stop_together_and_one_process_goes_on(
    tmp_path: pathlib.Path, count: int
):
    command = ["-m", "tests.training.toy_process", str(tmp_path)]
    running = processes.start_together(command, count=count, devices=8 // count)
    for index in range(count):
        processes.appears(tmp_path / f"half_{index}", running)
    running[-1].send_signal(signal.SIGTERM)  # one gets the signal, all stop
    (tmp_path / "go").touch()
    outcomes = processes.outcome(running)
    assert [status for status, _, _ in outcomes] == [143] * count, outcomes
    assert "error" not in outcomes[0][2].lower(), outcomes[0][2]

    for index in range(count):
        result = json.loads((tmp_path / f"process_{index}.json").read_text())
        assert (result["count"], result["devices"]) == (count, 8)
        assert result["everyone"] == [{"index": i, "text": "é" * i} for i in range(count)]
        assert result["rejection"] == (
            "the processes were not started alike: config.train.steps is 10 in process 0 and 11 in "
            "process 1. Start all of them with the same code and command."
        )

    step = max(int(path.name) for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert 5 <= step <= 7
    assert [record["step"] for record in records(tmp_path / "run")] == list(range(1, step + 1))
    state = toy.run(tmp_path / "run", **LIKE)
    whole = toy.run(tmp_path / "whole", **LIKE)
    np.testing.assert_allclose(losses(tmp_path / "run"), losses(tmp_path / "whole"), rtol=1e-5)
    for name in ("kernel", "bias"):
        np.testing.assert_allclose(
            state.params["map"][name], whole.params["map"][name], rtol=1e-5, atol=1e-6
        )


def test_equal_facts_pass_and_different_ones_are_named(monkeypatch: pytest.MonkeyPatch):
    from unclip_jax.parallel import multihost

    everyone = [{"code": "1 aa", "config": {"seed": 0}}, {"code": "1 ab", "config": {"seed": 0}}]
    monkeypatch.setattr(multihost, "gather", lambda value: everyone)
    with pytest.raises(UserError, match=r'code is "1 aa" in process 0 and "1 ab" in process 1'):
        check_same(everyone[0])
