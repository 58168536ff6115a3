"""Scores of a cascade over the sampling of its decoder and upsamplers.

Every point samples the same captions from the same z_img and the same noise, as in figures 9 and 11
of unCLIP: only settings of sampling differ. OUT/points/ has one JSON file per point; points
that exist are not sampled again, and a folder of another protocol is rejected. OUT/sweep.json and
sweep.csv hold all points, OUT/sweep.png the curves.
"""

import dataclasses
import itertools
import json
import pathlib
import sys
from typing import Any

import jax
import numpy as np

from unclip_jax.core.checks import UserError, check_seed, one_of, positive
from unclip_jax.data.dataset import FeatureKeys
from unclip_jax.engine.image_inputs import InputImage
from unclip_jax.engine.inference_engine import InferenceEngine
from unclip_jax.evaluation import feature_extraction, image_sets, protocol_folder, sweep_points
from unclip_jax.evaluation.image_sets import ImageSet, ImageSetOptions
from unclip_jax.evaluation.sampled_set import sample_options
from unclip_jax.evaluation.sweep_points import SweepPoint
from unclip_jax.handoff.export import params_id
from unclip_jax.inference import batch_sampling, load
from unclip_jax.inference.load import LoadedCascade
from unclip_jax.inference.text_to_image import CONDITIONS, SampleOptions
from unclip_jax.metrics import npz, report, scores, worlds
from unclip_jax.metrics.extractors import Extractor, clip
from unclip_jax.metrics.score_options import ScoreOptions
from unclip_jax.objectives.gaussian import SAMPLERS, THRESHOLDS, SamplingConfig


@dataclasses.dataclass(frozen=True)
class SweepConfig:
    """A sweep over the sampling of a decoder and of upsamplers.

    Attributes:
        models: run directory.
        data: data set with captions.
        out: folder to write.
        guidance: scales of the decoder; 1 = off.
        steps: grids of the decoder; None = as exported.
        samplers: samplers of the decoder; None = as exported.
        thresholds: thresholds of the decoder; None = as exported.
        upsampler_guidance: scales of the upsamplers; None = as exported.
        upsampler_levels: noise on the images that upsamplers enlarge, as fractions of the chain;
            None = as exported.
        features: "inception:FILE" or "clip:EXPORT"; None = the CLIP of the models.
        resize: how Inception's input is resized.
        prior: name of the prior.
        condition: source of z_img, one of `CONDITIONS`.
        split: split of the data set.
        keys: names of image and caption in a data set of another format.
        num: captions.
        images: images per caption.
        reference: number of real images; None = all of the split.
        seed: image i depends on (seed, i) and its caption alone.
        batch: images per batch.
        keep_images: True to write the images of every point as an .npz batch.
    """

    models: pathlib.Path
    data: str
    out: pathlib.Path
    guidance: tuple[float, ...] = (1.0,)
    steps: tuple[str | None, ...] = (None,)
    samplers: tuple[str | None, ...] = (None,)
    thresholds: tuple[str | None, ...] = (None,)
    upsampler_guidance: tuple[float | None, ...] = (None,)
    upsampler_levels: tuple[float | None, ...] = (None,)
    features: str | None = None
    resize: str = "tf1"
    prior: str = "prior"
    condition: str = "prior"
    split: str = "validation"
    keys: FeatureKeys = dataclasses.field(default_factory=FeatureKeys)
    num: int = 200
    images: int = 2
    reference: int | None = None
    seed: int = 0
    batch: int = 50
    keep_images: bool = False

    def __post_init__(self):
        """Checks the bounds, and the names of condition and samplers."""
        scales = {"guidance": self.guidance, "upsampler-guidance": self.upsampler_guidance}
        for name, values in scales.items():
            for scale in values:
                if scale is not None and not 0 <= scale < float("inf"):
                    raise UserError(f"--{name} holds {scale:g}; scales are 0 or more, 1 = off.")
        for level in self.upsampler_levels:
            if level is not None and not 0 <= level <= 1:
                raise UserError(
                    f"--upsampler-level holds {level:g}; give fractions of the chain, 0 to 1."
                )
        for threshold in self.thresholds:
            if threshold is not None:
                one_of("--threshold", threshold, THRESHOLDS)
        for name in self.samplers:
            if name is not None:
                one_of("--sampler", name.partition(":")[0], SAMPLERS)
                SamplingConfig(sampler=name)  # rejects options that the sampler does not have
        one_of("--condition", self.condition, CONDITIONS)
        for name in ("num", "images", "batch"):
            positive(f"--{name}", getattr(self, name))
        check_seed("--seed", self.seed)

    @property
    def points(self) -> list[SweepPoint]:
        """Every combination of settings, without repetitions."""
        decoder = (self.guidance, self.steps, self.samplers, self.thresholds)
        grid = itertools.product(*decoder, self.upsampler_guidance, self.upsampler_levels)
        return list(dict.fromkeys(SweepPoint(*entry) for entry in grid))

    def open_images(self, *, size: int, num: int | None = None) -> ImageSet:
        """Opens the images of the split at one size; `num`: from the first, None = all.

        Raises:
            UserError: see `image_sets.open_set`.
        """
        return image_sets.open_set(self.data, ImageSetOptions(size, num, self.split, self.keys))


