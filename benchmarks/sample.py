"""Speed of sampling from a stage on the available devices, optionally compared with PyTorch.

    python -m benchmarks.sample --config=experiments/prior.py:shapes --batch=8 \
        [--peer=diffusers] [--json=OUT.json]

Runs the stage's whole sampling chain on random parameters and captions; figures and comparison are
those of `benchmarks.train_step`. The peer evaluates its network equally often, on batches of the
same size.
"""

import sys

from benchmarks import compare
from unclip_jax.cli import entry

if __name__ == "__main__":
    entry.run(lambda: compare.run("sample", sys.argv[1:]))
