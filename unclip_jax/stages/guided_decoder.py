"""Sampling of a decoder guided by gradients: of a noise-aware CLIP, or of any log-probability.

The gradient of exp(logit scale) * cosine is that of log p(c | x_t): at the optimum of the
contrastive loss those logits are log p(x, c) / (p(x) p(c)) up to a term of the caption alone
(GLIDE, arXiv 2112.10741, section 2.4). So scale 1 means what it means for a classifier. May be
combined with classifier-free guidance, whose scale is `sampling.guidance_scale`.
"""

import dataclasses

import jax.numpy as jnp

from unclip_jax.core.arrays import unit
from unclip_jax.core.checks import UserError, one_of
from unclip_jax.core.types import Embedding, Image, Keys, Params, PerExample, Steps
from unclip_jax.diffusion import samplers
from unclip_jax.diffusion.gradient_guidance import (
    Gradient,
    Scale,
    ShiftedMean,
    gradient_of,
    shifted,
)
from unclip_jax.diffusion.guidance_schedule import GuidanceSchedule
from unclip_jax.models.clip import Clip, logit_scale
from unclip_jax.stages import decoder, gaussian
from unclip_jax.stages.base import apply
from unclip_jax.stages.clip import ClipStageConfig
from unclip_jax.stages.decoder import Condition, DecoderStageConfig
from unclip_jax.stages.gaussian import DiffusionConfig, SamplingConfig

FORMS = ("mean", "score")


@dataclasses.dataclass(frozen=True)
class Guide:
    """A gradient and how it acts.

    Attributes:
        gradient: of log p(y | x_t).
        scale: one for all or one per example; 0 = off.
        form: "mean" (ADM's algorithm 1, ancestral sampling alone) or "score" (algorithm 2).
    """

    gradient: Gradient
    scale: Scale
    form: str = "score"

    def __post_init__(self):
        one_of("form of gradient guidance", self.form, FORMS)


def clip_gradient(
    cfg: ClipStageConfig,
    params: Params,
    z_txt: Embedding,
    *,
    diffusion: DiffusionConfig,
    image_size: int,
) -> Gradient:
    """Returns the gradient of a noise-aware CLIP's score of captions.

    Args:
        cfg: of the CLIP.
        params: its parameters.
        z_txt: its embeddings of the captions, one per image.
        diffusion: of the decoder.
        image_size: of the decoder.

    Raises:
        UserError: the CLIP was trained on clean images, along another chain, or at another size.
    """
    if cfg.diffusion is None:
        raise UserError(
            "this CLIP was trained on clean images, whose gradients mislead at every noise level; "
            "train one on noised images (config.model.diffusion of stage clip)."
        )
    for name in ("schedule", "num_timesteps"):
        own, other = getattr(cfg.diffusion, name), getattr(diffusion, name)
        if own != other:
            raise UserError(
                f"the noise-aware CLIP was trained with diffusion.{name} {own}, the decoder with "
                f"{other}; train the CLIP on the decoder's chain."
            )
    if cfg.model.image_size != image_size:
        raise UserError(
            f"the noise-aware CLIP reads images of {cfg.model.image_size} pixels, the decoder "
            f"makes {image_size}; train the CLIP at the decoder's size."
        )
    z_txt, scale = unit(z_txt), logit_scale(params["log_scale"])

    def log_probability(x_t: Image, t: Steps) -> PerExample:
        z_img = apply(Clip(cfg.model), params, x_t, t, method=Clip.encode_image)
        return scale * jnp.sum(unit(z_img) * z_txt, axis=-1)

    return gradient_of(log_probability)


def sample(
    cfg: DecoderStageConfig,
    params: Params,
    condition: Condition,
    *,
    keys: Keys,
    guide: Guide,
    sampling: SamplingConfig | None = None,
) -> Image:
    """Samples images in [-1, 1] with guidance by a gradient; otherwise as `decoder.sample`.

    Raises:
        UserError: the form "mean" without ancestral sampling, or as `decoder.sample`.
    """
    sampling = sampling or cfg.sampling
    schedule = GuidanceSchedule(sampling.guidance_scale)
    denoise = decoder.denoiser(cfg, params, condition, schedule=schedule)
    denoise = gaussian.thresholded(denoise, cfg.diffusion, sampling)
    solver, rows = gaussian.planned(cfg.diffusion, sampling)
    if guide.form == "mean":
        solver = ShiftedMean(solver, guide.gradient, guide.scale)
    else:
        chain = cfg.diffusion.chain()
        denoise = shifted(denoise, guide.gradient, schedule=chain, scale=guide.scale)
    x_T = gaussian.x_T(keys, decoder.image_shape(cfg))
    images = samplers.run(denoise, x_T, table=rows, solver=solver, keys=keys).x
    return jnp.clip(images, -1.0, 1.0)
