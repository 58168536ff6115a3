"""The harness of all findings: samples the same captions with all chains from the same noise."""

import functools
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from studies import evaluation_set, scoring
from studies.evaluation_set import BATCH
from studies.imagen import upsampler_runs
from studies.imagen.config import ImagenStudyConfig
from studies.scoring import ScoredImages
from unclip_jax.core.picture import to_uint8
from unclip_jax.data import image_codec
from unclip_jax.engine.inference_engine import InferenceEngine
from unclip_jax.inference import batch_sampling, load, text_to_image
from unclip_jax.inference.text_to_image import SampleOptions
from unclip_jax.metrics.psnr import psnr

IMAGEN, UNCLIP = "imagen", "unclip"


class Samples(NamedTuple):
    """Images of a chain and of its base model, uint8."""

    images: np.ndarray
    base: np.ndarray


class Harness:
    """Imagen, unCLIP, the upsamplers of the study, and the held-out captions.

    Attributes:
        config: settings of the study.
        engine: name of a chain or an upsampler's run -> its engine; upsamplers are trained on first
            use.
        scorer: engine with the CLIP of unCLIP's run, which embeds all images.
        examples: the captions.
        true: [images h w 3] uint8, true images of the captions.
    """

    def __init__(self, config: ImagenStudyConfig):
        """Loads the CLIP and embeds the captions.

        Raises:
            UserError: models or data do not exist, or there are too few examples.
        """
        self.config = config
        self.engine = functools.cache(self._open)
        clip = load.clip_cascade(config.unclip / "clip" / "export")
        self.scorer = InferenceEngine(clip, batch=BATCH)
        self.examples, self.true = evaluation_set.select(
            self.scorer,
            str(config.data),
            split=config.split,
            num=config.num,
            images=config.images,
        )

    def _open(self, name: str) -> InferenceEngine:
        if name == UNCLIP:
            return _engine(self.config.unclip, "unclip")
        if name == IMAGEN:
            return _engine(self.config.models, "imagen")
        run = upsampler_runs.by_name(name)
        return _engine(upsampler_runs.prepare(run, self.config), "imagen")

    def sample(self, name: str, **changes: Any) -> Samples:
        """Samples all captions; `changes` apply to the sampling settings of the base model."""
        engine = self.engine(name)
        decoder = batch_sampling.override(engine.cascade.decoder_sampling, changes, stage="decoder")
        options = SampleOptions(decoder=decoder)
        output = engine.sample_cascade(
            self.examples.captions, seed=self.config.seed, options=options
        )
        return Samples(to_uint8(np.asarray(output.images)), to_uint8(np.asarray(output.base)))

    @functools.cached_property
    def base(self) -> np.ndarray:
        """[images h w 3] uint8 images of Imagen's base model, the same for all upsamplers."""
        return self.sample(IMAGEN).base

    def enlarge(
        self, name: str, low: np.ndarray, *, level: float = 0.0, guidance: float | None = None
    ) -> np.ndarray:
        """Enlarges uint8 images of all captions with the upsampler of a run.

        Args:
            name: name of the run.
            low: images with the size that the upsampler reads, or larger.
            level: noise level on them, as a share of the chain.
            guidance: guidance scale of the upsampler; None = as exported.
        """
        engine = self.engine(name)
        (cfg,) = engine.cascade.upsamplers
        options = batch_sampling.upsampler_sampling(engine.cascade, guidance=guidance, level=level)
        small = image_codec.to_float(scoring.reduce(low, side=cfg.low_res_size))
        keys = text_to_image.keys_for(self.config.seed, jnp.arange(len(low)))
        images = engine.upsample(
            jnp.asarray(small), keys, captions=self.examples.captions, options=options
        )
        return to_uint8(np.asarray(images))

    def decibels(self, images: np.ndarray) -> np.ndarray:
        """Computes the PSNR in dB of enlarged true images relative to the originals."""
        return psnr(images, scoring.reduce(self.true, side=images.shape[1]))

    def score(self, images: np.ndarray) -> ScoredImages:
        """Scores one image per caption."""
        return scoring.score_images(self.scorer, images, self.examples.captions)


def _engine(folder: Any, chain: str) -> InferenceEngine:
    return InferenceEngine(load.load_cascade(folder, prior_name=chain), batch=BATCH)
