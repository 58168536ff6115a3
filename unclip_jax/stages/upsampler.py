"""Stage `upsampler`: 64 -> 256 and 256 -> 1024 by diffusion (unCLIP, section 2.1).

A convolutional U-Net on the noised image and the corrupted low-res image, trained on crops and run
at full size. One class serves both upsamplers; corruption (blur, BSR) is made by the data pipeline.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array

from unclip_jax.core import batch as batches
from unclip_jax.core import rng
from unclip_jax.core.checks import UserError, divisible
from unclip_jax.core.config import as_dict
from unclip_jax.core.types import Batch, Image, Key, Keys, LowRes, Metrics, Params, Steps
from unclip_jax.models.upsampler import Upsampler, UpsamplerConfig
from unclip_jax.stages import gaussian
from unclip_jax.stages.base import Stage, apply, one_example
from unclip_jax.stages.gaussian import DiffusionConfig, SamplingConfig


@dataclasses.dataclass(frozen=True)
class UpsamplerStageConfig:
    """An upsampler and how it is trained and sampled.

    Attributes:
        model: the convolutional U-Net; `model.unet.image_size` is the full target size.
        crop: side of the training crops in target pixels (a quarter of the target in the paper).
        diffusion: chain and target; eps without a learned variance.
        sampling: default sampling; 27 and 15 DDIM steps in the paper.
        residual: x_0 target only: the network predicts the difference to the enlarged low-res
            image, a miniature-only option that learns faster.
    """

    model: UpsamplerConfig
    crop: int
    diffusion: DiffusionConfig = DiffusionConfig()
    sampling: SamplingConfig = SamplingConfig(steps="fast27", sampler="ddim", threshold="static")
    residual: bool = False

    def __post_init__(self):
        size, factor = self.model.unet.image_size, self.model.factor
        divisible("upsampler.crop", self.crop, factor, "a crop must match whole low-res pixels.")
        divisible("upsampler image_size", size, factor, "the low-res image has whole pixels.")
        if self.crop > size:
            raise UserError(
                f"upsampler.crop is {self.crop}, larger than the image ({size}); make it smaller."
            )
        if self.residual and self.diffusion.target != "x_0":
            raise UserError(
                f"upsampler.residual needs diffusion.target 'x_0', not {self.diffusion.target!r}."
            )

    @property
    def low_res_size(self) -> int:
        """Side of the low-res image at full size."""
        return self.model.unet.image_size // self.model.factor


def make(cfg: UpsamplerStageConfig) -> Stage:
    """The stage record for an upsampler."""
    module, chain = Upsampler(cfg.model), cfg.diffusion.chain()
    spec = {
        "image": batches.image_field(cfg.crop),
        "low_res": batches.image_field(cfg.crop // cfg.model.factor),
    }

    def init(key: Key) -> Params:
        zero = one_example(spec)
        t = jnp.zeros(1, jnp.int32)
        return module.init(key, zero["image"], t, low_res=zero["low_res"])["params"]

    def loss(params: Params, batch: Batch, key: Key):
        noised = gaussian.draw(chain, batch["image"], key=rng.fold(key, "draw"))
        out = _apply(cfg, params, noised.x_t, noised.t, batch["low_res"], rng.fold(key, "dropout"))
        value = jnp.mean(gaussian.loss(cfg.diffusion, out, noised=noised))
        return value, {"loss": value}

    def evaluate(params: Params, batch: Batch, key: Key) -> Metrics:
        noised = gaussian.draw(chain, batch["image"], key=rng.fold(key, "draw"))
        out = _apply(cfg, params, noised.x_t, noised.t, batch["low_res"], None)
        return {"loss": jnp.mean(gaussian.loss(cfg.diffusion, out, noised=noised))}

    def preview(params: Params, batch: Batch, key: Key) -> Image:
        keys = rng.per_example(key, jnp.arange(batch["image"].shape[0]))
        images = sample(cfg, params, low_res=batch["low_res"], keys=keys)
        enlarged = jax.image.resize(batch["low_res"], images.shape, "nearest")
        return jnp.concatenate([batch["image"], enlarged, images], axis=2)

    return Stage(
        name="upsampler",
        batch_spec=spec,
        init=init,
        loss=loss,
        evaluate=evaluate,
        preview=preview,
        splittable=True,
        describe={
            "config": as_dict(cfg),
            "image_size": cfg.model.unet.image_size,
            "low_res_size": cfg.low_res_size,
        },
    )


def sample(
    cfg: UpsamplerStageConfig,
    params: Params,
    *,
    low_res: LowRes,
    keys: Keys,
    sampling: SamplingConfig | None = None,
) -> Image:
    """Enlarge clean low-res images in [-1, 1] by the stage's factor, at any size that fits.

    Args:
        cfg: the trained stage.
        params: its (EMA) parameters.
        low_res: images; no corruption is applied at inference (unCLIP, section 2.1).
        keys: one key per image.
        sampling: overrides `cfg.sampling`; guidance does not exist here.

    Returns:
        Images `factor` times larger.
    """
    _, height, width, channels = low_res.shape
    factor = cfg.model.factor

    def denoise(x_t, t):
        out = _apply(cfg, params, x_t, t, low_res, None)
        return gaussian.predict(cfg.diffusion, out, x_t=x_t, t=t)

    images = gaussian.run(
        denoise,
        shape=(height * factor, width * factor, channels),
        keys=keys,
        diffusion=cfg.diffusion,
        sampling=sampling or cfg.sampling,
    )
    return jnp.clip(images, -1.0, 1.0)


def _apply(
    cfg: UpsamplerStageConfig,
    params: Params,
    x_t: Image,
    t: Steps,
    low_res: LowRes,
    dropout_key: Key | None,
) -> Array:
    """Raw output; dropout is on when its key is given."""
    out = apply(
        Upsampler(cfg.model),
        params,
        x_t,
        t,
        low_res=low_res,
        deterministic=dropout_key is None,
        rngs={} if dropout_key is None else {"dropout": dropout_key},
    )
    if cfg.residual:
        out = out + jax.image.resize(low_res, x_t.shape, "bilinear")
    return out
