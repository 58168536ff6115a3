"""Best-of-n curves: the improvement of images by CLIP's selection among n candidates.

All curves are computed from one set of candidates per caption (`metrics.best_of`); each candidate
is scored once by the checker of its world and by CLIP.
"""

import dataclasses
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from unclip_jax.core.checks import UserError, check_seed, in_range, positive
from unclip_jax.core.picture import to_uint8
from unclip_jax.data import sources
from unclip_jax.data.dataset import FeatureKeys
from unclip_jax.inference import batch_sampling, load, text_to_image
from unclip_jax.inference.batch_runner import BatchRunner
from unclip_jax.inference.cascade import Cascade, tokenise
from unclip_jax.metrics import best_of, worlds
from unclip_jax.metrics.intervals import bootstrap


@dataclasses.dataclass(frozen=True)
class RerankingConfig:
    """An evaluation of reranking by CLIP.

    Attributes:
        models: run directory.
        data: data set with captions.
        prior: name of the prior or of the chain.
        split: split of the data set.
        keys: names of image and caption in a data set of another format.
        num: captions.
        candidates: images per caption.
        guidance: scale; None = as exported.
        seed: seed of all random numbers.
        batch: images per batch.
    """

    models: pathlib.Path
    data: str
    prior: str = "prior"
    split: str = "validation"
    keys: FeatureKeys = dataclasses.field(default_factory=FeatureKeys)
    num: int = 64
    candidates: int = 64
    guidance: float | None = None
    seed: int = 0
    batch: int = 64

    def __post_init__(self):
        """Checks the bounds."""
        positive("--num", self.num)
        in_range("--candidates", self.candidates, 1, text_to_image.MAX_BEST_OF)
        check_seed("--seed", self.seed)


def evaluate_reranking(config: RerankingConfig) -> dict[str, Any]:
    """Computes both curves with their intervals over captions; JSON-ready.

    Raises:
        UserError: captions that no checker supports, or models without a CLIP.
    """
    loaded = load.load_cascade(config.models, prior_name=config.prior)
    loaded.cascade.stage("clip")
    source = sources.open_source(config.data, split=config.split, keys=config.keys)
    captions = [source[i]["caption"] for i in range(min(config.num, len(source)))]
    world = worlds.world_of(captions)
    if world is None:
        raise UserError(
            f"captions of {config.data} belong to no world with a checker (shapes, portraits), "
            "which scores the images; give the data of one."
        )
    options = batch_sampling.sample_options(
        loaded.cascade, prior={}, decoder={"guidance_scale": config.guidance}
    )
    runner = BatchRunner(loaded.cascade, batch=config.batch)
    sample = runner.compiled(candidate, "options")
    params = runner.place(loaded.params)
    inputs = (
        tokenise(loaded.cascade, load.load_tokenizers(loaded.tokenizer_dirs), captions),
        text_to_image.keys_for(config.seed, jnp.arange(len(captions))),
    )
    scores, verdicts = [], []
    for number in tqdm(range(config.candidates), unit="candidate", disable=jax.process_index() > 0):
        index = jnp.int32(number)
        run = lambda batch, i=index: sample(params, *batch, i, options=options)  # noqa: E731
        images, score = runner.run(run, inputs, "sample")
        judged = world.check(np.asarray(images), captions)
        scores.append(np.asarray(score))
        verdicts.append([float(bool(verdict.joint)) for verdict in judged])
    score = np.stack(scores, axis=1).astype(np.float64)
    curves = {
        "joint": best_of.expected_best(np.array(verdicts).T, score),
        "clip_score": best_of.expected_best(score, score),
    }
    facts = {name: getattr(config, name) for name in ("prior", "split", "guidance", "seed")}
    return {
        **facts,
        "captions": len(captions),
        "candidates": config.candidates,
        "curves": {name: _points(curve) for name, curve in curves.items()},
    }


def candidate(
    cascade: Cascade, params: Any, captions: Any, keys: Any, number: Any, *, options: Any
) -> tuple[jax.Array, jax.Array]:
    """Samples candidate `number` of every caption: uint8 images, and CLIP's scores of them."""
    own = text_to_image.candidate_keys(keys, number)
    images = text_to_image.sample(cascade, params, captions, own, options=options).images
    score = text_to_image.caption_score(cascade, params, images=images, captions=captions)
    return to_uint8(images), score


def _points(curve: np.ndarray) -> dict[str, dict[str, int | float]]:
    """Returns the points at powers of two and at the end, with intervals over captions."""
    count = curve.shape[1]
    numbers = sorted({2**i for i in range(count.bit_length()) if 2**i <= count} | {count})
    return {str(n): bootstrap(curve[:, n - 1])._asdict() for n in numbers}


def table(result: dict[str, Any]) -> str:
    """Formats the result of `evaluate_reranking` as text."""
    lines = [f"{result['captions']} captions, the best of n of {result['candidates']} by CLIP:"]
    lines.append(f"{'n':>5}" + "".join(f"{name:>26}" for name in result["curves"]))
    for n in result["curves"]["joint"]:
        points = (curve[n] for curve in result["curves"].values())
        cells = (f"{p['value']:.3f} [{p['low']:.3f}, {p['high']:.3f}]" for p in points)
        lines.append(f"{n:>5}" + "".join(f"{cell:>26}" for cell in cells))
    return "\n".join(lines) + "\n"
