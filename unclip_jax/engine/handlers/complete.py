"""Runs `CompleteRequest`: DALL-E samples a part of an image anew."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from unclip_jax.core.checks import UserError
from unclip_jax.core.picture import to_uint8
from unclip_jax.data import image_codec
from unclip_jax.engine import image_inputs
from unclip_jax.engine.handlers import results
from unclip_jax.engine.inference_engine import InferenceEngine
from unclip_jax.engine.requests import CompleteRequest
from unclip_jax.engine.result import Result
from unclip_jax.inference import batch_sampling, completion, text_to_image


def run(engine: InferenceEngine, request: CompleteRequest) -> Result:
    """Samples `num` completions of the image."""
    cascade = engine.cascade
    if not cascade.has("dalle"):
        raise UserError(
            "these models have no codes to complete; give a run with a dalle and a dvae, and "
            "--chain=dalle if it has other stages too."
        )
    grid = cascade.decoder.model.grid
    rows, columns = round(request.rows * grid), round(request.columns * grid)
    if not rows + columns > 0 or rows >= grid or columns >= grid:
        raise UserError(
            f"rows {request.rows:g} and columns {request.columns:g} keep {rows} rows and {columns} "
            f"columns of {grid} x {grid} codes; keep at least one, and leave at least one."
        )
    (image,) = image_inputs.decoded([request.image])
    place = jnp.arange(grid)
    keep = (place < rows)[:, None] | (place < columns)[None]
    pixels = image_codec.to_float(image_inputs.square(image, engine.base_size))
    count, caption = request.num, request.caption
    changes = {name: getattr(request, name) for name in ("temperature", "top_k", "top_p")}
    changes["guidance_scale"] = request.guidance
    sampling = batch_sampling.override(cascade.prior.sampling, changes, stage="prior")
    complete = engine.runner.compiled(completion.complete, "sampling", "paste")
    settings = {"sampling": sampling, "paste": request.paste}

    def sample(batch):
        tokens, keys, images, mask = batch
        return complete(engine.params, tokens, keys, images=images, keep=mask, **settings)

    inputs = (
        engine.tokens([caption] * count),
        text_to_image.keys_for(request.seed, jnp.arange(count)),
        jnp.repeat(jnp.asarray(pixels)[None], count, axis=0),
        jnp.repeat(keep[None], count, axis=0),
    )
    images = to_uint8(np.asarray(engine.runner.run(sample, inputs, "complete")))
    facts = {"kept_rows": rows, "kept_columns": columns, "sampling": dataclasses.asdict(sampling)}
    result = results.build(
        engine, request, images, labels=[caption] * count, inputs=[image], facts=facts
    )
    note = f"kept {rows} rows and {columns} columns of {grid} x {grid} codes"
    return dataclasses.replace(result, note="; ".join(filter(None, [note, result.note])))
