"""A side without any network, whose speed depends on XLA_FLAGS."""

import os
import sys
import time

from benchmarks import interleaved


def prepare(task):
    flags = os.environ["XLA_FLAGS"].split()
    if "--unknown" in flags:
        sys.exit(6)
    seconds = 0.01 if "--fast" in flags and flags[0] == "--first" else 0.04
    return {"compile_seconds": task["compile_seconds"]}, lambda: time.sleep(seconds)


if __name__ == "__main__":
    interleaved.serve(prepare)
