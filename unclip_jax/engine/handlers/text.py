"""Runs `TextRequest`: images for captions.

The cascade is compiled as one program. For negative captions, guidance schedules, previews and
progress callbacks, the stages run one after the other from the same noise, and the images are equal
up to rounding.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image as PILImage

from unclip_jax.core.checks import UserError
from unclip_jax.core.picture import to_uint8
from unclip_jax.diffusion import guidance_schedule
from unclip_jax.editing.latents import Latent
from unclip_jax.engine import caption_notes
from unclip_jax.engine.decode_batch import DecodeBatch, DecodedImages
from unclip_jax.engine.handlers import results
from unclip_jax.engine.inference_engine import InferenceEngine
from unclip_jax.engine.request_base import check_negative
from unclip_jax.engine.requests import TextRequest
from unclip_jax.engine.result import Result
from unclip_jax.inference import batch_sampling, guided_sampling, load, text_to_image
from unclip_jax.inference.cascade import Cascade
from unclip_jax.inference.decoding import DecodeOptions
from unclip_jax.inference.load import CascadeFiles
from unclip_jax.inference.text_to_image import SampleOptions
from unclip_jax.stages.decoder import DecoderStageConfig

MAX_COLUMNS = 8  # of a grid with a row for each caption


def run(engine: InferenceEngine, request: TextRequest) -> Result:
    """Generates `num` images per caption."""
    options = sample_options(request, engine.cascade)
    captions = captions_of(request)
    display: dict[str, Any] = {"labels": captions, "columns": columns_of(request)}
    unclip = isinstance(engine.cascade.decoder, DecoderStageConfig)
    if request.stepwise and not unclip:
        raise UserError(
            "negative, guidance_schedule and previews belong to unCLIP's decoder; the "
            f"{engine.cascade.stage('decoder').name} of this run has none of them, so leave them "
            "out."
        )
    if request.guide_scale[1]:
        z_img, images = _guided(engine, request, captions, options)
    elif request.stepwise or (engine.watched and unclip and engine.cascade.has("prior")):
        z_img, decoded = _best_of_stepwise(engine, request, captions, options)
        images = decoded.images
        if decoded.previews is not None:
            display = _with_previews(decoded, captions)
    else:
        output = engine.sample_cascade(captions, seed=request.seed, options=options)
        z_img, images = output.z_img, to_uint8(np.asarray(output.images))
    return results.build(
        engine,
        request,
        images,
        facts={"options": dataclasses.asdict(options)},
        z_img=None if z_img is None else np.asarray(z_img),
        **display,
    )


def run_by_stage(files: CascadeFiles, request: TextRequest, *, batch: int, name: str) -> Result:
    """Runs a request with one stage at a time on the device, for models that fill its memory.

    Args:
        files: the models, not yet loaded.
        request: without `best_of` and the settings that `TextRequest.stepwise` checks.
        batch: images per batch.
        name: name of the models, for the provenance.

    Raises:
        UserError: the request has one of these settings, or there are several processes.
    """
    if request.stepwise or request.best_of > 1 or request.guide_scale[1]:
        raise UserError(
            "--by-stage samples whole batches, without --clip-scale, --classifier-scale, "
            "--negative, --guidance-schedule, --previews and --best-of; leave one of them out."
        )
    if jax.process_count() > 1:
        raise UserError("--by-stage samples on one device; run it in one process.")
    options, captions = sample_options(request, files.cascade), captions_of(request)
    images = batch_sampling.sample_by_stage(
        files, captions, seed=request.seed, options=options, batch_size=batch
    )
    record = results.describe(
        request,
        models={"path": name},
        labels=captions,
        prior=files.cascade.prior_name,
        options=dataclasses.asdict(options),
    )
    contexts = {stage.name: stage.entry.context(stage.config) for stage in files.cascade.stages}
    tokenizers = load.load_tokenizers(files.tokenizer_dirs)
    notes = caption_notes.notes(request, tokenizers, contexts=contexts)
    return Result(
        images=images,
        labels=tuple(captions),
        record=record,
        columns=columns_of(request),
        animate=request.animate,
        note="; ".join(notes),
    )


def captions_of(request: TextRequest) -> list[str]:
    """Returns the caption of every image."""
    return [caption for caption in request.captions for _ in range(request.num)]


def columns_of(request: TextRequest) -> int | None:
    """Returns the columns of a grid with a row for each caption.

    None for one caption, for one image per caption, and for more than `MAX_COLUMNS`.
    """
    rows = len(request.captions) > 1 and 1 < request.num <= MAX_COLUMNS
    return request.num if rows else None


def sample_options(request: TextRequest, cascade: Cascade) -> SampleOptions:
    """Returns the exported sampling settings with the changes of a request.

    Raises:
        UserError: a setting that this prior does not have, or a value that is not valid.
    """
    names = ("steps", "sampler", "threshold", "cap", "variance", "gamma")
    decoder = {name: getattr(request, name) for name in names}
    decoder["guidance_scale"] = request.guidance
    upsampling = batch_sampling.upsampler_sampling(cascade, **request.upsampling)
    names = ("steps", "sampler", "variance", "temperature", "top_k", "top_p", "dot_percentile")
    prior = {name: getattr(request, f"prior_{name}") for name in names}
    prior["guidance_scale"] = request.prior_guidance
    return batch_sampling.sample_options(
        cascade,
        prior=prior,
        decoder=decoder,
        num_candidates=request.candidates,
        condition=request.condition,
        best_of=request.best_of,
        upsamplers=upsampling.upsamplers,
        upsampler_level=upsampling.upsampler_level,
    )


def _guided(
    engine: InferenceEngine, request: TextRequest, captions: list[str], options: SampleOptions
) -> tuple[Any, np.ndarray]:
    """Samples z_img, then images guided by the loaded noise-aware CLIP or classifier.

    Raises:
        UserError: none is loaded, or the request has settings that do not work with guidance by it.
    """
    guide, cascade = engine.loaded.guide, engine.cascade
    name, scale = request.guide_scale
    if not isinstance(cascade.decoder, DecoderStageConfig):
        raise UserError(
            f"{name} is {scale:g}, which the {cascade.stage('decoder').name} of "
            "this run does not have; leave it out."
        )
    if guide is None or guide.scale != name:
        model = "noise-aware CLIP" if name == "clip_scale" else "classifier"
        raise UserError(
            f"{name} is {scale:g}, but no {model} is loaded; give its export with --guide=EXPORT."
        )
    if request.stepwise or request.best_of > 1:
        raise UserError(
            f"{name} excludes negative, guidance_schedule, previews and best_of; leave them out."
        )
    indices = range(len(captions))
    z_img = None
    if cascade.decoder.model.reads_z and not cascade.has("prior"):
        z_img = engine.text_embeddings(captions)
    elif cascade.decoder.model.reads_z:
        z_img = engine.sample_prior(captions, seed=request.seed, indices=indices, options=options)
    settings = {
        "guide": guide.config,
        "sampling": options.decoder,
        "upsampling": options.upsampling,
    }
    sample = engine.runner.compiled(guided_sampling.sample, *settings)
    settings["scale"] = jnp.float32(scale)  # one program for all scales
    keys = text_to_image.keys_for(request.seed, jnp.asarray(indices))
    inputs = (engine.tokens(captions), guide.targets(captions), z_img, keys)
    weights = engine.runner.place(guide.params)
    run = lambda batch: sample(engine.params, weights, *batch, **settings)  # noqa: E731
    return z_img, to_uint8(np.asarray(engine.runner.run(run, inputs, "sample")))


def _best_of_stepwise(
    engine: InferenceEngine, request: TextRequest, captions: list[str], options: SampleOptions
) -> tuple[Any, DecodedImages]:
    """Samples the best of `request.best_of` candidates per image; memory holds two at a time."""
    best = _stepwise(engine, request, captions, options, candidate=0)
    if request.best_of == 1:
        return best
    scores = np.asarray(engine.caption_scores(best[1].images, captions))
    for candidate in range(1, request.best_of):
        new = _stepwise(engine, request, captions, options, candidate=candidate)
        new_scores = np.asarray(engine.caption_scores(new[1].images, captions))
        best = _rows(new_scores > scores, new, best)
        scores = np.maximum(scores, new_scores)
    return best


def _rows(choice: np.ndarray, new: Any, old: Any) -> Any:
    """Returns the rows of `new` where `choice` is true and of `old` elsewhere, in every array."""
    select = lambda x, y: np.where(choice.reshape(-1, *(1,) * (x.ndim - 1)), x, y)  # noqa: E731
    return jax.tree.map(select, new, old)


def _stepwise(
    engine: InferenceEngine,
    request: TextRequest,
    captions: list[str],
    options: SampleOptions,
    *,
    candidate: int,
) -> tuple[Any, DecodedImages]:
    """Samples z_img, then base images, then runs the upsamplers."""
    sampling = options.decoder or engine.cascade.decoder.sampling
    guidance = guidance_schedule.parse(request.guidance_schedule, scale=sampling.guidance_scale)
    check_negative(request.negative, guidance)
    indices = list(range(len(captions)))
    address = {"seed": request.seed, "indices": indices, "candidate": candidate}
    z_img = engine.sample_prior(captions, options=options, **address)
    noise = engine.initial_noise(**address)
    sampling = dataclasses.replace(sampling, guidance_scale=1.0)  # `guidance` has it
    batch = DecodeBatch(
        latent=Latent(z_img, noise),
        captions=captions,
        **address,
        options=DecodeOptions(sampling, guidance, previews=request.previews),
        negative=None if request.negative is None else [request.negative] * len(captions),
        upsampling=options.upsampling,
    )
    return z_img, engine.decode(batch)


def _with_previews(decoded: DecodedImages, captions: list[str]) -> dict[str, Any]:
    """Returns panels: every image after its previews, all at one size."""
    previews, size = decoded.previews, decoded.images.shape[1]
    assert previews is not None
    count, labels, panels = previews.shape[1], [], []
    for image, stages, caption in zip(decoded.images, previews, captions, strict=True):
        for number, stage in enumerate(stages, start=1):
            large = PILImage.fromarray(stage).resize((size, size), PILImage.Resampling.NEAREST)
            panels.append(np.asarray(large))
            labels.append(f"after {100 * number // count} % of the steps")
        panels.append(image)
        labels.append(caption)
    return {
        "labels": labels,
        "panels": np.stack(panels),
        "columns": count + 1,
        "previews": previews,
    }
