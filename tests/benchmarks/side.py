"""A side of a comparison without any network: works for a set time and records it."""

import pathlib
import sys
import time

from benchmarks import interleaved


def prepare(task):
    if task.get("fails"):
        sys.exit(3)
    log = pathlib.Path(task["log"])

    def once():
        with log.open("a") as file:
            file.write(task["name"])
        time.sleep(task["seconds"])

    sys.stdout.write("a library that talks\n")
    return {"name": task["name"]}, once


if __name__ == "__main__":
    interleaved.serve(prepare)
