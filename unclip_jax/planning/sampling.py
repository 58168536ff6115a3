"""Every stage's sampling function with one signature, and the shapes that it takes.

To add a stage: one entry in DRAWN.
"""

from collections.abc import Callable
from typing import Any

import jax

from unclip_jax.core import batch as batches
from unclip_jax.core.batch import BatchSpec
from unclip_jax.core.checks import UserError
from unclip_jax.stages import decoder, prior, prior_ar, upsampler

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
    return {name: spec[name] for name in ("tokens", "token_mask", "z_txt")}


def _decoder(config: Any) -> BatchSpec:
    spec = decoder.make(config).batch_spec
    captions = {name: spec[name] for name in ("tokens", "token_mask")}
    return {**captions, "z_img": spec[config.condition]}  # either of CLIP's takes that place


def _upsampler(config: Any) -> BatchSpec:
    return {"low_res": batches.image_field(config.low_res_size)}


DRAWN: dict[str, tuple[Callable[..., Any], Callable[[Any], BatchSpec]]] = {
    "prior": (prior.sample, lambda config: _captions(prior.make(config).batch_spec)),
    "prior_ar": (prior_ar.sample, lambda config: _captions(prior_ar.make(config).batch_spec)),
    "decoder": (decoder.sample, _decoder),
    "upsampler": (upsampler.sample, _upsampler),
}
