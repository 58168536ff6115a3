"""Decoding from any (z_img, x_T): the last step of every manipulation of images.

`text_to_image.sample` begins with fresh noise; here x_T is an argument, DDIM's eta may differ per
image, guidance may change along the chain and lead away from a negative condition, a part of the
image may be kept, the chain may be cut into parts, and predicted images may be returned on the way.
All of this works with every sampler and every kind of decoder.
"""

import dataclasses
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from unclip_jax.core import rng
from unclip_jax.core.types import Image, Keys, Params, PerExample
from unclip_jax.diffusion import inpainting, respace, samplers
from unclip_jax.diffusion.guidance_schedule import GuidanceSchedule
from unclip_jax.diffusion.samplers import ChainState, Ddim, Solver, StepTable
from unclip_jax.diffusion.schedule import Schedule
from unclip_jax.objectives import gaussian
from unclip_jax.objectives.gaussian import SamplingConfig
from unclip_jax.stages import decoder
from unclip_jax.stages.decoder import NULL, Condition, DecoderStageConfig, InpaintTarget


class BaseImages(NamedTuple):
    """Images in [-1, 1] at the decoder's size.

    Attributes:
        images: the samples.
        previews: the clean images predicted along the way, [p b h w c]; None if none were asked
            for.
    """

    images: Image
    previews: Float[Array, " p b h w c"] | None


@dataclasses.dataclass(frozen=True)
class DecodeOptions:
    """Settings of decoding; all but the guidance scale and eta are static in the compiled program.

    Attributes:
        sampling: grid, sampler and threshold; its `guidance_scale` is not used here.
        guidance: scale along the chain.
        previews: number of intermediate images to return.
        repeats: runs of each segment when inpainting (RePaint).
        jump: steps in a segment.
    """

    sampling: SamplingConfig
    guidance: GuidanceSchedule = GuidanceSchedule()
    previews: int = 0
    repeats: int = 10
    jump: int = 10


def faithful(steps: str = "ddim250") -> SamplingConfig:
    """Returns deterministic DDIM without clipping, the inverse of DDIM inversion (ADM, app. F)."""
    return SamplingConfig(steps=steps, sampler="ddim", eta=0.0, threshold="none")


def chain_of(cfg: DecoderStageConfig, steps: str) -> Schedule:
    """Returns the strided chain of a decoder."""
    return respace.strided(cfg.diffusion.chain(), steps=steps)


def fresh_noise(cfg: DecoderStageConfig, keys: Keys) -> Image:
    """Returns the x_T with which `text_to_image.sample` begins under these keys."""
    return gaussian.x_T(rng.fold_each(keys, "decoder"), decoder.image_shape(cfg))


def plan(
    cfg: DecoderStageConfig,
    options: DecodeOptions,
    *,
    eta: PerExample | None = None,
    inpaints: bool = False,
) -> StepTable:
    """Returns the evaluations of the decoder, which `samplers.parts` may cut into parts.

    Args:
        cfg: the trained decoder.
        options: the settings.
        eta: not None if DDIM with this eta replaces the sampler.
        inpaints: True if a part of the image is kept.

    Raises:
        UserError: the decoder does not support these settings.
    """
    _, table = _planned(cfg, options, eta)
    if not inpaints:
        return table
    return inpainting.resampled(table, repeats=options.repeats, jump=options.jump)


def initial_memory(
    cfg: DecoderStageConfig, options: DecodeOptions, x_T: Image, *, eta: PerExample | None = None
) -> Any:
    """Returns the solver's initial memory, for the first of several `decode_part`."""
    return _planned(cfg, options, eta)[0].start(x_T)


