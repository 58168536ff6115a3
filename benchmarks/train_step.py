"""Speed of the train step on the available devices, optionally compared with PyTorch.

    python -m benchmarks.train_step --config=experiments/decoder.py:shapes \
        [--config.optim.name=adamw --peer=diffusers] [--json=OUT.json]

Runs the real step on one random batch: examples/s, FLOP/s, MFU relative to a matrix product that is
measured on the same devices, compiled memory and memory of the process. With --peer the network of
the same shapes in diffusers trains on the same cores, in turns with ours.
"""

import sys

from benchmarks import compare
from unclip_jax.cli import entry

if __name__ == "__main__":
    entry.run(lambda: compare.run("train", sys.argv[1:]))