@dataclasses.dataclass(frozen=True)
class SharedInputs:
    """The inputs that all points of a sweep share.

    Attributes:
        captions: one per image, repeated for several images of one.
        z_img: [b z] of every image; None for a decoder that reads no embedding.
        z_txt: [b z] of every caption; None without a CLIP.
        real: features of the reference.
        extractor: the feature extractor.
        clip: the cascade's own CLIP, for CLIP score and diversity; None = the models have none.
        checked_captions: for the exact checker; () outside the procedural worlds.
    """

    captions: tuple[str, ...]
    z_img: np.ndarray | None
    z_txt: np.ndarray | None
    real: report.SetFeatures
    extractor: Extractor
    clip: Extractor | None
    checked_captions: tuple[str, ...]


def run_sweep(config: SweepConfig) -> dict[str, Any]:
    """Samples and scores the missing points, writes tables and plots; returns the sweep.

    Raises:
        UserError: the models or data cannot be used, or the folder has another protocol.
    """
    points = config.points
    loaded = load.load_cascade(config.models, prior_name=config.prior)
    if loaded.cascade.decoder_sampling is None:
        raise UserError(
            f"{config.models} is loaded as a chain that decodes codes, which has no decoder to "
            "sweep; use `evaluate rerank`, or --chain=unclip."
        )
    condition = "z_img" if loaded.cascade.decoder_reads_embedding else config.condition
    options = {
        point: sample_options(loaded, condition=condition, **point._asdict()) for point in points
    }
    inputs = prepare(config, loaded)
    first = jax.process_index() == 0
    protocol_folder.claim(config.out, protocol_of(config, loaded, inputs), first=first)
    for number, point in enumerate(points, 1):
        path = config.out / "points" / f"{point.name}.json"
        if path.is_file():
            sys.stderr.write(f"{point.name}: exists already\n" if first else "")
            continue
        images = batch_sampling.sample_images(
            loaded,
            list(inputs.captions),
            seed=config.seed,
            options=options[point],
            z_img=inputs.z_img,
            batch_size=config.batch,
            name=f"{point.name} ({number} of {len(points)})",
        )
        scored = {"point": point._asdict(), **score(images, inputs, config)}
        if first:
            if config.keep_images:
                npz.write(path.with_suffix(".npz"), [images], count=len(images))
            protocol_folder.write(path, json.dumps(scored, indent=2) + "\n")
    return sweep_points.summarise(config.out) if first else {}


def prepare(config: SweepConfig, loaded: LoadedCascade) -> SharedInputs:
    """Reads captions, and computes their embeddings and the features of the reference.

    Raises:
        UserError: data without captions, too few examples, or nothing to compute features with.
    """
    size = loaded.cascade.image_size
    examples = config.open_images(size=size)
    if examples.captions is None:
        raise UserError(f"{config.data} has no captions; give a set that `prepare` wrote.")
    for name in ("num", "reference"):
        if (getattr(config, name) or 0) > examples.count:
            raise UserError(
                f"{examples.where} has {examples.count} examples; "
                f"--{name}={getattr(config, name)} asks for more."
            )
    captions = tuple(c for c in examples.captions[: config.num] for _ in range(config.images))
    engine = InferenceEngine(loaded, batch=config.batch)
    extractor = own = _own_clip(loaded)
    if config.features:
        extractor = feature_extraction.open_extractor(config.features, resize=config.resize)
    if extractor is None:
        raise UserError(
            f"{config.models} has no clip, of whose features the distances would be; give "
            "--features=clip:EXPORT or --features=inception:FILE."
        )
    real = config.open_images(size=size, num=config.reference)
    return SharedInputs(
        captions,
        _embeddings(engine, config, captions) if engine.cascade.decoder_reads_embedding else None,
        None if own is None else np.asarray(engine.text_embeddings(captions)),
        feature_extraction.collect(extractor, real, batch_size=config.batch, name="real"),
        extractor,
        own,
        captions if worlds.world_of(captions) else (),
    )


