"""Measures one source of z_img: its embeddings, their cost, and the images sampled from them."""

import dataclasses
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from studies.evaluation_set import BATCH, EvaluationSet
from unclip_jax.engine.inference_engine import InferenceEngine
from unclip_jax.evaluation import cascade
from unclip_jax.inference import text_to_image
from unclip_jax.inference.cascade import Cascade
from unclip_jax.inference.text_to_image import SampleOptions
from unclip_jax.metrics import embeddings, frechet, worlds
from unclip_jax.planning import flops

GUIDANCE = (1.0, 2.0, 4.0)  # scales of the diffusion prior
CANDIDATES = (1, 2, 8)
PAPERS = 2  # candidates while guidance varies (unCLIP, section 2.2)


class ZImgSource(NamedTuple):
    """A source of z_img, one row of the table.

    Attributes:
        name: name on the page.
        prior: name of the prior of the run that samples; "" = the true embeddings.
        options: its sampling options.
    """

    name: str
    prior: str
    options: SampleOptions


def sources_of(cascade: Cascade) -> list[ZImgSource]:
    """Returns all sources in order; `cascade` must have the diffusion prior."""
    sampling = cascade.prior.sampling
    rows = [
        ZImgSource("true image", "", SampleOptions(condition="z_img")),
        ZImgSource("no prior: z_txt", "prior", SampleOptions(condition="z_txt")),
        ZImgSource("autoregressive", "prior_ar", SampleOptions(num_candidates=1)),
    ]
    pairs = {*((1.0, n) for n in CANDIDATES), *((scale, PAPERS) for scale in GUIDANCE)}
    for scale, count in sorted(pairs):
        name = f"diffusion, guidance {scale:g}, best of {count}"
        options = SampleOptions(
            prior=dataclasses.replace(sampling, guidance_scale=scale), num_candidates=count
        )
        rows.append(ZImgSource(name, "prior", options))
    return rows


class PriorComparison:
    """The models, examples and seed that all sources share."""

    def __init__(
        self,
        engines: Mapping[str, InferenceEngine],
        examples: EvaluationSet,
        *,
        num: int,
        seed: int,
    ):
        """Compiles the decoder.

        Args:
            engines: the cascade with each of its priors, by name.
            examples: captions with their true embeddings.
            num: number of captions, from the first, that are sampled as images.
            seed: image and embedding i depend only on (seed, i).
        """
        self.engines, self.examples, self.num, self.seed = engines, examples, num, seed
        self._rates = None
        if all(examples.scenes[:num]):  # the checker cannot judge others
            self._rates = cascade.caption_rates(
                engines["prior"].loaded,
                list(examples.captions[:num]),
                seed=seed,
                batch_size=min(BATCH, num),
            )

    def measure(self, source: ZImgSource) -> dict[str, Any]:
        """Returns the row of one source; JSON-ready."""
        row: dict[str, Any] = {"name": source.name, "prior": source.prior}
        z_img = self.examples.z_img
        if source.prior:
            engine = self.engines[source.prior]
            row["options"] = dataclasses.asdict(source.options)
            z_img, row["seconds"] = self.sample(engine, source.options)
            row["flops"] = count_flops(engine, self.examples.captions[0], source.options)
        row["embeddings"] = score_embeddings(z_img, self.examples)
        if self._rates:
            row["checker"] = worlds.as_json(self._rates(z_img[: self.num], source.name))
        return row

    def sample(self, engine: InferenceEngine, options: SampleOptions) -> tuple[np.ndarray, float]:
        """Samples one z_img per caption; returns them and the seconds per sample, compiled."""
        captions, indices = self.examples.captions, range(len(self.examples.captions))
        fixed: dict[str, Any] = {"seed": self.seed, "options": options}
        engine.sample_prior(captions[:BATCH], indices=indices[:BATCH], **fixed)
        started = time.perf_counter()
        z_img = np.asarray(engine.sample_prior(captions, indices=indices, **fixed))
        size = min(BATCH, len(captions))
        padded = -(-len(captions) // size) * size  # the last batch is padded
        return z_img, (time.perf_counter() - started) / padded


def count_flops(engine: InferenceEngine, caption: str, options: SampleOptions) -> float:
    """Returns the matrix FLOPs from a tokenised caption to its z_img, with CLIP's text tower."""

    def run(params, tokens, keys):
        return text_to_image.sample_z_img(engine.cascade, params, tokens, keys, options=options)

    keys = text_to_image.keys_for(0, jnp.arange(1))
    count = flops.count(run, engine.params, engine.tokens([caption]), keys)
    assert not count.unknown, count.unknown
    return count.flops


def score_embeddings(z_img: np.ndarray, examples: EvaluationSet) -> dict[str, Any]:
    """Compares embeddings with the true ones, pair by pair and as distributions; JSON-ready."""
    group = cascade.RETRIEVAL
    own = embeddings.first_occurrences(examples.captions)
    retrieved = embeddings.retrieval_rate(z_img[own], examples.z_txt[own], group=group)
    return {
        "cosine_image": embeddings.cosine(z_img, examples.z_img)._asdict(),
        "cosine_text": embeddings.cosine(z_img, examples.z_txt)._asdict(),
        "finds_image": embeddings.retrieval_rate(z_img, examples.z_img, group=group)._asdict(),
        "finds_caption": retrieved._asdict(),
        "rank_image": float(
            np.mean(embeddings.retrieval_ranks(z_img, examples.z_img, group=group))
        ),
        "frechet": frechet.squared_distance(frechet.moments(z_img), examples.reference),
    }
