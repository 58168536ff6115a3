"""Stage `upsampler`: 64 -> 256 and 256 -> 1024 by diffusion (unCLIP, section 2.1).

A convolutional U-Net on the noised image and the corrupted low-res image, trained on crops and run
at full size. One class serves both upsamplers; corruption (blur, BSR) is made by the data pipeline.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from unclip_jax.core import batch as batches
from unclip_jax.core import rng
from unclip_jax.core.checks import UserError, divisible, in_range
from unclip_jax.core.config import as_dict
from unclip_jax.core.stage import Stage
from unclip_jax.core.types import Batch, Image, Key, Keys, LowRes, Metrics, Params, Steps
from unclip_jax.diffusion import process
from unclip_jax.diffusion.guidance import Denoiser
from unclip_jax.models.upsampler import Upsampler, UpsamplerConfig
from unclip_jax.stages import gaussian, low_res_fidelity
from unclip_jax.stages.base import apply, one_example
from unclip_jax.stages.entry import StageEntry
from unclip_jax.stages.gaussian import DiffusionConfig, SamplingConfig

EXAMINED = 8  # examples of a held-out batch that are enlarged to measure fidelity


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
    """Noise on the low-res image, whose level the network sees; not part of unCLIP.

    Conditioning augmentation of cascaded diffusion (Ho et al. 2021, arXiv 2106.15282, section 4.2)
    and Imagen (arXiv 2205.11487, section 2.4): in training the low-res image is noised to a random
    timestep of the stage's chain, in sampling to a chosen one.

    Attributes:
        most: the latest timestep in training, as a share of the chain; 0 = off.
        level: the timestep in sampling, likewise; at most `most`.
    """

    most: float = 0.0
    level: float = 0.0

    def __post_init__(self):
        in_range("config.model.augment.most", self.most, 0.0, 1.0)
        if not 0 <= self.level <= self.most:
            raise UserError(
                f"config.model.augment.level is {self.level}; the network learns levels from 0 to "
                f"config.model.augment.most = {self.most}, so choose one of these."
            )


@dataclasses.dataclass(frozen=True)
class UpsamplerStageConfig:
    """An upsampler and the settings of its training and sampling.

    Attributes:
        model: the convolutional U-Net; `model.unet.image_size` is the full target size.
        crop: side of the training crops in target pixels (a quarter of the target in the paper).
        diffusion: chain and target; eps without a learned variance.
        sampling: default sampling; 27 and 15 DDIM steps in the paper.
        residual: x_0 target only: the network predicts the difference to the enlarged low-res
            image, a miniature-only option that learns faster.
        augment: noise on the low-res image; off in unCLIP.
        last_step: a network of its own predicts at t = 0 (Karlo); the parameters are then
            {"first": ..., "last": ...}.
        quantise: low-res images are rounded to 8-bit levels when sampling (GLIDE's released
            sampler); Karlo takes them as they are.
    """

    model: UpsamplerConfig
    crop: int
    diffusion: DiffusionConfig = DiffusionConfig()
    sampling: SamplingConfig = SamplingConfig(steps="fast27", sampler="ddim", threshold="static")
    residual: bool = False
    augment: AugmentConfig = AugmentConfig()
    last_step: bool = False
    quantise: bool = True

    def __post_init__(self):
        size, factor, stride = self.model.unet.image_size, self.model.factor, self.model.unet.stride
        divisible("config.model.crop", self.crop, factor, "a crop must match whole low-res pixels.")
        divisible("upsampler image_size", size, factor, "the low-res image has whole pixels.")
        for what, side in (("crop", self.crop), ("image_size", size)):
            why = (
                "the U-Net halves it at every level but the last; drop a level or change the size."
            )
            divisible(f"upsampler {what}", side, stride, why)
        if self.crop > size:
            raise UserError(
                f"config.model.crop is {self.crop}, larger than the image ({size}); make it "
                "smaller."
            )
        self.check_guidance(self.sampling)
        if self.residual and self.diffusion.target != "x_0":
            raise UserError(
                "config.model.residual needs config.model.diffusion.target 'x_0', not "
                f"{self.diffusion.target!r}."
            )

    def check_guidance(self, sampling: SamplingConfig) -> None:
        """Refuses guidance: an upsampler has no condition that could be dropped (unCLIP, 2.1).

        Raises:
            UserError: the scale is not 1.
        """
        if sampling.guidance_scale != 1.0:
            raise UserError(
                f"guidance_scale is {sampling.guidance_scale}, but upsamplers see no "
                "caption and are trained without drops; use 1.0."
            )

    @property
    def low_res_size(self) -> int:
        """Side of the low-res image at full size."""
        return self.model.unet.image_size // self.model.factor


def make(cfg: UpsamplerStageConfig) -> Stage:
    """Makes the stage record for an upsampler."""
    module = Upsampler(cfg.model)
    spec = {
        "image": batches.image_field(cfg.crop),
        "low_res": batches.image_field(cfg.crop // cfg.model.factor),
    }

    def init(key: Key) -> Params:
        zero = one_example(spec)
        t = jnp.zeros(1, jnp.int32)
        low_res_t = t if cfg.augment.most else None

        def one(key: Key) -> Params:
            low_res = {"low_res": zero["low_res"], "low_res_t": low_res_t}
            return module.init(key, zero["image"], t, **low_res)["params"]

        if not cfg.last_step:
            return one(key)
        return {"first": one(rng.fold(key, "first")), "last": one(rng.fold(key, "last"))}

    def loss(params: Params, batch: Batch, key: Key):
        low = _in_training(cfg, batch["low_res"], key=rng.fold(key, "low_res"))
        dropout = rng.fold(key, "dropout")
        value = _error(cfg, params, batch["image"], low=low, key=key, dropout_key=dropout)
        return value, {"loss": value}

    def evaluate(params: Params, batch: Batch, key: Key) -> Metrics:
        keys = rng.per_example(rng.fold(key, "sample"), jnp.arange(len(batch["image"])))
        low = _as_sampled(cfg, batch["low_res"], keys=keys)
        few = batch["low_res"][:EXAMINED]
        images = sample(cfg, params, low_res=few, keys=keys[:EXAMINED])
        return {
            "loss": _error(cfg, params, batch["image"], low=low, key=key),
            "low_res_error": low_res_fidelity.low_res_error(images, few),
            "colour_shift": low_res_fidelity.colour_shift(images, few),
        }

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
    """Enlarges clean low-res images in [-1, 1] by the stage's factor, at any size that fits.

    Args:
        cfg: the trained stage.
        params: its (EMA) parameters.
        low_res: images; no corruption is applied at inference (unCLIP, section 2.1).
        keys: one key per image.
        sampling: overrides `cfg.sampling`.

    Returns:
        Images `factor` times larger.

    Raises:
        UserError: a guidance scale other than 1.
    """
    sampling = sampling or cfg.sampling
    cfg.check_guidance(sampling)
    _, height, width, channels = low_res.shape
    factor = cfg.model.factor
    images = gaussian.run(
        denoiser(cfg, params, low_res=low_res, keys=keys),
        shape=(height * factor, width * factor, channels),
        keys=keys,
        diffusion=cfg.diffusion,
        sampling=sampling,
    )
    return jnp.clip(images, -1.0, 1.0)


def denoiser(cfg: UpsamplerStageConfig, params: Params, *, low_res: LowRes, keys: Keys) -> Denoiser:
    """Returns the denoiser conditioned on low-res images; arguments as for `sample`."""
    low = _as_sampled(cfg, low_res, keys=keys)

    def denoise(x_t: Image, t: Steps):
        out = _at_one_step(cfg, params, x_t, t, low=low)
        return gaussian.predict(cfg.diffusion, out, x_t=x_t, t=t)

    return denoise


class _LowRes(NamedTuple):
    """The low-res image as the network sees it, and the timestep of its noise (None = no noise)."""

    image: LowRes
    t: Steps | None


def _in_training(cfg: UpsamplerStageConfig, low_res: LowRes, *, key: Key) -> _LowRes:
    """Noises low-res images to a random timestep if augmentation is on."""
    if not cfg.augment.most:
        return _LowRes(low_res, None)
    bound = _timestep(cfg, cfg.augment.most) + 1
    t = jax.random.randint(rng.fold(key, "t"), low_res.shape[:1], 0, bound)
    eps = jax.random.normal(rng.fold(key, "noise"), low_res.shape)
    return _noised(cfg, low_res, t=t, eps=eps)


def _as_sampled(cfg: UpsamplerStageConfig, low_res: LowRes, *, keys: Keys) -> _LowRes:
    """Noises low-res images to the timestep of sampling, each with its own key."""
    if not cfg.augment.most:
        return _LowRes(low_res, None)
    t = jnp.full(low_res.shape[:1], _timestep(cfg, cfg.augment.level), jnp.int32)
    eps = rng.normal_each(rng.fold_each(keys, "low_res"), low_res.shape[1:])
    return _noised(cfg, low_res, t=t, eps=eps)


def _noised(cfg: UpsamplerStageConfig, low_res: LowRes, *, t: Steps, eps: LowRes) -> _LowRes:
    alpha_bar = cfg.diffusion.chain().level(t, ndim=low_res.ndim)
    return _LowRes(process.q_sample(low_res, eps, alpha_bar=alpha_bar), t)


def _timestep(cfg: UpsamplerStageConfig, share: float) -> int:
    return round(share * (cfg.diffusion.num_timesteps - 1))


def _error(
    cfg: UpsamplerStageConfig,
    params: Params,
    images: Image,
    *,
    low: _LowRes,
    key: Key,
    dropout_key: Key | None = None,
) -> Array:
    """Returns the mean loss over a batch; dropout is on if it has a key.

    A separate network of the last step sees every image at t = 0, and its loss is added: timesteps
    drawn for both would give it one image in a thousand.
    """
    chain = cfg.diffusion.chain()

    def mean(params: Params, noised: gaussian.NoisedBatch) -> Array:
        out = _network(cfg, params, noised.x_t, noised.t, low=low, dropout_key=dropout_key)
        return jnp.mean(gaussian.loss(cfg.diffusion, out, noised=noised))

    noised = gaussian.noise_batch(chain, images, key=rng.fold(key, "draw"))
    if not cfg.last_step:
        return mean(params, noised)
    final = gaussian.noise_at(
        chain, images, t=jnp.zeros_like(noised.t), key=rng.fold(key, "last_step")
    )
    return mean(params["first"], noised) + mean(params["last"], final)


def _at_one_step(
    cfg: UpsamplerStageConfig, params: Params, x_t: Image, t: Steps, *, low: _LowRes
) -> Array:
    """Returns raw output for a batch at one timestep, as in sampling: one network runs."""
    if not cfg.last_step:
        return _network(cfg, params, x_t, t, low=low)
    return jax.lax.cond(
        t[0] < 0.5,  # t is 0 exactly unless a solver has levels of its own
        lambda: _network(cfg, params["last"], x_t, t, low=low),
        lambda: _network(cfg, params["first"], x_t, t, low=low),
    )


def _network(
    cfg: UpsamplerStageConfig,
    params: Params,
    x_t: Image,
    t: Steps,
    *,
    low: _LowRes,
    dropout_key: Key | None = None,
) -> Array:
    """Returns the raw output of one network."""
    out = apply(
        Upsampler(cfg.model),
        params,
        x_t,
        t,
        low_res=low.image,
        low_res_t=low.t,
        deterministic=dropout_key is None,
        rngs={} if dropout_key is None else {"dropout": dropout_key},
    )
    if cfg.residual:
        out = out + jax.image.resize(low.image, x_t.shape, "bilinear")
    return out


def sample_in_chain(
    cfg: UpsamplerStageConfig,
    params: Params,
    conditions: Mapping[str, Any],
    *,
    keys: Keys,
    sampling: SamplingConfig | None = None,
) -> dict[str, Any]:
    """Enlarges "low_res", rounded to 8-bit levels if the stage asks for it (`entry.ChainSampler`).

    GLIDE's released sampler rounds. In training only BSR's low-res images lie on 8-bit levels; area
    means and blurred ones are not rounded.
    """
    low_res: LowRes = conditions["low_res"]
    low_res = quantise(low_res) if cfg.quantise else low_res
    return {"image": sample(cfg, params, low_res=low_res, keys=keys, sampling=sampling)}


def quantise(images: Image) -> Image:
    """Returns images in [-1, 1] rounded to 8-bit levels."""
    return jnp.round((images + 1.0) * 127.5) / 127.5 - 1.0


ENTRY = StageEntry(
    name="upsampler",
    role="upsampler",
    config=UpsamplerStageConfig,
    make=make,
    reads=lambda cfg: ("low_res",),
    yields=("image",),
    sample=sample_in_chain,
    sample_fields=lambda cfg: {"low_res": batches.image_field(cfg.low_res_size)},
    load_size=lambda cfg: cfg.model.unet.image_size,  # of which it is trained on crops
    requires=("image_size",),
    folders=("upsampler_256", "upsampler_1024"),  # as in the paper, whatever the size
)