def decode(
    cfg: DecoderStageConfig,
    params: Params,
    x_T: Image,
    *,
    condition: Condition,
    keys: Keys,
    options: DecodeOptions,
    negative: Condition = NULL,
    eta: PerExample | None = None,
    inpaint: InpaintTarget | None = None,
) -> BaseImages:
    """Samples images from x_T; a pure function.

    With `fresh_noise(cfg, keys)` and the stage's own sampling these are the images of
    `stages.decoder.sample`.

    Args:
        cfg: the trained decoder.
        params: its (EMA) parameters.
        x_T: the noise.
        condition: condition of each image.
        keys: one key per image; used by stochastic steps.
        options: the settings.
        negative: the condition that guidance leads away from; NULL = both inputs dropped.
        eta: DDIM's eta, one per image; DDIM then replaces the sampler of the options.
        inpaint: images of which a part is kept.

    Raises:
        UserError: the condition or the options do not fit the decoder.
    """
    sampled = decode_part(
        cfg,
        params,
        x_T,
        table=plan(cfg, options, eta=eta, inpaints=inpaint is not None),
        condition=condition,
        keys=keys,
        options=options,
        negative=negative,
        eta=eta,
        inpaint=inpaint,
        previews=options.previews,
    )
    previews = finish(sampled.previews, inpaint) if options.previews else None
    return BaseImages(finish(sampled.x, inpaint), previews)


def decode_rows(
    cfg: DecoderStageConfig, params: Params, x_T: Image, *, options: DecodeOptions, **inputs: Any
) -> tuple[Image, Float[Array, " b p h w c"] | None]:
    """Samples as `decode`, with the previews of each image in its row."""
    decoded = decode(cfg, params, x_T, options=options, **inputs)
    previews = decoded.previews
    return decoded.images, None if previews is None else jnp.swapaxes(previews, 0, 1)


def decode_part(
    cfg: DecoderStageConfig,
    params: Params,
    x_t: Image,
    *,
    table: StepTable,
    condition: Condition,
    keys: Keys,
    options: DecodeOptions,
    negative: Condition = NULL,
    eta: PerExample | None = None,
    inpaint: InpaintTarget | None = None,
    memory: Any = None,
    previews: int = 1,
) -> ChainState:
    """Runs some rows of the step table of `decode`; `finish` follows the last row.

    Args:
        cfg: the trained decoder.
        params: its parameters.
        x_t: the samples before these rows.
        table: rows of `plan`.
        condition: as for `decode`.
        keys: as for `decode`.
        options: as for `decode`.
        negative: as for `decode`.
        eta: as for `decode`.
        inpaint: as for `decode`.
        memory: the solver's memory after the previous part; None at the beginning.
        previews: number of predicted clean images to return, the last one at the last row.
    """
    (solver, _), keys = _planned(cfg, options, eta), rng.fold_each(keys, "decoder")
    denoise = decoder.denoiser(
        cfg, params, condition, negative=negative, schedule=options.guidance, inpaint=inpaint
    )
    before = None
    if inpaint is not None:
        before = inpainting.keep_known(inpaint.image, inpaint.mask, solver=solver, keys=keys)
    return samplers.run(
        gaussian.thresholded(denoise, cfg.diffusion, options.sampling),
        x_t,
        table=table,
        solver=solver,
        keys=keys,
        memory=memory,
        before=before,
        previews=previews,
    )


def finish(images: Float[Array, "... h w c"], inpaint: InpaintTarget | None) -> Array:
    """Returns images in [-1, 1] with the known part of `inpaint`."""
    if inpaint is not None:
        images = inpainting.combine(images, inpaint.image, mask=inpaint.mask)
    return jnp.clip(images, -1.0, 1.0)


def _planned(
    cfg: DecoderStageConfig, options: DecodeOptions, eta: PerExample | None
) -> tuple[Solver, StepTable]:
    if eta is None:
        return gaussian.solver_and_plan(cfg.diffusion, options.sampling)
    cfg.diffusion.check_sampling(dataclasses.replace(options.sampling, sampler="ddim", eta=0.0))
    solver = Ddim(eta)
    return solver, solver.plan(cfg.diffusion.chain(), steps=options.sampling.steps)
