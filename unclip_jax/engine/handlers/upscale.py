"""Runs `UpscaleRequest`: enlarges any image by the upsamplers."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from unclip_jax.core.checks import UserError
from unclip_jax.core.picture import to_uint8
from unclip_jax.data import image_codec
from unclip_jax.engine import image_inputs
from unclip_jax.engine.handlers import results
from unclip_jax.engine.image_inputs import InputImage
from unclip_jax.engine.inference_engine import InferenceEngine
from unclip_jax.engine.requests import UpscaleRequest
from unclip_jax.engine.result import Result
from unclip_jax.inference import batch_sampling, text_to_image


def run(engine: InferenceEngine, request: UpscaleRequest) -> Result:
    """Shows each image as the upsamplers read it, enlarged without a model, beside their output."""
    inputs = image_inputs.decoded(request.images)
    start, size = first_upsampler(engine, request, inputs=inputs)
    low = np.stack([image_inputs.square(image, size) for image in inputs])
    keys = text_to_image.keys_for(request.seed, jnp.arange(len(low)))
    captions = upsampler_captions(engine, request, start=start)
    options = batch_sampling.upsampler_sampling(engine.cascade, **request.upsampling, start=start)
    pixels = jnp.asarray(image_codec.to_float(low))
    large = engine.upsample(pixels, keys, start=start, captions=captions, options=options)
    images = to_uint8(np.asarray(large))
    factor = images.shape[1] // size
    before = low.repeat(factor, axis=1).repeat(factor, axis=2)
    labels = [
        label
        for image in inputs
        for label in (f"{image.name} at {size} px", f"at {images.shape[1]} px")
    ]
    return results.build(
        engine,
        request,
        images,
        labels=labels,
        inputs=inputs,
        facts={"from_size": size, "first_upsampler": start},
        panels=np.stack([before, images], axis=1).reshape(-1, *images.shape[1:]),
        columns=2,
    )


def first_upsampler(
    engine: InferenceEngine, request: UpscaleRequest, *, inputs: Sequence[InputImage]
) -> tuple[int, int]:
    """Returns the number of the first upsampler, and the side of the images that it reads.

    Raises:
        UserError: no upsampler reads `from_size`, or there is no upsampler.
    """
    sizes = [stage.low_res_size for stage in engine.cascade.upsamplers]
    if not sizes:
        raise UserError(
            "these models have no upsampler, which upscale needs; train one with `python -m "
            "unclip_jax.train --config=experiments/upsampler_256.py` into the run directory."
        )
    if request.from_size is not None:
        if request.from_size not in sizes:
            raise UserError(
                f"from_size is {request.from_size}, but these upsamplers take "
                f"{' and '.join(map(str, sizes))} px; give one of them."
            )
        return sizes.index(request.from_size), request.from_size
    short = min(min(image.pixels.shape[:2]) for image in inputs)
    fitting = [size for size in sizes if size <= short] or sizes[:1]
    return sizes.index(fitting[-1]), fitting[-1]


def upsampler_captions(
    engine: InferenceEngine, request: UpscaleRequest, *, start: int
) -> list[str] | None:
    """Returns the caption of every image; None if no upsampler reads captions.

    Raises:
        UserError: a caption that no upsampler reads, or a missing caption that one does.
    """
    reads = any(cfg.model.text is not None for cfg in engine.cascade.upsamplers[start:])
    if reads == (request.caption is not None):
        return None if request.caption is None else [request.caption] * len(request.images)
    if reads:
        raise UserError(
            "caption is missing, but these upsamplers read captions (as Imagen's do); give one."
        )
    raise UserError(
        f"caption is {request.caption!r}, but these upsamplers read images alone; leave it out."
    )
