"""Stage `text_base`: small images from captions alone, by guided diffusion (Imagen).

The base model of Saharia et al. 2022 (arXiv 2205.11487, sections 2.1 and 2.5): a U-Net that reads
the features of a frozen text encoder; there is no CLIP and no prior. Captions are dropped from 10 %
of the examples by zeroing their features (section 4.1).
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from unclip_jax.backbones.unet_plan import plan
from unclip_jax.conditioning import captions, text_features
from unclip_jax.conditioning.captions import EncodedCaptions, TokenFeatures
from unclip_jax.core import batch as batches
from unclip_jax.core import rng
from unclip_jax.core.checks import UserError, in_range
from unclip_jax.core.config import as_dict
from unclip_jax.core.stage import Stage
from unclip_jax.core.types import Batch, Image, Key, Keys, Metrics, Params, Scale, Steps
from unclip_jax.diffusion import guidance
from unclip_jax.diffusion.process import Prediction
from unclip_jax.models.application import apply, one_example
from unclip_jax.models.text_base import TextBase, TextBaseConfig
from unclip_jax.objectives import gaussian
from unclip_jax.objectives.gaussian import DiffusionConfig, SamplingConfig
from unclip_jax.stages.entry import StageEntry


@dataclasses.dataclass(frozen=True)
class TextBaseStageConfig:
    """A base model and the settings of its training and sampling.

    Attributes:
        model: U-Net and the pathway of the caption.
        diffusion: chain and target; eps without a learned variance in the paper.
        sampling: default sampling.
        drop_text: fraction of examples whose caption is dropped (10 %).
        empty_captions: fraction of the training captions that were replaced by the empty one, where
            `text.null` is "empty"; set by training (`config.data.empty_captions`), None after a
            conversion.
    """

    model: TextBaseConfig
    diffusion: DiffusionConfig = DiffusionConfig()
    sampling: SamplingConfig = SamplingConfig(steps="256", threshold="dynamic")
    drop_text: float = 0.1
    empty_captions: float | None = None

    def __post_init__(self):
        in_range(text_features.DROP, self.drop_text, 0.0, 1.0)
        text_features.check_drops(self.model.text, self.drop_text)
        self.check_guidance(self.sampling)
        unet = self.model.unet
        plan(unet)  # rejects an image that its levels cannot halve
        text_features.check_text_path(
            self.model.text, attention=bool(unet.attention_at), norm=unet.context_norm
        )
        expected = unet.in_channels * (2 if self.diffusion.learned_variance else 1)
        if unet.out_channels != expected:
            raise UserError(
                f"config.model.model.unet.out_channels is {unet.out_channels}; "
                f"diffusion.learned_variance={self.diffusion.learned_variance} needs {expected}."
            )

    def check_guidance(self, sampling: SamplingConfig) -> None:
        """Rejects guidance without drops.

        Raises:
            UserError: the scale is not 1, and `drop_text` or `empty_captions` is 0.
        """
        self.diffusion.check_sampling(sampling)
        shares = {"drop": self.drop_text, "empty": self.empty_captions}
        text_features.check_guidance(self.model.text, sampling.guidance_scale, **shares)


def make(cfg: TextBaseStageConfig) -> Stage:
    """Builds the `Stage` of the base model."""
    module, chain = TextBase(cfg.model), cfg.diffusion.chain()
    text = cfg.model.text
    spec = {"image": batches.image_field(cfg.model.unet.image_size), **text_features.fields(text)}

    def init(key: Key) -> Params:
        zero = one_example(spec)
        t = jnp.zeros(1, jnp.int32)
        return module.init(key, zero["image"], t, **text_features.inputs(zero))["params"]

    def error(params: Params, batch: Batch, noised: gaussian.NoisedBatch, **options: Any):
        conditions = {**text_features.inputs(batch), **options}
        out = apply(module, params, noised.x_t, noised.t, **conditions)
        return jnp.mean(gaussian.loss(cfg.diffusion, out, noised=noised))

    def loss(params: Params, batch: Batch, key: Key):
        noised = gaussian.noise_batch(chain, batch["image"], key=rng.fold(key, "draw"))
        count = len(batch["image"])
        drops = {"batch_size": count, "drop": cfg.drop_text}
        keep = text_features.keep_masks(text, rng.fold(key, "drop_text"), **drops)
        dropout = {"dropout": rng.fold(key, "dropout")}
        value = error(params, batch, noised, **keep, deterministic=False, rngs=dropout)
        return value, {"loss": value}

    def evaluate(params: Params, batch: Batch, key: Key) -> Metrics:
        """Returns the loss with the right captions, those of other examples, and none."""
        noised = gaussian.noise_batch(chain, batch["image"], key=rng.fold(key, "draw"))
        metrics = {
            "loss": error(params, batch, noised),
            "loss_wrong_text": error(params, text_features.swapped(batch), noised),
        }
        if text.null == "zero" and cfg.drop_text:
            none = jnp.zeros(len(batch["image"]), bool)
            metrics["loss_no_text"] = error(params, batch, noised, keep_text=none)
        return metrics

    def preview(params: Params, batch: Batch, key: Key) -> Image:
        keys = rng.per_example(key, jnp.arange(batch["image"].shape[0]))
        sampling = cfg.sampling
        if text.null == "empty":  # which a batch does not contain
            sampling = dataclasses.replace(sampling, guidance_scale=1.0)
        encoded = captions.conditions(batch)["text_features"]
        images = sample(cfg, params, encoded, keys=keys, sampling=sampling)
        return jnp.concatenate([batch["image"], images], axis=2)

    return Stage(
        name="text_base",
        batch_spec=spec,
        init=init,
        loss=loss,
        evaluate=evaluate,
        preview=preview,
        splittable=True,
        describe={
            "config": as_dict(cfg),
            "image_size": cfg.model.unet.image_size,
            "text_width": text.width,
        },
    )


def sample(
    cfg: TextBaseStageConfig,
    params: Params,
    encoded: EncodedCaptions[TokenFeatures],
    *,
    keys: Keys,
    sampling: SamplingConfig | None = None,
) -> Float[Array, " b h w c"]:
    """Samples images in [-1, 1] for captions.

    Args:
        cfg: the trained stage.
        params: its (EMA) parameters.
        encoded: features of the captions, and of the empty one.
        keys: one key per image.
        sampling: overrides `cfg.sampling`.

    Raises:
        UserError: guidance that the model was not trained for, or features of another encoder.
    """
    sampling = sampling or cfg.sampling
    cfg.check_guidance(sampling)
    unet = cfg.model.unet
    images = gaussian.run(
        denoiser(cfg, params, encoded, scale=sampling.guidance_scale),
        shape=(unet.image_size, unet.image_size, unet.in_channels),
        keys=keys,
        diffusion=cfg.diffusion,
        sampling=sampling,
    )
    return jnp.clip(images, -1.0, 1.0)


def denoiser(
    cfg: TextBaseStageConfig,
    params: Params,
    encoded: EncodedCaptions[TokenFeatures],
    *,
    scale: Scale = 1.0,
) -> guidance.Denoiser:
    """Returns the denoiser of captions, guided away from the null; they are encoded once."""
    module, guided = TextBase(cfg.model), not guidance.is_off(scale)
    method = TextBase.encode_text
    text = text_features.encode(
        module, cfg.model.text, params, encoded, method=method, guided=guided
    )

    def predict(x_t: Image, t: Steps) -> Prediction:
        out = apply(module, params, x_t, t, text=text, method=TextBase.denoise)
        return gaussian.predict(cfg.diffusion, out, x_t=x_t, t=t)

    return guidance.guided(predict, scale=scale) if guided else predict


def sample_in_chain(
    cfg: TextBaseStageConfig,
    params: Params,
    conditions: Mapping[str, Any],
    *,
    keys: Keys,
    sampling: SamplingConfig | None = None,
) -> dict[str, Any]:
    """Samples base images (`entry.ChainSampler`)."""
    encoded = conditions["text_features"]
    return {"image": sample(cfg, params, encoded, keys=keys, sampling=sampling)}


def denoiser_in_chain(
    cfg: TextBaseStageConfig,
    params: Params,
    conditions: Mapping[str, Any],
    *,
    keys: Keys,
    scale: Scale,
) -> guidance.Denoiser:
    """Returns the denoiser for conditions by name (`entry.ChainDenoiser`)."""
    return denoiser(cfg, params, conditions["text_features"], scale=scale)


ENTRY = StageEntry(
    name="text_base",
    role="decoder",
    config=TextBaseStageConfig,
    make=make,
    reads=lambda cfg: ("text_features",),
    yields=("image",),
    sample=sample_in_chain,
    denoiser=denoiser_in_chain,
    latent=lambda cfg, params, batch: batch["image"],
    requires=("image_size",),
    chain="imagen",
    folders=("imagen_base",),
)
