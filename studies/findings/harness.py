"""The harness of all findings: samples and scores the same captions with models and baselines.

Image i of every system starts from the same noise, so that systems are compared image by image.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from studies import evaluation_set, scoring
from studies.evaluation_set import BATCH, EvaluationSet
from studies.findings import baseline_runs
from studies.findings.config import FindingsConfig
from studies.scoring import ScoredImages
from unclip_jax.conditioning.captions import TokenIds
from unclip_jax.core.checks import UserError
from unclip_jax.core.picture import to_uint8
from unclip_jax.data import sources
from unclip_jax.engine.inference_engine import InferenceEngine
from unclip_jax.inference import batch_sampling, load, text_to_image
from unclip_jax.inference.text_to_image import SampleOptions
from unclip_jax.metrics import frechet
from unclip_jax.metrics.worlds import WorldChecks
from unclip_jax.parallel import place
from unclip_jax.parallel.mesh import batch_sharding, replicated, sampling_mesh, traced_on
from unclip_jax.stages.prior_ar import PriorArStageConfig


class Harness:
    """The models under study, their baselines, and the held-out captions.

    Attributes:
        config: settings of the study.
        engine: name of a run -> its engine; baselines are trained on first use.
        z_img: name of a run -> [images z] sampled by its prior for `examples`.
        main: engine of the models under study.
        examples: the captions of all findings that do not select their own.
    """

    def __init__(self, config: FindingsConfig):
        """Loads the models and embeds the captions.

        Raises:
            UserError: models or data do not exist, or there are too few examples.
        """
        self.config = config
        self.engine = functools.cache(self._open_engine)
        self.z_img = functools.cache(lambda run: self.sample_prior(run, self.examples))
        self._compiled: dict[tuple[Any, ...], Any] = {}
        self._sampled: dict[tuple[Any, ...], np.ndarray] = {}  # shared between findings
        self.main: InferenceEngine = self.engine(baseline_runs.MAIN)
        self.examples = self.select(num=config.num, images=config.images)

    def _open_engine(self, run: str) -> InferenceEngine:
        """Loads the models or a baseline of `BASELINES`, which is trained if it is missing."""
        if run == baseline_runs.MAIN:
            loaded = load.load_cascade(self.config.models, prior_name="unclip")
            return InferenceEngine(loaded, batch=BATCH)
        baseline = baseline_runs.by_name(run)
        folder = baseline_runs.prepare(baseline, self.config)
        prior = baseline.stage if baseline.stage == "prior_ar" else "unclip"
        return InferenceEngine(load.load_cascade(folder, prior_name=prior), batch=BATCH)

    def select(
        self, *, num: int, images: int, accept: Callable[[str], bool] | None = None
    ) -> EvaluationSet:
        """Embeds the first `num` captions that have a scene and satisfy `accept`.

        Args:
            num: number of captions; with `accept`, the largest number.
            images: images per caption.
            accept: predicate on captions; None = all.

        Raises:
            UserError: without `accept`, there are fewer than `num` captions.
        """
        data, split = self.config.data, self.config.split
        source = sources.open_source(data, split=split)
        records = [r for r in (source[i] for i in range(len(source))) if r["scene"]]
        if accept is None and (len(records) < num or num < 2):
            raise UserError(
                f"split {split!r} of {data} has {len(records)} examples with a scene; "
                f"--num={num} asks for others. Give 2 to {len(records)}."
            )
        records = [r for r in records if accept is None or accept(str(r["caption"]))][:num]
        return evaluation_set.build(
            self.main, records, reference=self.reference, images_per_caption=images
        )

    @functools.cached_property
    def world(self) -> WorldChecks:
        """The procedural world of the captions."""
        return evaluation_set.world_of(self.examples.captions)

    @functools.cached_property
    def training_embeddings(self) -> np.ndarray:
        """Embeddings [n z] of training images."""
        source = sources.open_source(self.config.data, split="train")
        return evaluation_set.embed_training_images(self.main, source)

    @functools.cached_property
    def reference(self) -> frechet.Moments:
        """Moments of `training_embeddings`."""
        return frechet.moments(self.training_embeddings)

    def sample_prior(
        self,
        run: str,
        examples: EvaluationSet,
        *,
        candidates: int | None = None,
        steps: str | None = None,
        limit: float | None = None,
    ) -> np.ndarray:
        """Samples z_img [images z] for captions from the prior of a run.

        Args:
            run: name of the models' run or of a baseline.
            examples: the captions.
            candidates: samples per image, of which the best is selected; None = as exported.
            steps: steps of the prior; None = as exported.
            limit: bound on x_0, in standard deviations of a coordinate; None = as exported.
        """
        engine = self.engine(run)
        overrides: dict[str, Any] = {"steps": steps}
        overrides |= {} if limit is None else {"threshold": "static", "limit": limit}
        options = SampleOptions(
            prior=batch_sampling.override(engine.cascade.prior.sampling, overrides, stage="prior"),
            num_candidates=candidates,
        )
        if isinstance(engine.cascade.prior, PriorArStageConfig):
            options = dataclasses.replace(options, num_candidates=1)
        captions, seed = examples.captions, self.config.seed
        indices = range(len(captions))
        return np.asarray(
            engine.sample_prior(captions, seed=seed, indices=indices, options=options)
        )

    def sample_images(
        self,
        run: str,
        z_img: np.ndarray,
        *,
        examples: EvaluationSet | None = None,
        guidance: float | None = None,
        steps: str | None = None,
        caption: bool = True,
        reads_z: bool = True,
        label: str = "",
    ) -> np.ndarray:
        """Samples uint8 images from the decoder of a run, enlarged by the models' upsamplers.

        Args:
            run: name of the models' run or of a baseline.
            z_img: one embedding per image.
            examples: the captions; None = those of all findings.
            guidance: guidance scale of the decoder; None = as exported.
            steps: steps of the decoder; None = as exported.
            caption: False = the decoder receives no caption.
            reads_z: False = the decoder receives the null in place of z_img.
            label: label of the progress bar.
        """
        examples = examples or self.examples
        loaded = self.engine(run).loaded
        decoder = loaded.cascade.decoder
        if not reads_z:  # with the same parameters
            decoder = dataclasses.replace(
                decoder, model=dataclasses.replace(decoder.model, reads_z=False)
            )
        cascade = loaded.cascade.without_upsamplers().replace(decoder=decoder)
        overrides = {"guidance_scale": guidance, "steps": steps}
        options = SampleOptions(
            decoder=batch_sampling.override(decoder.sampling, overrides, stage="decoder"),
            condition="z_img",
        )
        system = (run, options, reads_z, caption, examples.captions, z_img.tobytes())
        if system in self._sampled:
            return self._sampled[system]
        mesh, size = sampling_mesh(_even_batch(len(examples.captions)))
        program = (run, options, reads_z, size)
        if program not in self._compiled:
            self._compiled[program] = batch_sampling.compile_sampler(cascade, options, mesh=mesh)
        sampler = self._compiled[program]
        base = batch_sampling.sample_images(
            loaded._replace(cascade=cascade),
            examples.captions,
            seed=self.config.seed,
            options=options,
            z_img=z_img,
            batch_size=size,
            name=f"sample {label or run}",
            sampler=sampler if caption else _without_caption(sampler),
        )
        self._sampled[system] = self._enlarge(base)
        return self._sampled[system]

    def score(self, images: np.ndarray, targets: Sequence[str] | None = None) -> ScoredImages:
        """Scores images against captions or scenes; default: the captions of all findings."""
        targets = self.examples.captions if targets is None else targets
        return scoring.score_images(self.main, images, targets)

    def _enlarge(self, base: np.ndarray) -> np.ndarray:
        """Enlarges images with the models' upsamplers, by one program for all systems."""
        cascade = self.main.cascade
        if not cascade.upsamplers:
            return base
        mesh, size = sampling_mesh(_even_batch(len(base)))
        if ("enlarge", size) not in self._compiled:

            def run(params, images, keys):
                images = images.astype(np.float32) / 127.5 - 1.0
                return to_uint8(text_to_image.upsample(cascade, params, images, keys))

            shardings = (replicated(mesh), batch_sharding(mesh), batch_sharding(mesh))
            self._compiled["enlarge", size] = jax.jit(
                traced_on(mesh, run), in_shardings=shardings, out_shardings=replicated(mesh)
            )
        enlarge = self._compiled["enlarge", size]
        params = place.replicate(self.main.params, mesh)
        batches = []
        for start in range(0, len(base), size):
            rows = np.minimum(np.arange(start, start + size), len(base) - 1)
            keys = text_to_image.keys_for(self.config.seed, jax.numpy.asarray(rows))
            batches.append(np.asarray(enlarge(params, *place.spread((base[rows], keys), mesh))))
        return np.concatenate(batches)[: len(base)]


def _even_batch(count: int) -> int:
    """Returns a batch size of at most `BATCH` with little padding in the last batch."""
    return -(-count // -(-count // BATCH))


def _without_caption(sampler: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """Returns a sampler whose decoder receives only padding, as in half of its training."""

    def sample(params, captions, keys, z_img):
        ids = captions["decoder"]
        empty = {**captions, "decoder": TokenIds(ids.tokens, ids.mask & False)}
        return sampler(params, empty, keys, z_img)

    return sample
