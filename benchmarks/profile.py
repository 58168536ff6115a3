"""The time of a train step on CPU devices, by kind of operation.

    . launch/env.sh && python -m benchmarks.profile --config=experiments/decoder.py:karlo \
        [--steps=3] [--config.KEY=VALUE ...]

Runs the step that `benchmarks.train_step` times under JAX's profiler and adds up the operations of
the devices' threads; each moment counts once, for the innermost operation. The difference from the
time of all cores is waiting, or work of one thread while others were idle. GPUs and TPUs name their
operations differently; for those, see the profile of `config.train.profile_steps`.
"""

import argparse
import pathlib
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax

from benchmarks import unclip_side
from benchmarks.markdown_page import table
from unclip_jax.cli import entry
from unclip_jax.cli.experiment_flags import ExperimentParser
from unclip_jax.core.checks import UserError, in_range
from unclip_jax.experiment import loading

# The first pattern that matches a name counts; XLA:CPU calls matrix products ynn_fusion.
KINDS = (
    ("between devices", r"^(all-|reduce-scatter|collective|Rendezvous)"),
    ("waiting", r"^(Wait|ThunkExecutor)"),
    ("matrix products", r"^(ynn_fusion|dot|gemm)"),
    ("convolutions", r"^conv"),
    ("moving data", r"copy|transpose|slice|concatenate|^(wrapped_)?broadcast(\.|$)|^pad|gather"),
    ("reductions", r"reduce"),
    ("elementwise", r""),
)


class Event(NamedTuple):
    """One operation on one thread, in nanoseconds."""

    name: str
    start: int
    end: int


def main(argv: Sequence[str]) -> None:
    """Profiles and prints.

    Raises:
        UserError: the devices are not CPUs, or the profile contains no operations.
    """
    args, rest = parse(argv)
    experiment = loading.read(args.config, overrides=rest)
    device = jax.devices()[0]
    if device.platform != "cpu":
        raise UserError(
            f"the devices are {device.device_kind}, whose operations are not recognised here; "
            "use --config.train.profile_steps=5 of unclip_jax.train and TensorBoard."
        )
    program = unclip_side.train(experiment)
    program.once()
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            started = time.perf_counter()
            for _ in range(args.steps):
                program.once()
            seconds = time.perf_counter() - started
        busy = busy_time(pathlib.Path(folder))
    if not busy:
        raise UserError(
            "the profile contains no operations, because this version of JAX records them "
            "differently; use another version."
        )
    sys.stdout.write(report(busy, steps=args.steps, seconds=seconds, devices=program.mesh.size))


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Parses the command line; returns its arguments and overrides of the experiment."""
    parser = ExperimentParser("profile", prog="python -m benchmarks.profile")
    parser.add_argument("--steps", type=int, default=3, help="steps under the profiler")
    args, rest = parser.parse(argv)
    in_range("--steps", args.steps, 1, 100)
    return args, rest


def busy_time(folder: pathlib.Path) -> Counter[str]:
    """Adds up nanoseconds by kind over all threads that run compiled programs."""
    nanoseconds: Counter[str] = Counter()
    for path in folder.rglob("*.xplane.pb"):
        profile: Any = jax.profiler.ProfileData.from_file(str(path))
        for plane in profile.planes:
            for line in plane.lines:
                if line.name.startswith("tf_XLA"):
                    events = (Event(e.name, int(e.start_ns), int(e.end_ns)) for e in line.events)
                    nanoseconds.update(own_time(events))
    return nanoseconds


def own_time(events: Iterable[Event]) -> Counter[str]:
    """Adds up nanoseconds by kind for one thread; of nested operations the innermost counts."""
    nanoseconds: Counter[str] = Counter()
    open_: list[Event] = []
    for event in sorted(events, key=lambda e: (e.start, -e.end)):
        while open_ and open_[-1].end <= event.start:
            open_.pop()
        length = event.end - event.start
        nanoseconds[kind(event.name)] += length
        if open_:
            nanoseconds[kind(open_[-1].name)] -= min(length, open_[-1].end - event.start)
        open_.append(event)
    return nanoseconds


def kind(name: str) -> str:
    """Returns the member of `KINDS` to which an operation's name belongs."""
    return next(label for label, pattern in KINDS if re.search(pattern, name))


def report(busy: Counter[str], *, steps: int, seconds: float, devices: int) -> str:
    """Formats a table of milliseconds per step and device, and of their share of the step."""
    step = seconds / steps
    shares = {name: busy[name] / 1e9 / steps / devices for name, _ in KINDS if name != "waiting"}
    shares["waiting, or one thread alone"] = max(0.0, step - sum(shares.values()))
    rows = [
        [name, f"{1e3 * value:.1f}", f"{100 * value / step:.0f} %"]
        for name, value in sorted(shares.items(), key=lambda share: -share[1])
        if value
    ]
    head = f"{1e3 * step:.0f} ms per step under the profiler, devices: {devices}\n\n"
    return head + table(("kind", "ms per step and device", "share"), rows)


if __name__ == "__main__":
    entry.run(lambda: main(sys.argv[1:]))
