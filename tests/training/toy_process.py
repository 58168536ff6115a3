"""One of several processes that train the toy together: `python -m tests.training.toy_process DIR`.

Writes what happened to it to DIR/process_I.json, DIR/half when step 5 has begun, and waits there
for DIR/go, so that a test can send signals at a known moment.
"""

import argparse
import json
import pathlib
import sys
import time

import jax

from tests.training import toy
from unclip_jax.cli import process_flags
from unclip_jax.core.checks import UserError
from unclip_jax.parallel.mesh import MeshConfig
from unclip_jax.parallel.multihost import check_same, gather

HALF = 5


class Part(toy.Stream):
    """This process's rows of every batch; waits for the test at batch HALF."""

    def __init__(self, folder: pathlib.Path):
        super().__init__()
        self._folder = folder

    def __next__(self):
        if self.position == HALF:
            (self._folder / f"half_{jax.process_index()}").touch()
            while not (self._folder / "go").exists():
                time.sleep(0.02)
        batch = super().__next__()
        own = len(batch["x"]) // jax.process_count()
        rows = slice(jax.process_index() * own, (jax.process_index() + 1) * own)
        return {name: value[rows] for name, value in batch.items()}


def main(folder: pathlib.Path) -> None:
    parser = argparse.ArgumentParser()
    process_flags.add(parser)
    process_flags.start(parser.parse_args([]))
    index = jax.process_index()
    result = {"count": jax.process_count(), "devices": jax.device_count()}
    result["everyone"] = gather({"index": index, "text": "é" * index})
    try:
        check_same({"config": {"train": {"steps": 10 + index}}, "code": "same"})
    except UserError as error:
        result["rejection"] = str(error)
    (folder / f"process_{index}.json").write_text(json.dumps(result))
    mesh = MeshConfig(data=2, fsdp=4)
    toy.run(folder / "run", train_data=Part(folder), mesh=mesh, rules="fsdp", log_every=1)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
