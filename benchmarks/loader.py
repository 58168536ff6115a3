"""Speed of the data loader by number of workers, and the share of time that the step waits.

    python -m benchmarks.loader --config=experiments/decoder.py:shapes --workers=0,1,2,4 \
        [--json=OUT.json]

Measures the examples/s of the loader alone, decoding and from its cache; the examples/s of the
train step alone, on one batch; and, with the loader feeding the step as in training, the share of
time for which the step waits for data.
"""

import argparse
import dataclasses
import datetime
import json
import pathlib
import sys
import time
from collections.abc import Sequence
from typing import Any

import jax

from benchmarks import compare, interleaved, markdown_page, unclip_side
from unclip_jax.cli import entry
from unclip_jax.cli.experiment_flags import ExperimentParser
from unclip_jax.core.checks import UserError, positive
from unclip_jax.data.loader import Loader
from unclip_jax.experiment import input_pipeline, loading
from unclip_jax.experiment.config import Experiment
from unclip_jax.parallel import place
from unclip_jax.training.prefetch import DevicePrefetcher

WARM = 4  # batches that are not timed, because they are prefetched


def main(argv: Sequence[str]) -> None:
    """Measures, prints and writes."""
    args, overrides = parse(argv)
    experiment = input_pipeline.resolve(loading.read(args.config, overrides=overrides))
    rows = [row(experiment, workers, seconds=args.seconds) for workers in args.workers]
    step = unclip_side.train(experiment)
    step.once()
    seconds = interleaved.spread([interleaved.timed(step.once).wall for _ in range(args.steps)])
    result = {
        "experiment": experiment.name,
        "size": experiment.size,
        "overrides": overrides,
        "machine": compare.machine(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "batch_size": experiment.train.batch_size,
        "step_examples_per_second": experiment.train.batch_size / seconds["median"],
        "loader": rows,
        "waiting": waiting(experiment, steps=args.steps),
        "workers_of_the_experiment": experiment.data.workers,
    }
    sys.stdout.write(as_text(result))
    if args.json:
        markdown_page.save(args.json, json.dumps(result, indent=1) + "\n")


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Parses the command line; returns its arguments and overrides of the config.

    Raises:
        UserError: an argument is neither, or a number is not positive.
    """
    parser = ExperimentParser("loader", prog="python -m benchmarks.loader")
    parser.add_argument("--workers", default="0,1,2,4", help="numbers of threads [0,1,2,4]")
    parser.add_argument("--seconds", type=float, default=3.0, help="seconds per figure [3]")
    parser.add_argument("--steps", type=int, default=10, help="train steps to time [10]")
    parser.add_argument("--json", type=pathlib.Path, help="write all figures to this file")
    args, rest = parser.parse(argv)
    positive("--seconds", args.seconds)
    positive("--steps", args.steps)
    counts = args.workers.split(",")
    if not all(count.isdigit() for count in counts):
        raise UserError(f"--workers is {args.workers!r}; give numbers such as 0,1,2,4.")
    args.workers = [int(count) for count in counts]
    return args, rest


def row(experiment: Experiment, workers: int, *, seconds: float) -> dict[str, Any]:
    """Measures the loader alone: first decoding every image, then from a full cache."""
    figures: dict[str, Any] = {"workers": workers}
    figures["decoding"] = rate(open_loader(experiment, workers, cache_mb=0), seconds)
    if experiment.data.cache_mb:
        loader = open_loader(experiment, workers, cache_mb=experiment.data.cache_mb)
        for _ in range(epoch(loader, experiment)):
            next(loader)
        figures["cached"] = rate(loader, seconds)
    return figures


def open_loader(experiment: Experiment, workers: int, *, cache_mb: int) -> Loader:
    """Opens the loader that training would use with these settings."""
    data = dataclasses.replace(experiment.data, workers=workers, cache_mb=cache_mb)
    changed = dataclasses.replace(experiment, data=data)
    return input_pipeline.open_inputs(changed, changed.build_stage()).train


def epoch(loader: Loader, experiment: Experiment) -> int:
    """Returns the number of batches of one epoch."""
    examples = loader.get_state()["num_examples"]
    total = sum(examples) if isinstance(examples, list) else examples
    return -(-total // experiment.train.batch_size)


def rate(loader: Loader, seconds: float) -> float:
    """Measures the examples per second over about `seconds`; closes the loader."""
    for _ in range(WARM):
        next(loader)
    started, count = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - started) < seconds:
        count += len(next(iter(next(loader).values())))
    loader.close()
    return count / elapsed


def waiting(experiment: Experiment, *, steps: int) -> dict[str, float]:
    """Trains on the loader's batches like the loop; returns seconds per step and of waiting."""
    training, stage = unclip_side.training(experiment), experiment.build_stage()
    loader = open_loader(experiment, experiment.data.workers, cache_mb=experiment.data.cache_mb)
    size = experiment.train.batch_size
    prefetcher = DevicePrefetcher(
        loader, spec=stage.batch_spec, batch_size=size, mesh=training.train_program.mesh
    )
    key = place.replicate(jax.random.key(0), training.train_program.mesh)
    state, batch = training.state, prefetcher.next()
    waited, started = 0.0, time.perf_counter()
    for step in range(steps + 1):
        state, metrics = training.train_program.step(state, batch.device, key)
        batch = prefetcher.next()  # while the device is working
        jax.block_until_ready(metrics)
        if step == 0:  # the first step compiles
            waited, started = 0.0, time.perf_counter()
        else:
            waited += batch.wait_seconds
    elapsed = time.perf_counter() - started
    loader.close()
    return {"step_seconds": elapsed / steps, "waited_seconds": waited / steps}


def as_text(result: dict[str, Any]) -> str:
    """Formats the result as text."""
    step, wait = result["step_examples_per_second"], result["waiting"]
    lines = [f"{result['experiment']}:{result['size']} on {result['machine']}: batches of "]
    lines[0] += f"{result['batch_size']}; the step alone takes {step:.4g} examples/s"
    for each in result["loader"]:
        text = f"{each['workers']} workers: decoding {each['decoding']:.4g} examples/s "
        text += f"({each['decoding'] / step:.3g} times the step)"
        if "cached" in each:
            text += f", cached {each['cached']:.4g} ({each['cached'] / step:.3g} times)"
        lines.append(text)
    share = wait["waited_seconds"] / wait["step_seconds"]
    lines.append(
        f"together, {result['workers_of_the_experiment']} workers: the step waits "
        f"{1e3 * wait['waited_seconds']:.3g} of {1e3 * wait['step_seconds']:.4g} ms "
        f"({100 * share:.2g} %)"
    )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    entry.run(lambda: main(sys.argv[1:]))
