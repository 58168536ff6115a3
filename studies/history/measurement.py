"""Measures one system: its images of the shared captions, and its sizes and costs."""

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from studies import scoring, statistics
from studies.evaluation_set import BATCH, EvaluationSet
from studies.history.config import HistoryConfig
from studies.history.systems import System
from studies.scoring import ScoredImages
from unclip_jax.core import trees
from unclip_jax.core.picture import to_uint8
from unclip_jax.engine.inference_engine import InferenceEngine
from unclip_jax.inference import load, text_to_image
from unclip_jax.inference.cascade import plan
from unclip_jax.inference.text_to_image import SampleOptions
from unclip_jax.planning import flops

COLUMNS = ("followed", "joint", "count", "colour", "shape", "relation", "binding")


def measure(
    system: System, config: HistoryConfig, *, scorer: InferenceEngine, examples: EvaluationSet
) -> tuple[dict[str, Any], np.ndarray]:
    """Samples and scores a system; returns its row (JSON-ready except for nan) and its images.

    Args:
        system: the system, whose run must be linked.
        config: settings of the study.
        scorer: engine whose CLIP embeds the images of all systems.
        examples: the captions.
    """
    loaded = load.load_cascade(config.run(system.run), prior_name=system.prior)
    engine = InferenceEngine(loaded, batch=BATCH)
    options = SampleOptions(best_of=system.best_of)
    images, seconds = sample(engine, examples.captions, options, seed=config.seed)
    images = scoring.reduce(images, side=scorer.cascade.image_size)
    scored = scoring.score_images(scorer, images, examples.captions)
    row = {
        "name": system.name,
        "paper": system.paper,
        **scores(examples, scored),
        "side": engine.cascade.image_size,
        "parameters": parameters(engine, options),
        "seconds": seconds,
        "flops": count_flops(engine, examples.captions[0], options),
    }
    return row, images


def true_images(images: np.ndarray, examples: EvaluationSet, scorer: InferenceEngine) -> Any:
    """Returns the row of the true images of the captions, reduced to the common size."""
    images = scoring.reduce(images, side=scorer.cascade.image_size)
    return {
        "name": "true images",
        "paper": "",
        **scores(examples, scoring.score_images(scorer, images, examples.captions)),
    }


def scores(examples: EvaluationSet, scored: ScoredImages) -> dict[str, Any]:
    """Computes the scores with one value per caption or image, and the Fréchet distance.

    That distance has no interval: for so few images it is mostly due to their number.
    """
    cells = {"followed": examples.mean(scored.followed)}
    cells |= {name: examples.mean(scored.correct[name]) for name in COLUMNS[1:]}
    spread = examples.diversity(scored.z)
    cells["diversity"] = statistics.interval(
        lambda rows: statistics.nan_mean(spread[rows]), examples.count
    )
    row: dict[str, Any] = {name: cell._asdict() for name, cell in cells.items()}
    return {**row, "frechet": examples.distance(scored.z)}


def sample(
    engine: InferenceEngine, captions: tuple[str, ...], options: SampleOptions, *, seed: int
) -> tuple[np.ndarray, float]:
    """Samples an image per caption; returns uint8 images and seconds per image, compiled."""
    size = min(BATCH, len(captions))
    engine.sample_cascade(captions[:size], seed=seed, options=options)  # compiles
    started = time.perf_counter()
    output = engine.sample_cascade(captions, seed=seed, options=options)
    images = to_uint8(np.asarray(output.images))
    padded = -(-len(captions) // size) * size  # the last batch is padded
    return images, (time.perf_counter() - started) / padded


def parameters(engine: InferenceEngine, options: SampleOptions) -> int:
    """Returns the number of parameters of the stages that run, including CLIP if it selects."""
    names = {step.stage.name for step in plan(engine.cascade)}
    names |= {"clip"} if options.best_of > 1 else set()
    return sum(trees.count(engine.loaded.params[name]) for name in names)


def count_flops(engine: InferenceEngine, caption: str, options: SampleOptions) -> float:
    """Counts the matrix FLOPs from one tokenised caption to its image."""

    def run(params: Any, captions: Any, keys: jax.Array) -> Any:
        return text_to_image.sample(engine.cascade, params, captions, keys, options=options).images

    keys = text_to_image.keys_for(0, jnp.arange(1))
    count = flops.count(run, engine.params, engine.tokens([caption]), keys)
    assert not count.unknown, count.unknown
    return count.flops
