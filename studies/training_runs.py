"""Training runs of a study: commands with the flags of launch/env.sh, and their duration.

An interrupted run continues when its command runs again.
"""

import json
import pathlib
import subprocess
import sys
import time
from collections.abc import Sequence

from unclip_jax.core.checks import UserError
from unclip_jax.evaluation import protocol_folder
from unclip_jax.handoff import load

ROOT = pathlib.Path(__file__).parents[1]
LAUNCHER = ("bash", "-c", '. launch/env.sh "" && exec "$@"', "bash", "launch/until_done")


def command(module: str, *arguments: str) -> list[str]:
    """Returns the command that runs a module of the package."""
    return [*LAUNCHER, sys.executable, "-m", f"unclip_jax.{module}", *arguments]


def run(words: Sequence[str], *, name: str, work: pathlib.Path) -> None:
    """Runs a command, and adds its minutes to those of `name`, also if it is interrupted.

    Raises:
        UserError: the command failed.
    """
    sys.stderr.write(f"\n$ {' '.join(words[len(LAUNCHER) :])}\n")
    started = time.monotonic()
    try:
        process = subprocess.run(words, cwd=ROOT, check=False)
    finally:
        costs = minutes(work)
        costs[name] = costs.get(name, 0.0) + (time.monotonic() - started) / 60
        protocol_folder.write(work / "minutes.json", json.dumps(costs, indent=1) + "\n")
    if process.returncode:
        raise UserError(
            f"training {name!r} ended with status {process.returncode} (see above); run the same "
            "command again to continue."
        )


def minutes(work: pathlib.Path) -> dict[str, float]:
    """Returns the minutes of training so far, by name."""
    path = work / "minutes.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def length(export: pathlib.Path) -> int | None:
    """Returns the training steps of an export; None if it does not exist."""
    return load.read_manifest(export).step if export.is_dir() else None


def check_length(export: pathlib.Path, steps: int) -> bool:
    """True if there is an export with this many steps; False if there is none.

    Raises:
        UserError: it has another number of steps.
    """
    existing = length(export)
    if existing not in (None, steps):
        raise UserError(
            f"{export} was trained for {existing} steps, but {steps} are requested; give another "
            "--work, or the same steps."
        )
    return existing is not None


def link(path: pathlib.Path, target: pathlib.Path) -> None:
    """Makes `path` a symbolic link to `target`, unless it exists."""
    if not path.exists():
        path.unlink(missing_ok=True)  # removes a dangling link
        path.symlink_to(target.resolve())
