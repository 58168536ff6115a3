"""The processes of a run, from flags and environment, and a bounded wait for them."""

import os
import pathlib
import subprocess
import time

import jax
import pytest

from tests import processes
from unclip_jax.cli import process_flags
from unclip_jax.cli.parser import Parser
from unclip_jax.core.checks import UserError
from unclip_jax.parallel import cluster
from unclip_jax.parallel.cluster import ProcessLayout


def layout(*arguments: str) -> ProcessLayout:
    parser = Parser("example")
    process_flags.add(parser)
    args = parser.parse_args(arguments)
    return ProcessLayout(args.coordinator, args.num_processes, args.process_id)


FLAGS = ("--coordinator=host:1234", "--num-processes=4", "--process-id=3")
ENVIRONMENT = {
    "JAX_COORDINATOR_ADDRESS": "other:5",
    "JAX_NUM_PROCESSES": "2",
    "JAX_PROCESS_ID": "0",
}
UNKNOWN = ProcessLayout(None, None, None)


@pytest.mark.parametrize(
    ("arguments", "environ", "place"),
    [
        ((), {}, None),
        (FLAGS, {}, ProcessLayout("host:1234", 4, 3)),
        (FLAGS, ENVIRONMENT, ProcessLayout("host:1234", 4, 3)),
        ((), ENVIRONMENT, ProcessLayout("other:5", 2, 0)),
        ((), {"UNCLIP_DISTRIBUTED": "1"}, UNKNOWN),
        ((), {**ENVIRONMENT, "UNCLIP_DISTRIBUTED": "0"}, None),
        ((), {"SLURM_PROCID": "0", "SLURM_NTASKS": "1"}, None),
        ((), {"SLURM_PROCID": "3", "SLURM_NTASKS": "8"}, UNKNOWN),
        ((), {"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_STEP_NUM_TASKS": "1"}, None),
        ((), {"SLURM_NTASKS": "8"}, None),  # in the batch script, outside a step
        ((), {"TPU_WORKER_HOSTNAMES": "localhost"}, None),
        ((), {"TPU_WORKER_HOSTNAMES": "t-0,t-1"}, UNKNOWN),
        ((), {"TPU_PROCESS_ADDRESSES": "t-0:8476,t-1:8476"}, UNKNOWN),
        ((), {"MEGASCALE_NUM_SLICES": "2"}, UNKNOWN),
    ],
)
def test_processes_are_found(arguments, environ, place):
    assert cluster.detect(layout(*arguments), environ) == place


@pytest.mark.parametrize(
    ("arguments", "environ", "message"),
    [
        (FLAGS[:2], {}, "--process-id belong together; give all three or none"),
        ((*FLAGS[:2], "--process-id=4"), {}, "this is process 4 of 4; processes are numbered"),
        (("--coordinator=host", *FLAGS[1:]), {}, "the coordinator is 'host'; write HOST:PORT"),
        ((), {"JAX_PROCESS_ID": "1"}, "JAX_NUM_PROCESSES, JAX_PROCESS_ID belong together"),
        (
            (),
            {**ENVIRONMENT, "JAX_PROCESS_ID": "one"},
            "JAX_PROCESS_ID is 'one'; it must be a number",
        ),
        ((), {"UNCLIP_DISTRIBUTED": "yes"}, "UNCLIP_DISTRIBUTED is 'yes'; give 1, 0 or nothing"),
    ],
)
def test_settings_that_mean_nothing_are_rejected(arguments, environ, message):
    with pytest.raises(UserError, match=message):
        cluster.detect(layout(*arguments), environ)


def test_alone_nothing_is_started(monkeypatch):
    for name in (*ENVIRONMENT, "SLURM_PROCID", "TPU_WORKER_HOSTNAMES", "UNCLIP_DISTRIBUTED"):
        monkeypatch.delenv(name, raising=False)
    cluster.start(layout())


def test_the_digest_is_of_the_code():
    assert cluster.code_digest() == cluster.code_digest()
    assert len(cluster.facts()["code"].split()[1]) == 16


def lonely(index: int) -> subprocess.Popen[str]:
    """A process whose partner never comes."""
    flags = [f"--coordinator=127.0.0.1:{processes.free_port()}", "--num-processes=2"]
    flags += [f"--process-id={index}", "--connect-timeout=2"]
    command = ["-m", "unclip_jax.train", "--config=experiments/prior.py:tiny", "--workdir=/nowhere"]
    return processes.start([*command, *flags], devices=1)


def test_a_coordinator_that_is_not_there_is_one_line_in_bounded_time():
    ((status, _, output),) = processes.outcome([lonely(1)])
    assert status == 2
    assert output.splitlines()[-1].startswith("error: the coordinator 127.0.0.1:"), output
    assert "cannot be reached within 2 s" in output and "Start process 0 too" in output
    assert not pathlib.Path("/nowhere").exists()


def test_processes_of_a_launcher_that_do_not_connect_are_started_again(monkeypatch):
    exit_codes = []
    monkeypatch.setattr(os, "_exit", exit_codes.append)
    monkeypatch.setattr(jax.distributed, "initialize", lambda **_: time.sleep(0.3))
    monkeypatch.setattr(jax.config, "update", lambda *_: None)
    monkeypatch.setenv("UNCLIP_DISTRIBUTED", "1")
    cluster.start(timeout=0)
    assert exit_codes == [143]


@pytest.mark.slow
def test_a_coordinator_that_waits_in_vain_says_so():
    ((status, _, output),) = processes.outcome([lonely(0)])
    assert status == 2
    assert "the processes did not connect within 2 s" in output
