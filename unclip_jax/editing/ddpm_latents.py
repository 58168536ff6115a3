"""Edits that preserve an image's composition: z_img with the noise of every step instead of x_T.

`diffusion.ddpm_inversion` has the mathematics. Without an edit, decoding returns the image
itself for any guidance and caption, if encoding used the same.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from unclip_jax.core import rng
from unclip_jax.core.types import Image, Keys, Params
from unclip_jax.diffusion import ddpm_inversion
from unclip_jax.diffusion.ddpm_inversion import NoiseMaps
from unclip_jax.diffusion.guidance_schedule import GuidanceSchedule
from unclip_jax.diffusion.samplers import ChainState, Ddim, StepTable
from unclip_jax.stages import decoder
from unclip_jax.stages.decoder import NULL, Condition, DecoderStageConfig


@dataclasses.dataclass(frozen=True)
class MapOptions:
    """Settings of encoding and decoding.

    Attributes:
        steps: grid of the decoder.
        eta: DDIM's eta.
        strength: fraction of the chain that is run; what earlier steps determine cannot change.
        guidance: scale along the chain.
    """

    steps: str = "ddim250"
    eta: float = 0.5
    strength: float = 0.7
    guidance: GuidanceSchedule = GuidanceSchedule()

    def arguments(self) -> dict[str, Any]:
        """Returns the arguments common to `encode` and `decode_part`, with eta as an array."""
        return {"eta": jnp.float32(self.eta), "guidance": self.guidance}


def plan(cfg: DecoderStageConfig, options: MapOptions) -> StepTable:
    """Returns the rows of the step table that are run, most noise first.

    Raises:
        UserError: a strength outside [0, 1], a grid that is not valid, or a distilled decoder.
    """
    cfg.diffusion.check_inversion()
    table = Ddim(options.eta).plan(cfg.diffusion.chain(), steps=options.steps)
    return ddpm_inversion.last_steps(table, strength=options.strength)


def encode(
    cfg: DecoderStageConfig,
    params: Params,
    images: Image,
    *,
    table: StepTable,
    eta: Float[Array, ""],
    condition: Condition,
    keys: Keys,
    guidance: GuidanceSchedule,
    negative: Condition = NULL,
) -> NoiseMaps:
    """Finds the noise maps of images under their own z_img.

    Args:
        cfg: the trained decoder.
        params: its (EMA) parameters.
        images: in [-1, 1] at the decoder's size.
        table: result of `plan`.
        eta: DDIM's eta.
        condition: z_img of the images, and their captions.
        keys: one per image.
        guidance: scale along the chain; the same for `decode_part`, as eta is.
        negative: the condition that guidance leads away from.
    """
    denoise = decoder.denoiser(cfg, params, condition, negative=negative, schedule=guidance)
    keys = rng.fold_each(keys, "decoder")
    return ddpm_inversion.encode(denoise, images, table=table, solver=Ddim(eta), keys=keys)


def decode_part(
    cfg: DecoderStageConfig,
    params: Params,
    noise: NoiseMaps,
    *,
    table: StepTable,
    eta: Float[Array, ""],
    condition: Condition,
    guidance: GuidanceSchedule,
    negative: Condition = NULL,
) -> ChainState:
    """Runs some rows or all; the preview is the clean image predicted at the last row.

    Args:
        cfg: the trained decoder.
        params: its parameters.
        noise: x_t, and the maps of these rows.
        table: these rows, a part of `plan`.
        eta: as in `encode`.
        condition: condition of the result.
        guidance: as in `encode`.
        negative: as in `encode`.
    """
    denoise = decoder.denoiser(cfg, params, condition, negative=negative, schedule=guidance)
    return ddpm_inversion.decode(denoise, noise, table=table, solver=Ddim(eta))