def score(images: np.ndarray, inputs: SharedInputs, config: SweepConfig) -> dict[str, Any]:
    """Computes scores and warnings of the images of one point."""
    image_set = image_sets.in_memory(images, where="drawn")
    fake = feature_extraction.collect(
        inputs.extractor, image_set, batch_size=config.batch, name="score"
    )
    options = ScoreOptions(seed=config.seed)
    result = report.compare(inputs.real, fake, kind=inputs.extractor.kind, options=options)
    values = dict(result.scores)
    if inputs.clip is not None:
        values |= _clip_scores(inputs.clip, fake, image_set, inputs, config)
    if inputs.checked_captions:
        rates = worlds.check(images, inputs.checked_captions)
        values |= {
            f"checker_{n}": rates[n].value for n in worlds.SUMMARY if n in rates and rates[n].total
        }
    plain = dataclasses.replace(result, scores=values).plain()
    return {"scores": plain["scores"], "warnings": plain["warnings"]}


def _clip_scores(
    own: Extractor,
    fake: report.SetFeatures,
    image_set: ImageSet,
    inputs: SharedInputs,
    config: SweepConfig,
) -> dict[str, float]:
    """Returns CLIP score and diversity by the cascade's own CLIP, with their errors."""
    if inputs.extractor is not own:
        fake = feature_extraction.collect(own, image_set, batch_size=config.batch, name="CLIP")
    z, z_txt = fake.pool, inputs.z_txt
    assert z is not None and z_txt is not None
    similarity = scores.clip_score(z, z_txt)
    values = {"clip_score": similarity.value, "clip_score_error": similarity.error}
    if config.images > 1:
        spread = scores.diversity(z, inputs.captions)
        values |= {"diversity": spread.value, "diversity_error": spread.error}
    return values


def _own_clip(loaded: LoadedCascade) -> Extractor | None:
    """Returns the CLIP of a cascade as an extractor of features; None if it has none."""
    if not loaded.cascade.has("clip"):
        return None
    weights = str(loaded.clip_id)[:16]
    return clip(loaded.params["clip"], cfg=loaded.cascade.clip.model, weights=weights)


def protocol_of(config: SweepConfig, loaded: LoadedCascade, inputs: SharedInputs) -> dict[str, Any]:
    """Returns the settings that must be equal for all points of a sweep; JSON-ready."""
    params, cascade = loaded.params, loaded.cascade
    decoder, reads = cascade.stage("decoder").name, cascade.decoder_reads_embedding
    named = config.condition == "prior" and reads and cascade.has("prior")
    prior = cascade.stage("prior").name if named else None
    return {
        **inputs.extractor.protocol,
        "real": dict(inputs.real.facts),
        "clip": None if inputs.clip is None else inputs.clip.protocol["weights"],
        "prior": params_id(params[prior])[:16] if prior else None,
        "decoder": params_id(params[decoder])[:16],
        "upsamplers": [params_id(tree)[:16] for tree in cascade.upsampler_params(params)],
        "decoder_step": loaded.manifests[decoder].step,
        "condition": config.condition,
        "captions": f"the first {config.num} of {config.data} ({config.split})",
        "images": config.images,
        "count": len(inputs.captions),
        "seed": config.seed,
        "clip_score": f"{scores.CLIP_SCALE:g} x cosine, mean",
        "diversity": "1 - cosine of pairs of one caption, mean over pairs, then captions",
    }


def _embeddings(
    engine: InferenceEngine, config: SweepConfig, captions: tuple[str, ...]
) -> np.ndarray:
    """Returns the z_img [b z] of every image from the source that `config.condition` names."""
    if config.condition == "z_img":
        size = engine.cascade.clip.model.image_size
        examples = config.open_images(size=size, num=config.num)
        images = np.concatenate(list(examples.batches(config.batch, slice(None))))
        z_img = engine.image_embeddings([InputImage(image, "", "") for image in images])
        return np.repeat(np.asarray(z_img), config.images, axis=0)
    options = SampleOptions(condition=config.condition)
    indices = range(len(captions))
    return np.asarray(
        engine.sample_prior(captions, seed=config.seed, indices=indices, options=options)
    )
