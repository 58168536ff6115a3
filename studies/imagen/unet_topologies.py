"""The Efficient U-Net compared with ADM's, with about equally many parameters."""

import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from studies import statistics
from studies.imagen.harness import Harness
from studies.scoring import table_row
from unclip_jax.core import batch as batches
from unclip_jax.core import trees
from unclip_jax.engine.inference_engine import InferenceEngine

TITLE = "Efficient U-Net"
SOURCE = "section 2.5, appendix B.1, figure A.14"
CLAIM = (
    "The Efficient U-Net is two to three times as fast per step as ADM's U-Net, and its images are "
    "as good."
)
ABOUT = (
    "Upsamplers from 16 to 64 px that differ only in the topology, with the same batches for "
    "equally many steps. *step*: of the loss and its gradient, on one batch, in turns. *dB*: PSNR "
    "of enlarged true images."
)
CHART = ("bars", "step, ms", "dB", "frechet")
NAMES = {"noise": "Efficient U-Net", "adm": "ADM's U-Net"}
TURNS = 40
BATCH = 16
LITTLE = 0.5  # dB


def measure(harness: Harness) -> dict[str, Any]:
    """Enlarges the same images with both, and measures their training steps in turns."""
    examples, rows, decibels = harness.examples, [], {}
    seconds = times({run: step(harness.engine(run)) for run in NAMES}, turns=TURNS)
    for run, name in NAMES.items():
        scored = harness.score(harness.enlarge(run, harness.base))
        decibels[run] = harness.decibels(harness.enlarge(run, harness.true))
        (params,) = harness.engine(run).cascade.upsampler_params(harness.engine(run).params)
        facts = {
            "parameters": f"{trees.count(params):,}",
            "step, ms": 1e3 * float(np.median(seconds[run])),
        }
        better = examples.mean(decibels[run])._asdict()
        rows.append({"name": name, **facts, **table_row(examples, scored), "dB": better})
    ratios = np.log2(seconds["adm"] / seconds["noise"])
    speed = statistics.interval(lambda turns: float(np.median(ratios[turns])) - 1.0, TURNS)
    tests = [
        statistics.inequality(
            "log2 of the ratio of step times, ADM - Efficient, minus 1", speed, captions=TURNS
        ),
        statistics.inequality(
            "dB, Efficient - ADM",
            examples.difference(decibels["noise"], decibels["adm"]),
            captions=examples.count,
            margin=LITTLE,
        ),
    ]
    return {"rows": rows, "tests": tests}


def step(engine: InferenceEngine) -> Callable[[], Any]:
    """Returns a compiled function of loss and gradient of the upsampler on a random batch."""
    (own,) = engine.cascade.of_role("upsampler")
    stage = own.entry.make(own.config)
    shapes = batches.abstract(stage.batch_spec, BATCH)
    random = np.random.default_rng(0)
    batch = {name: random.random(x.shape, np.float32).astype(x.dtype) for name, x in shapes.items()}
    run = jax.jit(jax.grad(lambda params, batch, key: stage.loss(params, batch, key)[0]))
    arguments = (engine.loaded.params[own.name], jax.device_put(batch), jax.random.key(0))
    jax.block_until_ready(run(*arguments))
    return lambda: jax.block_until_ready(run(*arguments))


def times(steps: dict[str, Callable[[], Any]], *, turns: int) -> dict[str, np.ndarray]:
    """Measures the seconds of several functions in turns."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(turns):
        for name, run in steps.items():
            started = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - started)
    return {name: np.array(values) for name, values in seconds.items()}
