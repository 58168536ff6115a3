"""Stage `decoder`: 64x64 images from (z_img, caption) by guided diffusion (unCLIP, section 2.1).

A GLIDE U-Net with two pathways for z_img: added to the timestep embedding, and four extra context
tokens. z_img is dropped from 10 % and the caption from 50 % of the examples, independently.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from unclip_jax.conditioning import captions
from unclip_jax.conditioning.captions import Caption, ClipText, TokenIds
from unclip_jax.core import batch as batches
from unclip_jax.core import rng
from unclip_jax.core.arrays import unit
from unclip_jax.core.batch import Field
from unclip_jax.core.checks import UserError
from unclip_jax.core.config import as_dict
from unclip_jax.core.stage import Stage
from unclip_jax.core.types import Batch, Embedding, Image, Key, Keys, Metrics, Params, Scale, Steps
from unclip_jax.diffusion import guidance, inpainting
from unclip_jax.diffusion.guidance_schedule import GuidanceSchedule
from unclip_jax.diffusion.process import Prediction
from unclip_jax.models.application import apply, one_example
from unclip_jax.models.decoder import Decoder, inpaint_input
from unclip_jax.objectives import gaussian
from unclip_jax.objectives.gaussian import SamplingConfig
from unclip_jax.stages.decoder_config import DecoderStageConfig
from unclip_jax.stages.entry import StageEntry

NO_GUIDANCE = GuidanceSchedule()


class Condition(NamedTuple):
    """The condition of a batch of images.

    Attributes:
        z_img: CLIP image embeddings, of any norm (raw if the decoder's `embedding` is "raw"); None
            = dropped.
        caption: `TokenIds` or `ClipText`, whichever the decoder reads; None = dropped.
    """

    z_img: Embedding | None
    caption: Caption | None


NULL = Condition(None, None)


class InpaintTarget(NamedTuple):
    """Images of which a part is kept, and the mask: 1 = known, 0 = to be generated."""

    image: Image
    mask: Float[Array, " b h w 1"]


def make(cfg: DecoderStageConfig) -> Stage:
    """Builds the `Stage` of the decoder."""
    module, chain = Decoder(cfg.model), cfg.diffusion.chain()
    spec = {
        "image": batches.image_field(cfg.model.unet.image_size),
        **({cfg.condition: Field((cfg.model.z_dim,), "float32")} if cfg.model.reads_z else {}),
        **batches.text_fields(cfg.model.context, cfg.model.vocab_size),
    }
    if cfg.model.caption == "clip_sequence":
        width = cfg.model.clip_text_width or 0
        spec["text_seq"] = Field((cfg.model.context, width), "float32")
        spec["z_txt"] = Field((cfg.model.z_dim,), "float32")

    def init(key: Key) -> Params:
        zero = one_example(spec)
        return module.init(
            key,
            zero["image"],
            jnp.zeros(1, jnp.int32),
            z_img=_embedding(cfg, zero),
            **_caption(cfg, zero),
        )["params"]

    def loss(params: Params, batch: Batch, key: Key):
        noised = gaussian.noise_batch(chain, batch["image"], key=rng.fold(key, "draw"))
        value = jnp.mean(_training_loss(cfg, params, batch, noised, key))
        return value, {"loss": value}

    def evaluate(params: Params, batch: Batch, key: Key) -> Metrics:
        """Returns the loss with the right z_img and, if it is read, with another example's."""
        noised = gaussian.noise_batch(chain, batch["image"], key=rng.fold(key, "draw"))
        right = _loss_with(cfg, params, batch, noised)
        if not cfg.model.reads_z:
            return {"loss": jnp.mean(right)}
        swapped = {**batch, cfg.condition: jnp.roll(batch[cfg.condition], 1, axis=0)}
        wrong = _loss_with(cfg, params, swapped, noised)
        return {"loss": jnp.mean(right), "loss_wrong_z": jnp.mean(wrong)}

    def preview(params: Params, batch: Batch, key: Key) -> Image:
        keys = rng.per_example(key, jnp.arange(batch["image"].shape[0]))
        sampling = cfg.sampling
        if cfg.model.caption == "clip_sequence":  # a batch does not contain the empty caption
            sampling = dataclasses.replace(sampling, guidance_scale=1.0)
        condition = Condition(batch.get(cfg.condition), _caption_of(cfg, batch))
        images = sample(cfg, params, condition, keys=keys, sampling=sampling)
        return jnp.concatenate([batch["image"], images], axis=2)

    embedding = {"embed_dim": cfg.model.z_dim, "embedding": cfg.embedding, "z_scale_in": cfg.scale}
    return Stage(
        name="decoder",
        batch_spec=spec,
        init=init,
        loss=loss,
        evaluate=evaluate,
        preview=preview,
        splittable=True,
        describe={
            "config": as_dict(dataclasses.replace(cfg, z_scale=cfg.scale)),
            **(embedding if cfg.model.reads_z else {}),
            "image_size": cfg.model.unet.image_size,
        },
        grows={"unet/stem/kernel": cfg.model.unet.patch**2} if cfg.model.inpaints else {},
    )


def sample(
    cfg: DecoderStageConfig,
    params: Params,
    condition: Condition,
    *,
    keys: Keys,
    sampling: SamplingConfig | None = None,
    negative: Condition = NULL,
) -> Image:
    """Samples images in [-1, 1] for (z_img, caption) (unCLIP, section 2.1).

    Args:
        cfg: the trained stage.
        params: its (EMA) parameters.
        condition: condition of each image.
        keys: one key per image.
        sampling: overrides `cfg.sampling`.
        negative: the condition that guidance leads away from, as for `denoiser`.

    Returns:
        Images of the decoder's size.

    Raises:
        UserError: the decoder does not support the condition or the guidance.
    """
    sampling = sampling or cfg.sampling
    schedule = GuidanceSchedule(sampling.guidance_scale)
    images = gaussian.run(
        denoiser(cfg, params, condition, negative=negative, schedule=schedule),
        shape=image_shape(cfg),
        keys=keys,
        diffusion=cfg.diffusion,
        sampling=sampling,
    )
    return jnp.clip(images, -1.0, 1.0)


def image_shape(cfg: DecoderStageConfig) -> tuple[int, int, int]:
    """Returns height, width and channels of the decoder's images."""
    unet = cfg.model.unet
    return unet.image_size, unet.image_size, unet.in_channels


def denoiser(
    cfg: DecoderStageConfig,
    params: Params,
    condition: Condition,
    *,
    negative: Condition = NULL,
    schedule: GuidanceSchedule = NO_GUIDANCE,
    inpaint: InpaintTarget | None = None,
) -> guidance.Denoiser:
    """Returns the conditional denoiser, guided along the chain; captions are encoded once.

    By default guidance leads away from the null, where z_img and the caption are dropped together
    (as in Karlo; unCLIP does not say). A decoder of CLIP's features has no null caption: pass
    `Condition(None, features of the empty caption)` as `negative`.

    Args:
        cfg: the trained stage.
        params: its (EMA) parameters.
        condition: condition of each image.
        negative: the condition that guidance leads away from; one row applies to all.
        schedule: guidance scale along the chain.
        inpaint: input of a decoder that was trained to inpaint, in both branches of guidance;
            ignored by others.

    Raises:
        UserError: the decoder does not read this kind of caption, or guidance leads away
            from a null that it was not trained with.
    """
    branches = [condition]
    if not schedule.off:
        cfg.diffusion.check_guidance(schedule.scale)
        cfg.check_null(schedule.scale, z_img=negative.z_img is None, text=negative.caption is None)
        branches.append(negative)
    size = len(jax.tree.leaves(condition)[0])
    parts = [_inputs(cfg, branch, default=condition, size=size) for branch in branches]
    inputs: _Inputs = jax.tree.map(lambda *x: jnp.concatenate(x), *parts)
    module = Decoder(cfg.model)
    text = apply(module, params, **inputs.caption, method=Decoder.encode_text)
    fixed: dict[str, Any] = {"z_img": inputs.z_img, "keep_z": inputs.keep_z, "text": text}
    if inpaint is not None and cfg.model.inpaints:
        mask = jnp.broadcast_to(inpaint.mask, (*inpaint.image.shape[:3], 1))
        fixed["inpaint"] = jnp.concatenate([inpaint_input(inpaint.image, mask)] * len(branches))

    def predict(x_t: Image, t: Steps) -> Prediction:
        out = apply(module, params, x_t, t, **fixed, method=Decoder.denoise)
        return gaussian.predict(cfg.diffusion, out, x_t=x_t, t=t)

    def guided(x_t: Image, t: Steps) -> Prediction:
        scale = guidance.scale_at(schedule, t, num_timesteps=cfg.diffusion.num_timesteps)
        return guidance.guided(predict, scale=scale)(x_t, t)

    return predict if schedule.off else guided


class _Inputs(NamedTuple):
    """One branch of guidance as the network's arguments.

    Attributes:
        z_img: scaled.
        keep_z: False where z_img is dropped.
        caption: arguments of `Decoder.encode_text`.
    """

    z_img: Embedding
    keep_z: Bool[Array, " b"]
    caption: dict[str, Array]


def _inputs(
    cfg: DecoderStageConfig, branch: Condition, *, default: Condition, size: int
) -> _Inputs:
    """Returns the arguments for `size` rows; `default` supplies the values of dropped inputs."""
    z_img = default.z_img if branch.z_img is None else branch.z_img
    z_img = jnp.zeros((1, cfg.model.z_dim)) if z_img is None else z_img
    z_img = jnp.broadcast_to(_scaled(cfg, z_img), (size, z_img.shape[1]))
    keep_z = jnp.full(size, branch.z_img is not None)
    if cfg.model.caption == "clip_sequence":
        of = "the captions" if branch is default else "the empty caption, or of a negative one,"
        clip = captions.repeated(captions.clip_features(branch.caption, of=of), size)
        features = {"text_seq": clip.sequence, "z_txt": clip.z_txt}
        ids = jnp.zeros_like(clip.mask, jnp.int32)  # not read
        return _Inputs(z_img, keep_z, {"tokens": ids, "token_mask": clip.mask, **features})
    caption = default.caption if branch.caption is None else branch.caption
    if caption is None:
        blank = jnp.zeros((1, cfg.model.context), jnp.int32)
        caption = TokenIds(blank, blank > 0)
    if not isinstance(caption, TokenIds):
        raise UserError("this decoder reads token ids, not CLIP's features; pass TokenIds.")
    ids = captions.repeated(caption, size)
    keep_text = jnp.full(size, branch.caption is not None)
    text = {"tokens": ids.tokens, "token_mask": ids.mask, "keep_text": keep_text}
    return _Inputs(z_img, keep_z, text)


def _scaled(cfg: DecoderStageConfig, z_img: Embedding) -> Embedding:
    """Returns z_img as the network reads it."""
    return z_img if cfg.embedding == "raw" else cfg.scale * unit(z_img)


def _embedding(cfg: DecoderStageConfig, batch: Batch) -> Embedding:
    """Returns the embedding of a batch as the network reads it; unused zeros for GLIDE."""
    if not cfg.model.reads_z:
        return jnp.zeros((batch["image"].shape[0], cfg.model.z_dim))
    return _scaled(cfg, batch[cfg.condition])


def _caption(cfg: DecoderStageConfig, batch: Batch) -> dict[str, Any]:
    """Returns the caption fields of a batch."""
    names = ["tokens", "token_mask"]
    names += ["text_seq", "z_txt"] if cfg.model.caption == "clip_sequence" else []
    return {name: batch[name] for name in names}


def _caption_of(cfg: DecoderStageConfig, batch: Batch) -> Caption:
    """Returns the captions of a batch as the decoder reads them."""
    if cfg.model.caption == "own":
        return TokenIds(batch["tokens"], batch["token_mask"])
    return ClipText(batch["z_txt"], batch["text_seq"], batch["token_mask"])


def _training_loss(
    cfg: DecoderStageConfig, params: Params, batch: Batch, noised: gaussian.NoisedBatch, key: Key
) -> Float[Array, " b"]:
    """Returns the per-example loss with dropout and independent drops of z_img and caption."""
    options: dict[str, Any] = keep_masks(cfg, batch_size=noised.t.shape[0], key=key)
    options |= {"deterministic": False, "rngs": {"dropout": rng.fold(key, "dropout")}}
    if cfg.model.inpaints:
        count, side = batch["image"].shape[:2]
        mask = inpainting.random_known(rng.fold(key, "known"), count=count, side=side)
        options["inpaint"] = inpaint_input(batch["image"], mask)
    return _loss_with(cfg, params, batch, noised, **options)


def keep_masks(
    cfg: DecoderStageConfig, *, batch_size: int, key: Key
) -> dict[str, Bool[Array, " b"]]:
    """Draws the examples of a training batch that keep z_img, and those that keep the caption.

    In the paper 45 % keep both, 45 % z_img alone, 5 % the caption alone, 5 % nothing (section 2.1;
    figure 8 counts the third).
    """
    key_z, key_text = rng.fold(key, "drop_z"), rng.fold(key, "drop_text")
    masks = {"keep_z": guidance.keep_mask(key_z, batch_size=batch_size, drop=cfg.drop_z)}
    if cfg.model.caption == "own":
        masks["keep_text"] = guidance.keep_mask(key_text, batch_size=batch_size, drop=cfg.drop_text)
    return masks


def _loss_with(
    cfg: DecoderStageConfig,
    params: Params,
    batch: Batch,
    noised: gaussian.NoisedBatch,
    **options: Any,
) -> Float[Array, " b"]:
    """Returns the per-example loss; without options nothing is dropped."""
    out = apply(
        Decoder(cfg.model),
        params,
        noised.x_t,
        noised.t,
        z_img=_embedding(cfg, batch),
        **_caption(cfg, batch),
        **options,
    )
    return gaussian.loss(cfg.diffusion, out, noised=noised)


def sample_in_chain(
    cfg: DecoderStageConfig,
    params: Params,
    conditions: Mapping[str, Any],
    *,
    keys: Keys,
    sampling: SamplingConfig | None = None,
) -> dict[str, Any]:
    """Samples base images (`entry.ChainSampler`)."""
    condition, negative = _conditions_in_chain(cfg, conditions)
    images = sample(cfg, params, condition, keys=keys, sampling=sampling, negative=negative)
    return {"image": images}


def denoiser_in_chain(
    cfg: DecoderStageConfig,
    params: Params,
    conditions: Mapping[str, Any],
    *,
    keys: Keys,
    scale: Scale,
) -> guidance.Denoiser:
    """Returns the denoiser for conditions by name (`entry.ChainDenoiser`)."""
    condition, negative = _conditions_in_chain(cfg, conditions)
    schedule = GuidanceSchedule(scale)
    return denoiser(cfg, params, condition, negative=negative, schedule=schedule)


def _conditions_in_chain(
    cfg: DecoderStageConfig, conditions: Mapping[str, Any]
) -> tuple[Condition, Condition]:
    """Returns the condition, and the negative one."""
    encoded: captions.EncodedCaptions | None = conditions.get("clip_text")
    caption = conditions.get("caption") if encoded is None else encoded.text
    negative = NULL if encoded is None else Condition(None, encoded.empty)
    return Condition(conditions.get(cfg.condition), caption), negative


ENTRY = StageEntry(
    name="decoder",
    role="decoder",
    config=DecoderStageConfig,
    make=make,
    reads=lambda cfg: (
        *((cfg.condition,) if cfg.model.reads_z else ()),  # GLIDE reads no embedding
        "clip_text" if cfg.model.caption == "clip_sequence" else "caption",
    ),
    yields=("image",),
    sample=sample_in_chain,
    denoiser=denoiser_in_chain,
    latent=lambda cfg, params, batch: batch["image"],
    requires=("image_size",),
)
