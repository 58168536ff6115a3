"""Measures a program and a peer's in turns; shared by `benchmarks.train_step` and `.sample`.

Both programs run on the same cores, in separate processes.
"""

import argparse
import contextlib
import datetime
import json
import pathlib
import platform
import sys
from collections.abc import Sequence
from typing import Any

from benchmarks import baselines, interleaved, markdown_page
from benchmarks.interleaved import spread_text
from unclip_jax.cli.experiment_flags import ExperimentParser
from unclip_jax.core.checks import positive
from unclip_jax.experiment import loading
from unclip_jax.experiment.config import Experiment
from unclip_jax.parallel.place import size_text
from unclip_jax.stages import registry
from unclip_jax.training.memory import count_text

SIDES = {"ours": "benchmarks.unclip_side", "diffusers": "benchmarks.diffusers_side"} | {
    "dalle2": "benchmarks.dalle2_side"
}
UNITS = {"train": "step", "sample": "chain"}


def run(what: str, argv: Sequence[str]) -> None:
    """Measures `what`, "train" or "sample", with the arguments `argv`; prints and writes it."""
    args, overrides = parse(what, argv)
    experiment = loading.read(args.config, overrides=overrides)
    if args.peer:
        baselines.check(args.peer, experiment, what=what)
    if what == "sample":
        registry.generator_entry(experiment.stage)
    result = measure(what, experiment, args, overrides)
    sys.stdout.write(as_text(result))
    if args.json:
        markdown_page.save(args.json, json.dumps(result, indent=1) + "\n")


def parse(what: str, argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Parses the command line; returns its arguments and overrides of the config.

    Raises:
        UserError: an argument is neither, or a number is not positive.
    """
    parser = ExperimentParser(
        "compare", prog=f"python -m benchmarks.{'train_step' if what == 'train' else 'sample'}"
    )
    parser.add_argument("--peer", default="", help="compare with: diffusers, dalle2 [none]")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each side [5]")
    parser.add_argument(
        "--count", type=int, default=4, help=f"{UNITS[what]}s per turn, whose median counts [4]"
    )
    if what == "sample":
        parser.add_argument("--batch", type=int, default=8, help="images per batch [8]")
    parser.add_argument("--json", type=pathlib.Path, help="write all figures to this file")
    args, rest = parser.parse(argv)
    for name in ("rounds", "count", *(["batch"] if what == "sample" else [])):
        positive(f"--{name}", getattr(args, name))
    return args, rest


def measure(
    what: str, experiment: Experiment, args: argparse.Namespace, overrides: Sequence[str]
) -> dict[str, Any]:
    """Runs both sides in turns; returns all figures, JSON-ready."""
    batch = experiment.train.batch_size if what == "train" else args.batch
    tasks: dict[str, Any] = {
        "ours": {"config": args.config, "overrides": overrides, "what": what, "batch": batch}
    }
    if args.peer:
        tasks[args.peer] = baselines.task(args.peer, experiment, what=what, batch=batch)
    with contextlib.ExitStack() as stack:
        sides = []
        for name, task in tasks.items():
            sides.append(interleaved.Side(name, SIDES[name], task))
            stack.callback(sides[-1].kill)
        durations = interleaved.alternate(sides, rounds=args.rounds, count=args.count)
        facts = {side.name: {**side.facts, "peak_memory": side.close()} for side in sides}
    result = {
        "what": what,
        "experiment": experiment.name,
        "size": experiment.size,
        "overrides": list(overrides),
        "machine": machine(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "rounds": args.rounds,
        "count": args.count,
        "ours": {**facts["ours"], **rates(facts["ours"], durations["ours"])},
    }
    if args.peer:
        ratios = interleaved.ratios(durations[args.peer], durations["ours"])
        result["peer"] = {
            "name": args.peer,
            **facts[args.peer],
            "seconds": interleaved.spread([duration.wall for duration in durations[args.peer]]),
            "cpu_seconds": interleaved.spread([duration.cpu for duration in durations[args.peer]]),
            "over_ours": {name: interleaved.spread(values) for name, values in ratios.items()},
            "lacks": lacks(args.peer, experiment),
        }
    return result


def lacks(peer: str, experiment: Experiment) -> str:
    """Names the parts that the peer lacks; "" if it computes the same (Karlo, one network)."""
    twice = getattr(experiment.model, "last_step", False)
    if peer == "diffusers" and experiment.size == "karlo" and not twice:
        return ""
    return baselines.LACKING[peer][experiment.stage]


def rates(facts: dict[str, Any], durations: Sequence[interleaved.Duration]) -> dict[str, Any]:
    """Computes seconds per unit, examples/s, FLOP/s and the share of the measured peak."""
    spread = interleaved.spread([duration.wall for duration in durations])
    middle = spread["median"]
    return {
        "seconds": spread,
        "cpu_seconds": interleaved.spread([duration.cpu for duration in durations]),
        "examples_per_second": facts["examples"] / middle,
        "flops_per_second": facts["traced_flops"] / middle,
        "mfu": facts["model_flops"] / middle / facts["peak_flops"],
    }


def machine() -> str:
    """Returns the processor and the number of usable cores."""
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, StopIteration):
        lines = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next(line for line in lines if line.startswith("model name")).partition(": ")[2]
    return f"{interleaved.cores()} cores of {name}"


def as_text(result: dict[str, Any]) -> str:
    """Formats the result as text."""
    ours, unit = result["ours"], UNITS[result["what"]]
    seconds, memory = ours["seconds"], ours["compiled_memory"]
    lines = [
        f"{result['experiment']}:{result['size']} on {ours['device']} ({result['machine']}): "
        f"{count_text(ours['parameters'])} parameters, {ours['examples']} examples per {unit}",
        f"{spread_text(seconds)} s per {unit}, {ours['examples_per_second']:.4g} examples/s; "
        f"{ours['flops_per_second'] / 1e9:.4g} GFLOP/s, MFU {100 * ours['mfu']:.3g} % of the "
        f"{ours['peak_flops'] / 1e9:.4g} GFLOP/s that {ours['dtype']} products of matrices reach",
        f"memory: {', '.join(f'{k} {size_text(v)}' for k, v in memory.items())}; the process at "
        f"most {size_text(ours['peak_memory'])}; compiled in {ours['compile_seconds']:.3g} s",
    ]
    if "peer" in result:
        peer, over = result["peer"], result["peer"]["over_ours"]
        lines.append(
            f"{peer['library']} ({peer['class']}, {peer['memory_format']}, torch {peer['torch']}, "
            f"{count_text(peer['parameters'])} parameters): "
            f"{spread_text(peer['seconds'])} s, {spread_text(over['wall'])} times ours, in time of "
            f"the CPU {spread_text(over['cpu'])} times; the process at most "
            f"{size_text(peer['peak_memory'])}"
        )
        if peer["lacks"]:
            lines.append(f"it lacks {peer['lacks']}")
    return "\n".join(lines) + "\n"
