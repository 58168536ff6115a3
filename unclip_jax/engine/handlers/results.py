"""Builds results with their provenance: the request, the models and the inputs."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from unclip_jax.core.config import as_dict
from unclip_jax.editing import upsampler_latents
from unclip_jax.engine import caption_notes, request_fields
from unclip_jax.engine.image_inputs import EncodedImage, InputImage
from unclip_jax.engine.inference_engine import InferenceEngine
from unclip_jax.engine.request_base import Request
from unclip_jax.engine.result import Result
from unclip_jax.version import __version__


def build(
    engine: InferenceEngine,
    request: Request,
    images: np.ndarray,
    *,
    labels: Sequence[str],
    inputs: Sequence[InputImage | EncodedImage] = (),
    facts: dict[str, Any] | None = None,
    **display: Any,
) -> Result:
    """Returns the result of a request with its provenance.

    Args:
        engine: the models.
        request: the request.
        images: uint8, in order.
        labels: one per panel.
        inputs: the images that were read, as they were used.
        facts: further entries of the provenance by name.
        display: further fields of `Result`.
    """
    record = describe(
        request,
        models={"path": engine.name, **engine.describe()},
        labels=labels,
        prior=engine.cascade.prior_name,
        inputs=[_input(each) for each in inputs],
        **(facts or {}),
    )
    contexts = {stage.name: stage.entry.context(stage.config) for stage in engine.cascade.stages}
    notes = caption_notes.notes(request, engine.tokenizers, contexts=contexts)
    if getattr(request, "inverts_details", False):
        left_out = upsampler_latents.left_out(engine.cascade)
        record["details_left_out"] = left_out
        notes += [left_out] if left_out else []
    note = "; ".join(notes)
    if "animate" in record["request"]:
        display["animate"] = record["request"]["animate"]
    return Result(images=images, labels=tuple(labels), record=record, note=note, **display)


def describe(
    request: Request, *, models: dict[str, Any], labels: Sequence[str], **facts: Any
) -> dict[str, Any]:
    """Returns the provenance of a result, from which `sample repeat` can run the request again."""
    return {
        "command": request.name,
        "request": request_fields.plain(request),
        "code_version": __version__,
        "models": models,
        "labels": list(labels),
        **facts,
    }


def _input(image: InputImage | EncodedImage) -> dict[str, Any]:
    if isinstance(image, InputImage):
        return {"name": image.name, "sha256": image.sha256}
    return as_dict(image.origin)
