"""Twenty times kill -9 at a random moment of one run, in saves too: the same bits in the end."""

import pathlib
import signal

import numpy as np
import pytest

from tests import processes
from tests.training import toy
from tests.training.test_loop import bits

STEPS, KILLS = 100, 20
RUN = """
import os, pathlib, signal, sys, threading
from tests.training import toy
at, delay = int(sys.argv[2]), float(sys.argv[3])
class Dies(toy.Stream):
    def __next__(self):
        if self.position == at:
            threading.Timer(delay, os.kill, (os.getpid(), signal.SIGKILL)).start()
        return super().__next__()
toy.run(pathlib.Path(sys.argv[1]), train_data=Dies(), steps=int(sys.argv[4]), save_every=2)
"""


def newest(workdir: pathlib.Path) -> int:
    folder = workdir / "checkpoints"
    if not folder.is_dir():
        return 0
    return max((int(path.name) for path in folder.iterdir() if path.name.isdigit()), default=0)


@pytest.mark.nightly
def test_twenty_kills_change_no_bit(tmp_path: pathlib.Path):
    expected = bits(toy.run(tmp_path / "whole", steps=STEPS, save_every=2))
    rng, workdir, kills = np.random.default_rng(0), tmp_path / "cut", 0
    while kills < KILLS:
        at = newest(workdir) + int(rng.integers(1, 6))
        assert at < STEPS, f"only {kills} kills before the end"
        delay = str(float(rng.uniform(0.0, 0.15)))  # a save takes about a tenth of a second
        child = processes.start(["-c", RUN, str(workdir), str(at), delay, str(STEPS)], devices=8)
        ((status, _, output),) = processes.outcome([child])
        assert status == -signal.SIGKILL, output
        kills += 1
    assert bits(toy.run(workdir, steps=STEPS, save_every=2)) == expected
    assert not (workdir / "damaged").exists()
