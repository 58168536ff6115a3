"""The decoder run from any (z_img, x_T): what every manipulation of images ends in.

`text_to_image.sample` draws fresh noise and nothing else; here the noise is given, DDIM's eta may
differ per image, guidance may change along the chain and lead away from a negative caption, a part
of the picture may be kept, and the picture may be looked at on the way.
"""

import dataclasses
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from unclip_jax.core import rng
from unclip_jax.core.checks import UserError
from unclip_jax.core.types import Embedding, Image, Keys, Mask, Params, PerExample, Tokens
from unclip_jax.diffusion import guidance, inpainting, respace, samplers, trajectory
from unclip_jax.diffusion.guidance import Denoiser
from unclip_jax.diffusion.guidance_schedule import GuidanceSchedule
from unclip_jax.diffusion.schedule import Schedule
from unclip_jax.models.decoder import Decoder, known_part
from unclip_jax.stages import gaussian
from unclip_jax.stages.base import apply
from unclip_jax.stages.decoder import DecoderStageConfig
from unclip_jax.stages.gaussian import SamplingConfig
from unclip_jax.stages.prior import unit


class Condition(NamedTuple):
    """What the decoder is told: z_img of any norm, and a caption that may be all padding."""

    z_img: Embedding
    tokens: Tokens
    token_mask: Mask


class Hole(NamedTuple):
    """An image of which a part is kept: 1 = known, 0 = to be drawn."""

    known: Image
    mask: Float[Array, " b h w 1"]


class Decoded(NamedTuple):
    """Images in [-1, 1] at the decoder's size.

    Attributes:
        images: what was drawn.
        previews: the clean image predicted along the way, [p b h w c]; None when not asked for.
    """

    images: Image
    previews: Float[Array, " p b h w c"] | None


@dataclasses.dataclass(frozen=True)
class DecodeOptions:
    """How to decode; hashable, so that one value is one compiled program.

    Attributes:
        sampling: grid, rule and threshold; its `guidance_scale` is not used here.
        guidance: scale along the chain.
        previews: intermediate images to return, 0 = none.
        repeats: how often a stretch is walked when a hole is filled (RePaint).
        jump: steps in a stretch.
    """

    sampling: SamplingConfig
    guidance: GuidanceSchedule = GuidanceSchedule()
    previews: int = 0
    repeats: int = 10
    jump: int = 10


def faithful(steps: str = "ddim250") -> SamplingConfig:
    """Sampling that undoes an inversion: deterministic, unguided, nothing clipped (ADM, app. F)."""
    return SamplingConfig(steps=steps, sampler="ddim", eta=0.0, threshold="none")


def chain_of(cfg: DecoderStageConfig, steps: str) -> Schedule:
    """The strided chain of a decoder."""
    return respace.strided(cfg.diffusion.chain(), steps=steps)


def steps_of(cfg: DecoderStageConfig, steps: str) -> samplers.StepInputs:
    """The numbers of every step of `chain_of`, most noise first."""
    return samplers.step_inputs(chain_of(cfg, steps))


def in_parts(options: DecodeOptions, *, hole: object = None) -> bool:
    """Whether `decode_part` can take the place of `decode`: one walk, by a rule without memory."""
    plain = hole is None and not options.previews
    return plain and not isinstance(options.sampling.rule(), samplers.Solver)


def fresh_noise(cfg: DecoderStageConfig, keys: Keys) -> Image:
    """The x_T with which `text_to_image.sample` begins under these keys."""
    unet = cfg.model.unet
    shape = (unet.image_size, unet.image_size, unet.in_channels)
    return rng.normal_each(rng.fold_each(rng.fold_each(keys, "decoder"), "x_T"), shape)


def decode(
    cfg: DecoderStageConfig,
    params: Params,
    x_T: Image,
    *,
    condition: Condition,
    keys: Keys,
    options: DecodeOptions,
    negative: Condition | None = None,
    eta: PerExample | None = None,
    hole: Hole | None = None,
) -> Decoded:
    """Draw images from given noise; pure, one program per `options`.

    With `fresh_noise(cfg, keys)` and the stage's own sampling this is what `decoder.sample` draws.

    Args:
        cfg: the trained decoder.
        params: its (EMA) parameters.
        x_T: the noise.
        condition: what to draw.
        keys: one key per image; used where a step is stochastic.
        options: see there.
        negative: what guidance leads away from; None = from nothing (both conditions dropped).
        eta: DDIM's noise share, one per image; overrides the rule of `options.sampling`.
        hole: keep a part of an image.

    Raises:
        UserError: previews of a picture with a hole, which is walked more than once; or either with
            a sampler that remembers steps.
    """
    if hole is not None and options.previews:
        raise UserError(
            f"{options.previews} previews were asked for while filling a hole; ask for none."
        )
    denoise = _denoiser(cfg, params, condition, negative, options, hole)
    looked_into = hole is not None or options.previews > 0
    rule = options.sampling.rule() if eta is None and not looked_into else None
    walk: dict[str, Any] = {
        "schedule": chain_of(cfg, options.sampling.steps),
        "step": rule or _rule(options.sampling, eta),
        "keys": rng.fold_each(keys, "decoder"),
    }
    previews = None
    if hole is not None:
        walk |= {"repeats": options.repeats, "jump": options.jump}
        mask = jnp.broadcast_to(hole.mask, x_T.shape)
        images = inpainting.inpaint(denoise, x_T, known=hole.known, mask=mask, **walk)
    elif options.previews:
        images, previews = trajectory.sample_with_previews(
            denoise, x_T, **walk, count=options.previews
        )
        previews = jnp.clip(previews, -1.0, 1.0)
    else:
        images = samplers.sample(denoise, x_T, **walk)
    return Decoded(jnp.clip(images, -1.0, 1.0), previews)


