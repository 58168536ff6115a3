"""Stage `upsampler`: 64 -> 256 and 256 -> 1024 by diffusion (unCLIP, section 2.1).

A convolutional U-Net on the noised image and the corrupted low-res image, trained on crops and run
at full size. One class serves both upsamplers; corruption (blur, BSR) is part of the data pipeline.
Imagen's upsamplers (arXiv 2205.11487, sections 2.4 and 2.5) read the caption too, use guidance, and
read a noised low-res image.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from unclip_jax.conditioning import low_res_noise, text_features
from unclip_jax.conditioning.captions import EncodedCaptions, TokenFeatures
from unclip_jax.conditioning.captions import conditions as conditions_of
from unclip_jax.conditioning.low_res_noise import NoisedLowRes
from unclip_jax.core import batch as batches
from unclip_jax.core import rng
from unclip_jax.core.checks import UserError
from unclip_jax.core.config import as_dict
from unclip_jax.core.stage import Stage
from unclip_jax.core.types import Batch, Image, Key, Keys, LowRes, Metrics, Params, Scale, Steps
from unclip_jax.diffusion import guidance
from unclip_jax.diffusion.guidance import Denoiser
from unclip_jax.models.application import apply, one_example
from unclip_jax.models.upsampler import Upsampler, enlarge
from unclip_jax.objectives import gaussian, low_res_fidelity
from unclip_jax.objectives.gaussian import SamplingConfig
from unclip_jax.stages.entry import StageEntry
from unclip_jax.stages.upsampler_config import UpsamplerStageConfig

EXAMINED = 8  # examples of a held-out batch that are enlarged to measure fidelity


def make(cfg: UpsamplerStageConfig) -> Stage:
    """Builds the `Stage` of an upsampler."""
    module = Upsampler(cfg.model)
    spec = {
        "image": batches.image_field(cfg.crop),
        "low_res": batches.image_field(cfg.crop // cfg.model.factor),
        **_text_fields(cfg),
    }

    def init(key: Key) -> Params:
        zero = one_example(spec)
        t = jnp.zeros(1, jnp.int32)
        low_res_t = t if cfg.augment.most else None

        def one(key: Key) -> Params:
            low_res = {"low_res": zero["low_res"], "low_res_t": low_res_t, **_text(cfg, zero)}
            return module.init(key, zero["image"], t, **low_res)["params"]

        if not cfg.last_step:
            return one(key)
        return {"first": one(rng.fold(key, "first")), "last": one(rng.fold(key, "last"))}

    def loss(params: Params, batch: Batch, key: Key):
        low = low_res_noise.noise_for_training(
            cfg.augment, cfg.diffusion, _input(cfg, batch), key=rng.fold(key, "low_res")
        )
        options = {**_text(cfg, batch), **_drops(cfg, batch, key=rng.fold(key, "drop_text"))}
        dropout = {"deterministic": False, "rngs": {"dropout": rng.fold(key, "dropout")}}
        value = _error(cfg, params, batch["image"], low=low, key=key, **options, **dropout)
        return value, {"loss": value}

    def evaluate(params: Params, batch: Batch, key: Key) -> Metrics:
        keys = rng.per_example(rng.fold(key, "sample"), jnp.arange(len(batch["image"])))
        low = low_res_noise.noise_for_sampling(
            cfg.augment, cfg.diffusion, _input(cfg, batch), keys=keys
        )
        few, text = batch["low_res"][:EXAMINED], _captions(cfg, batch, EXAMINED)
        options = {"keys": keys[:EXAMINED], "text": text, "sampling": _preview_sampling(cfg)}
        images = sample(cfg, params, low_res=few, **options)
        return {
            **{
                name: _error(cfg, params, batch["image"], low=low, key=key, **text)
                for name, text in _texts(cfg, batch).items()
            },
            "low_res_error": low_res_fidelity.low_res_error(images, few),
            "colour_shift": low_res_fidelity.colour_shift(images, few),
        }

    def preview(params: Params, batch: Batch, key: Key) -> Image:
        keys = rng.per_example(key, jnp.arange(batch["image"].shape[0]))
        options = {"text": _captions(cfg, batch), "sampling": _preview_sampling(cfg)}
        images = sample(cfg, params, low_res=batch["low_res"], keys=keys, **options)
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
            **({} if cfg.model.text is None else {"text_width": cfg.model.text.width}),
        },
    )


def sample(
    cfg: UpsamplerStageConfig,
    params: Params,
    *,
    low_res: LowRes,
    keys: Keys,
    sampling: SamplingConfig | None = None,
    text: EncodedCaptions[TokenFeatures] | None = None,
) -> Image:
    """Enlarges clean low-res images in [-1, 1] by the stage's factor, at any size that fits.

    Args:
        cfg: the trained stage.
        params: its (EMA) parameters.
        low_res: images; no corruption is applied at inference (unCLIP, section 2.1).
        keys: one key per image.
        sampling: overrides `cfg.sampling`.
        text: features of the captions, if the network reads them.

    Returns:
        Images `factor` times larger.

    Raises:
        UserError: guidance that the model was not trained for.
    """
    sampling = sampling or cfg.sampling
    cfg.check_guidance(sampling)
    _, height, width, channels = low_res.shape
    factor = cfg.model.factor
    images = gaussian.run(
        denoiser(cfg, params, low_res=low_res, keys=keys, text=text, scale=sampling.guidance_scale),
        shape=(height * factor, width * factor, channels),
        keys=keys,
        diffusion=cfg.diffusion,
        sampling=sampling,
    )
    return jnp.clip(images, -1.0, 1.0)


def denoiser(
    cfg: UpsamplerStageConfig,
    params: Params,
    *,
    low_res: LowRes,
    keys: Keys,
    text: EncodedCaptions[TokenFeatures] | None = None,
    scale: Scale = 1.0,
) -> Denoiser:
    """Returns the denoiser conditioned on low-res images; arguments as for `sample`."""
    image, guided = _input(cfg, {"low_res": low_res}), not guidance.is_off(scale)
    low = low_res_noise.noise_for_sampling(cfg.augment, cfg.diffusion, image, keys=keys)
    if guided:
        low = jax.tree.map(lambda x: jnp.concatenate([x, x]), low)
    networks = params if cfg.last_step else {"first": params}
    encoded = {
        name: _encoded(cfg, network, captions=text, guided=guided)
        for name, network in networks.items()
    }

    def run(name: str, x_t: Image, t: Steps) -> Array:
        options = {"method": Upsampler.denoise, **encoded[name]}
        return _network(cfg, networks[name], x_t, t, low=low, **options)

    def denoise(x_t: Image, t: Steps):
        """Predicts x_0 for a batch at one timestep; one network runs."""
        if cfg.last_step:  # t is 0 exactly unless a solver has levels of its own
            choices = (functools.partial(run, name, x_t, t) for name in ("last", "first"))
            out = jax.lax.cond(t[0] < 0.5, *choices)
        else:
            out = run("first", x_t, t)
        return gaussian.predict(cfg.diffusion, out, x_t=x_t, t=t)

    return guidance.guided(denoise, scale=scale) if guided else denoise


def _encoded(
    cfg: UpsamplerStageConfig,
    params: Params,
    *,
    captions: EncodedCaptions[TokenFeatures] | None,
    guided: bool,
) -> dict[str, Any]:
    """Returns the encoded captions as an argument of one network; {} if it reads none."""
    if cfg.model.text is None:
        return {}
    if captions is None:
        raise UserError(
            "this upsampler reads captions; sample it in a chain with its text encoder."
        )
    module, method = Upsampler(cfg.model), Upsampler.encode_text
    options = {"method": method, "guided": guided}
    return {"text": text_features.encode(module, cfg.model.text, params, captions, **options)}


def _text_fields(cfg: UpsamplerStageConfig) -> batches.BatchSpec:
    return {} if cfg.model.text is None else text_features.fields(cfg.model.text)


def _text(cfg: UpsamplerStageConfig, batch: Batch) -> dict[str, Any]:
    """Returns the captions of a batch as arguments of the network."""
    return {} if cfg.model.text is None else text_features.inputs(batch)


def _texts(cfg: UpsamplerStageConfig, batch: Batch) -> dict[str, dict[str, Any]]:
    """Returns the captions for the losses of an evaluation: the right ones, and those of others."""
    texts = {"loss": _text(cfg, batch)}
    if cfg.model.text is not None:
        texts["loss_wrong_text"] = _text(cfg, text_features.swapped(batch))
    return texts


def _drops(cfg: UpsamplerStageConfig, batch: Batch, *, key: Key) -> dict[str, Any]:
    """Draws which captions of a training batch are kept."""
    if cfg.model.text is None:
        return {}
    options = {"batch_size": len(batch["image"]), "drop": cfg.drop_text}
    return text_features.keep_masks(cfg.model.text, key, **options)


def _captions(
    cfg: UpsamplerStageConfig, batch: Batch, most: int | None = None
) -> EncodedCaptions[TokenFeatures] | None:
    """Returns the captions of the first examples of a batch as in sampling."""
    if cfg.model.text is None:
        return None
    rows = {name: batch[name][:most] for name in _text_fields(cfg)}
    return conditions_of(rows)["text_features"]


def _preview_sampling(cfg: UpsamplerStageConfig) -> SamplingConfig:
    """Returns sampling settings for batches, which do not contain the empty caption."""
    if cfg.model.text is None or cfg.model.text.null == "zero":
        return cfg.sampling
    return dataclasses.replace(cfg.sampling, guidance_scale=1.0)


def _enlarged(cfg: UpsamplerStageConfig) -> bool:
    """Returns True if noise is added to the enlarged image."""
    return cfg.augment.most > 0 and cfg.augment.at == "enlarged"


def _input(cfg: UpsamplerStageConfig, batch: Batch) -> LowRes:
    """Returns the low-res images of a batch to which noise is added: original or enlarged."""
    low_res = batch["low_res"]
    if not _enlarged(cfg):
        return low_res
    size = tuple(side * cfg.model.factor for side in low_res.shape[1:3])
    return enlarge(cfg.model, low_res, size)


def _error(
    cfg: UpsamplerStageConfig,
    params: Params,
    images: Image,
    *,
    low: NoisedLowRes,
    key: Key,
    **options: Any,
) -> Array:
    """Returns the mean loss over a batch; `options` are further arguments of the network.

    A separate network of the last step sees every image at t = 0, and its loss is added: timesteps
    drawn for both would give it one image in a thousand.
    """
    chain = cfg.diffusion.chain()

    def mean(params: Params, noised: gaussian.NoisedBatch) -> Array:
        out = _network(cfg, params, noised.x_t, noised.t, low=low, **options)
        return jnp.mean(gaussian.loss(cfg.diffusion, out, noised=noised))

    noised = gaussian.noise_batch(chain, images, key=rng.fold(key, "draw"))
    if not cfg.last_step:
        return mean(params, noised)
    final = gaussian.noise_at(
        chain, images, t=jnp.zeros_like(noised.t), key=rng.fold(key, "last_step")
    )
    return mean(params["first"], noised) + mean(params["last"], final)


def _network(
    cfg: UpsamplerStageConfig,
    params: Params,
    x_t: Image,
    t: Steps,
    *,
    low: NoisedLowRes,
    **options: Any,
) -> Array:
    """Returns the raw output of one network."""
    inputs: dict[str, Any] = {"low_res": low.image, "low_res_t": low.t}
    if _enlarged(cfg):
        inputs["enlarged"] = True
    out = apply(Upsampler(cfg.model), params, x_t, t, **inputs, **options)
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
    """Enlarges "low_res", rounded to 8-bit levels if `quantise` is set (`entry.ChainSampler`).

    GLIDE's released sampler rounds. In training only BSR's low-res images lie on 8-bit levels; area
    means and blurred ones are not rounded.
    """
    low_res: LowRes = conditions["low_res"]
    low_res = quantise(low_res) if cfg.quantise else low_res
    options = {"keys": keys, "sampling": sampling, "text": conditions.get("text_features")}
    return {"image": sample(cfg, params, low_res=low_res, **options)}


def denoiser_in_chain(
    cfg: UpsamplerStageConfig,
    params: Params,
    conditions: Mapping[str, Any],
    *,
    keys: Keys,
    scale: Scale,
) -> Denoiser:
    """Returns the denoiser for conditions by name (`entry.ChainDenoiser`).

    Raises:
        UserError: a second network predicts the last step, so that all examples need one timestep.
    """
    if cfg.last_step:
        raise UserError(
            "config.model.last_step is True: this upsampler has a separate network for the last "
            "step and cannot be distilled; train one without."
        )
    low_res, text = conditions["low_res"], conditions.get("text_features")
    return denoiser(cfg, params, low_res=low_res, keys=keys, text=text, scale=scale)


def quantise(images: Image) -> Image:
    """Returns images in [-1, 1] rounded to 8-bit levels."""
    return jnp.round((images + 1.0) * 127.5) / 127.5 - 1.0


ENTRY = StageEntry(
    name="upsampler",
    role="upsampler",
    config=UpsamplerStageConfig,
    make=make,
    reads=lambda cfg: ("low_res", *(() if cfg.model.text is None else ("text_features",))),
    yields=("image",),
    sample=sample_in_chain,
    denoiser=denoiser_in_chain,
    latent=lambda cfg, params, batch: batch["image"],
    sample_fields=lambda cfg: {
        "low_res": batches.image_field(cfg.low_res_size),
        **_text_fields(cfg),
    },
    load_size=lambda cfg: cfg.model.unet.image_size,  # trained on crops of these
    requires=("image_size",),
    folders=("upsampler_256", "upsampler_1024"),  # as in the paper, whatever the size
)
