"""Every stage's sampling function with one signature, and the shapes that it takes.

To add a stage: one entry in DRAWN.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import Array, Float

from unclip_jax.core import batch as batches
from unclip_jax.core.batch import BatchSpec
from unclip_jax.core.checks import UserError
from unclip_jax.core.types import Embedding, Image, Mask, Params
from unclip_jax.stages import decoder, prior, prior_ar, upsampler
from unclip_jax.stages.captions import ClipText

Draw = Callable[[Any, Any], Any]


def function(stage: str, config: Any, *, batch_size: int) -> tuple[Draw, dict[str, Any]]:
    """A stage's (params, inputs) -> samples, and its inputs as ShapeDtypeStructs.

    Raises:
        UserError: a stage that draws nothing.
    """
    if stage not in DRAWN:
        raise UserError(
            f"--what=sample does not apply to stage {stage!r}, which draws nothing; stages that "
            f"do: {', '.join(DRAWN)}."
        )
    sample, spec = DRAWN[stage]

    def draw(params: Any, inputs: dict[str, Any]) -> Any:
        return sample(config, params, **inputs)

    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), batch_size))
    return draw, {**batches.abstract(spec(config), batch_size), "keys": keys}


def _captions(spec: BatchSpec) -> BatchSpec:
    """What every prior is told, and CLIP's features where it reads them."""
    names = ("tokens", "token_mask", "z_txt", "text_seq")
    return {name: spec[name] for name in names if name in spec}


def _decoder(config: Any) -> BatchSpec:
    spec = decoder.make(config).batch_spec
    names = ["tokens", "token_mask"]
    names += ["z_txt", "text_seq"] if "text_seq" in spec else []
    told = {name: spec[name] for name in names}
    return {**told, "z_img": spec[config.condition]}  # either of CLIP's takes that place


def _draw_prior(
    config: Any, params: Params, *, z_txt: Embedding, token_mask: Mask, **inputs: Any
) -> Embedding:
    """A table is measured when training ends; the variance that it replaces costs as much."""
    sampling = config.sampling
    if sampling.needs_table:
        sampling = dataclasses.replace(sampling, variance="small")
    read = _clip_text(z_txt, inputs.pop("text_seq", None), token_mask)
    told = {"z_txt": z_txt, "token_mask": token_mask, **read}
    return prior.sample(config, params, **told, **inputs, sampling=sampling)


def _draw_decoder(config: Any, params: Params, *, token_mask: Mask, **inputs: Any) -> Image:
    read = _clip_text(inputs.pop("z_txt", None), inputs.pop("text_seq", None), token_mask)
    return decoder.sample(config, params, token_mask=token_mask, **read, **inputs)


def _clip_text(
    z_txt: Embedding | None, text_seq: Float[Array, " b l d"] | None, token_mask: Mask
) -> dict[str, ClipText]:
    """What CLIP says of captions, for stages that read it; the first as the empty one."""
    if text_seq is None or z_txt is None:
        return {}
    text = ClipText(z_txt, text_seq, token_mask)
    return {"text": text, "empty": jax.tree.map(lambda x: x[:1], text)}


def _upsampler(config: Any) -> BatchSpec:
    return {"low_res": batches.image_field(config.low_res_size)}


DRAWN: dict[str, tuple[Callable[..., Any], Callable[[Any], BatchSpec]]] = {
    "prior": (_draw_prior, lambda config: _captions(prior.make(config).batch_spec)),
    "prior_ar": (prior_ar.sample, lambda config: _captions(prior_ar.make(config).batch_spec)),
    "decoder": (_draw_decoder, _decoder),
    "upsampler": (upsampler.sample, _upsampler),
}