def decode_part(
    cfg: DecoderStageConfig,
    params: Params,
    x_t: Image,
    *,
    part: samplers.StepInputs,
    condition: Condition,
    keys: Keys,
    options: DecodeOptions,
    negative: Condition | None = None,
    eta: PerExample | None = None,
) -> tuple[Image, Image]:
    """Some steps of `decode`: x_t after them, and the clean image predicted at the last.

    Args:
        cfg: the trained decoder.
        params: its parameters.
        x_t: where the steps begin.
        part: one of `trajectory.parts` of the chain.
        condition: as for `decode`, like all that follows.
        keys: see there.
        options: see there.
        negative: see there.
        eta: see there.
    """
    return trajectory.walk(
        _denoiser(cfg, params, condition, negative, options),
        x_t,
        inputs=part,
        step=_rule(options.sampling, eta),
        keys=rng.fold_each(keys, "decoder"),
    )


def denoiser(
    cfg: DecoderStageConfig,
    params: Params,
    *,
    condition: Condition,
    negative: Condition | None = None,
    schedule: GuidanceSchedule = GuidanceSchedule(),
    hole: Hole | None = None,
) -> Denoiser:
    """The conditional denoiser, guided along the chain; captions are encoded once.

    A decoder that was trained to inpaint sees what is known, in both branches of guidance.

    Raises:
        UserError: the decoder reads CLIP's token features, which are not known here.
    """
    if cfg.model.caption == "clip_sequence":
        raise UserError(
            "a decoder that reads CLIP's token features (Karlo's kind) cannot be inverted, edited "
            "with or looked into yet; draw captions with `python -m unclip_jax.sample`, without "
            "previews, negative captions or guidance schedules."
        )
    module, table = Decoder(cfg.model), schedule.table(cfg.diffusion.num_timesteps)
    given = condition._replace(z_img=cfg.scale * unit(condition.z_img))
    keep = jnp.ones(given.z_img.shape[0], bool)
    if not schedule.off:
        other = given if negative is None else negative
        other = other._replace(z_img=cfg.scale * unit(other.z_img))
        given = Condition(*(jnp.concatenate(pair) for pair in zip(given, other, strict=True)))
        keep = jnp.concatenate([keep, keep if negative is not None else ~keep])
    text = apply(
        module,
        params,
        given.tokens,
        given.token_mask,
        keep_text=keep,
        method=Decoder.encode_text,
    )

    seen = {}
    if hole is not None and cfg.model.inpaints:
        part = known_part(hole.known, jnp.broadcast_to(hole.mask, (*hole.known.shape[:3], 1)))
        seen["known"] = part if schedule.off else jnp.concatenate([part, part])

    def predict(x_t: Image, t: Array):
        inputs = {"z_img": given.z_img, "text": text, "keep_z": keep, **seen}
        out = apply(module, params, x_t, t, **inputs, method=Decoder.denoise)
        return gaussian.predict(cfg.diffusion, out, x_t=x_t, t=t)

    if schedule.off:
        return predict

    def guided(x_t: Image, t: Array):
        scale = jnp.asarray(table, jnp.float32)[t]
        return guidance.guided(predict, scale=scale)(x_t, t)

    return guided


def _denoiser(
    cfg: DecoderStageConfig,
    params: Params,
    condition: Condition,
    negative: Condition | None,
    options: DecodeOptions,
    hole: Hole | None = None,
) -> Denoiser:
    """Guided and thresholded as the options say."""
    told = {"condition": condition, "negative": negative, "hole": hole}
    plain = denoiser(cfg, params, **told, schedule=options.guidance)
    return gaussian.thresholded(plain, cfg.diffusion, options.sampling)


def _rule(sampling: SamplingConfig, eta: PerExample | None) -> samplers.StepRule:
    """A rule that knows nothing but its step.

    Raises:
        UserError: the sampler remembers earlier steps.
    """
    if eta is not None:
        return samplers.Ddim(eta)
    rule = sampling.rule()
    if isinstance(rule, samplers.Solver):
        raise UserError(
            f"the sampler {sampling.sampler!r} cannot be looked into on the way or fill a hole; "
            "use 'ddim' or 'ancestral'."
        )
    return rule
