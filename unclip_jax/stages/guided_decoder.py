"""Samples a decoder guided by gradients, such as those of a noise-aware CLIP or a classifier.

The gradient of exp(logit scale) * cosine is that of log p(c | x_t): at the optimum of the
contrastive loss those logits are log p(x, c) / (p(x) p(c)) up to a term of the caption alone
(GLIDE, arXiv 2112.10741, section 2.4). So scale 1 means the same as for a classifier. It can be
combined with classifier-free guidance, whose scale is `sampling.guidance_scale`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Int

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
from unclip_jax.models.application import apply
from unclip_jax.models.clip import Clip, logit_scale
from unclip_jax.objectives import gaussian
from unclip_jax.objectives.gaussian import DiffusionConfig, SamplingConfig
from unclip_jax.stages import classifier, decoder
from unclip_jax.stages.classifier import ClassifierStageConfig
from unclip_jax.stages.clip import ClipStageConfig
from unclip_jax.stages.decoder import Condition, DecoderStageConfig

FORMS = ("mean", "score")


@dataclasses.dataclass(frozen=True)
class Guide:
    """A gradient, its scale and its form.

    Attributes:
        gradient: gradient of log p(y | x_t).
        scale: one for all examples or one per example; 0 = off.
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
        cfg: config of the CLIP.
        params: its parameters.
        z_txt: its embeddings of the captions, one per image.
        diffusion: diffusion of the decoder.
        image_size: image size of the decoder.

    Raises:
        UserError: the CLIP was trained on clean images, along another chain, or at another size.
    """
    if cfg.diffusion is None:
        raise UserError(
            "this CLIP was trained on clean images, whose gradients mislead at every noise level; "
            "train one on noised images (config.model.diffusion of stage clip)."
        )
    own = {"diffusion": cfg.diffusion, "image_size": cfg.model.image_size}
    _check_fit("noise-aware CLIP", own, diffusion=diffusion, image_size=image_size)
    z_txt, scale = unit(z_txt), logit_scale(params["log_scale"])

    def log_probability(x_t: Image, t: Steps) -> PerExample:
        z_img = apply(Clip(cfg.model), params, x_t, t, method=Clip.encode_image)
        return scale * jnp.sum(unit(z_img) * z_txt, axis=-1)

    return gradient_of(log_probability)


def class_gradient(
    cfg: ClassifierStageConfig,
    params: Params,
    labels: Int[Array, " b"],
    *,
    diffusion: DiffusionConfig,
    image_size: int,
) -> Gradient:
    """Returns the gradient of a classifier's log-probability of classes.

    Args:
        cfg: config of the classifier.
        params: its parameters.
        labels: class index of each image.
        diffusion: diffusion of the decoder.
        image_size: image size of the decoder.

    Raises:
        UserError: the classifier was trained along another chain, or at another size.
    """
    own = {"diffusion": cfg.diffusion, "image_size": cfg.model.unet.image_size}
    _check_fit("classifier", own, diffusion=diffusion, image_size=image_size)
    return gradient_of(classifier.log_probability(cfg, params, labels))


def _check_fit(
    name: str, own: Mapping[str, Any], *, diffusion: DiffusionConfig, image_size: int
) -> None:
    """Rejects a guide whose chain or size differs from the decoder's."""
    for field in ("schedule", "num_timesteps"):
        mine, other = getattr(own["diffusion"], field), getattr(diffusion, field)
        if mine != other:
            raise UserError(
                f"the {name} was trained with diffusion.{field} {mine}, the decoder with {other}; "
                "train the former on the decoder's chain."
            )
    if own["image_size"] != image_size:
        raise UserError(
            f"the {name} reads images of {own['image_size']} pixels, the decoder generates "
            f"{image_size}; train the former at the decoder's size."
        )


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
    solver, rows = gaussian.solver_and_plan(cfg.diffusion, sampling)
    if guide.form == "mean":
        solver = ShiftedMean(solver, guide.gradient, guide.scale)
    else:
        chain = cfg.diffusion.chain()
        denoise = shifted(denoise, guide.gradient, schedule=chain, scale=guide.scale)
    x_T = gaussian.x_T(keys, decoder.image_shape(cfg))
    images = samplers.run(denoise, x_T, table=rows, solver=solver, keys=keys).x
    return jnp.clip(images, -1.0, 1.0)
