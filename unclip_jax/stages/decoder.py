"""Stage `decoder`: 64x64 images from (z_img, caption) by guided diffusion (unCLIP, section 2.1).

A GLIDE U-Net with two pathways for z_img: added to the timestep embedding, and four extra context
tokens. z_img is dropped from 10 % and the caption from 50 % of the examples, independently.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from unclip_jax.core import batch as batches
from unclip_jax.core import rng
from unclip_jax.core.batch import Field
from unclip_jax.core.checks import UserError, in_range, one_of
from unclip_jax.core.config import as_dict
from unclip_jax.core.types import Batch, Embedding, Image, Key, Keys, Mask, Metrics, Params, Tokens
from unclip_jax.diffusion import guidance, inpainting
from unclip_jax.models.decoder import Decoder, DecoderConfig, known_part
from unclip_jax.models.unet import plan
from unclip_jax.stages import captions, gaussian
from unclip_jax.stages.base import Stage, apply, one_example
from unclip_jax.stages.captions import ClipText, TokenIds
from unclip_jax.stages.entry import StageEntry
from unclip_jax.stages.gaussian import DiffusionConfig, SamplingConfig
from unclip_jax.stages.prior import unit

EMBEDDINGS = ("unit", "raw")
CONDITIONS = ("z_img", "z_txt")


@dataclasses.dataclass(frozen=True)
class DecoderStageConfig:
    """A decoder and how it is trained and sampled.

    Attributes:
        model: U-Net, caption transformer and the pathways of z_img.
        diffusion: chain and target; the paper predicts eps and learns the variance.
        sampling: default sampling; 250 strided steps with learned variance in the paper.
        drop_z: share of examples whose z_img is dropped (10 %).
        drop_text: share of examples whose caption is dropped (50 %), independent of `drop_z`.
        z_scale: factor on the unit-norm z_img that the network sees; None = sqrt(d).
        embedding: "unit": z_img is normalised and scaled; "raw": it enters as CLIP gives it, and
            nothing is scaled (Karlo).
        condition: which of CLIP's embeddings it is trained on in the place of z_img: "z_img", or
            "z_txt" for the baseline of unCLIP's section 5.1, drawn with `--condition=z_txt`.
    """

    model: DecoderConfig
    diffusion: DiffusionConfig = DiffusionConfig(learned_variance=True)
    sampling: SamplingConfig = SamplingConfig(
        steps="250", variance="learned_range", threshold="static"
    )
    drop_z: float = 0.1
    drop_text: float = 0.5
    z_scale: float | None = None
    embedding: str = "unit"
    condition: str = "z_img"

    def __post_init__(self):
        one_of("config.model.condition", self.condition, CONDITIONS)
        one_of("config.model.embedding", self.embedding, EMBEDDINGS)
        if self.model.caption == "clip_sequence" and self.drop_text > 0:
            raise UserError(
                f"config.model.drop_text is {self.drop_text}, but this decoder has no null caption "
                "(config.model.model.caption is 'clip_sequence'): set it to 0 and give the empty "
                "caption to a share of the examples in the data."
            )
        in_range("config.model.drop_z", self.drop_z, 0.0, 1.0)
        in_range("config.model.drop_text", self.drop_text, 0.0, 1.0)
        self.check_guidance(self.sampling)
        unet = self.model.unet
        plan(unet)  # refuses an image that its levels cannot halve
        expected = unet.in_channels * (2 if self.diffusion.learned_variance else 1)
        if unet.out_channels != expected:
            raise UserError(
                f"config.model.model.unet.out_channels is {unet.out_channels}; "
                f"diffusion.learned_variance={self.diffusion.learned_variance} needs {expected}."
            )

    @property
    def scale(self) -> float:
        """The factor actually applied to unit-norm embeddings."""
        return math.sqrt(self.model.z_dim) if self.z_scale is None else self.z_scale

    def check_guidance(self, sampling: SamplingConfig) -> None:
        """Refuse guidance without drops; the unconditional branch drops both conditions.

        Raises:
            UserError: a drop is 0 and the scale is not 1.
        """
        drops = {"config.model.drop_z": self.drop_z} if self.model.reads_z else {}
        if self.model.caption == "own":  # otherwise the empty caption in the data is the drop
            drops["config.model.drop_text"] = self.drop_text
        gaussian.check_guidance(sampling.guidance_scale, drops=drops)


def make(cfg: DecoderStageConfig) -> Stage:
    """The stage record for the decoder."""
    module, chain = Decoder(cfg.model), cfg.diffusion.chain()
    spec = {
        "image": batches.image_field(cfg.model.unet.image_size),
        cfg.condition: Field((cfg.model.z_dim,), "float32"),
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
            z_img=zero[cfg.condition],
            **_caption(cfg, zero),
        )["params"]

    def loss(params: Params, batch: Batch, key: Key):
        noised = gaussian.draw(chain, batch["image"], key=rng.fold(key, "draw"))
        value = jnp.mean(_training_loss(cfg, params, batch, noised, key))
        return value, {"loss": value}

    def evaluate(params: Params, batch: Batch, key: Key) -> Metrics:
        """Loss, and how much a wrong z_img hurts: the conditioning must matter."""
        noised = gaussian.draw(chain, batch["image"], key=rng.fold(key, "draw"))
        right = _loss_with(cfg, params, batch, noised)
        swapped = {**batch, cfg.condition: jnp.roll(batch[cfg.condition], 1, axis=0)}
        wrong = _loss_with(cfg, params, swapped, noised)
        return {"loss": jnp.mean(right), "loss_wrong_z": jnp.mean(wrong)}

    def preview(params: Params, batch: Batch, key: Key) -> Image:
        keys = rng.per_example(key, jnp.arange(batch["image"].shape[0]))
        sampling = cfg.sampling
        if cfg.model.caption == "clip_sequence":  # a batch does not hold the empty caption
            sampling = dataclasses.replace(sampling, guidance_scale=1.0)
        images = sample(
            cfg,
            params,
            z_img=batch[cfg.condition],
            tokens=batch["tokens"],
            token_mask=batch["token_mask"],
            keys=keys,
            sampling=sampling,
            text=_clip_text(cfg, batch),
        )
        return jnp.concatenate([batch["image"], images], axis=2)

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
            "embed_dim": cfg.model.z_dim,
            "z_scale_in": cfg.scale,
            "embedding": cfg.embedding,
            "image_size": cfg.model.unet.image_size,
        },
        grows={"unet/stem/kernel": cfg.model.unet.patch**2} if cfg.model.inpaints else {},
    )


def sample(
    cfg: DecoderStageConfig,
    params: Params,
    *,
    z_img: Embedding,
    tokens: Tokens,
    token_mask: Mask,
    keys: Keys,
    sampling: SamplingConfig | None = None,
    text: ClipText | None = None,
    empty: ClipText | None = None,
) -> Image:
    """Draw images in [-1, 1] for (z_img, caption) (unCLIP, section 2.1).

    Args:
        cfg: the trained stage.
        params: its (EMA) parameters.
        z_img: CLIP image embeddings, of any norm (raw if `cfg.embedding` is "raw").
        tokens: caption ids; all padding = no caption.
        token_mask: True at real tokens.
        keys: one key per image.
        sampling: overrides `cfg.sampling`.
        text: what CLIP says of the captions, for decoders that read it.
        empty: what CLIP says of the empty caption (one row), likewise, for guidance.

    Returns:
        Images of the decoder's size.

    Raises:
        UserError: `text` or `empty` is needed and missing.
    """
    sampling = sampling or cfg.sampling
    cfg.check_guidance(sampling)
    denoise = denoiser(
        cfg,
        params,
        z_img=z_img,
        tokens=tokens,
        token_mask=token_mask,
        scale=sampling.guidance_scale,
        text=text,
        empty=empty,
    )
    size = cfg.model.unet.image_size
    images = gaussian.run(
        denoise,
        shape=(size, size, cfg.model.unet.in_channels),
        keys=keys,
        diffusion=cfg.diffusion,
        sampling=sampling,
    )
    return jnp.clip(images, -1.0, 1.0)


def denoiser(
    cfg: DecoderStageConfig,
    params: Params,
    *,
    z_img: Embedding,
    tokens: Tokens,
    token_mask: Mask,
    scale: float,
    text: ClipText | None = None,
    empty: ClipText | None = None,
) -> guidance.Denoiser:
    """The conditional, or guided, denoiser; the caption is encoded once, outside the scan.

    The unconditional branch drops z_img and the caption together (unCLIP is silent; Karlo).
    """
    module = Decoder(cfg.model)
    guided = scale != 1.0
    z_img, keep = _scaled(cfg, z_img), jnp.ones(z_img.shape[0], bool)
    if guided:
        keep = jnp.concatenate([keep, ~keep])
        z_img, tokens, token_mask = (jnp.concatenate([x, x]) for x in (z_img, tokens, token_mask))
    if cfg.model.caption == "clip_sequence":
        clip = captions.needed("the captions", text)
        if guided:
            nothing = captions.needed("the empty caption", empty)
            nothing = captions.repeated(nothing, clip.mask.shape[0])
            clip = jax.tree.map(lambda *x: jnp.concatenate(x), clip, nothing)
        given = {"text_seq": clip.sequence, "z_txt": clip.z_txt}
        token_mask = clip.mask
    else:
        given = {"keep_text": keep}
    encode = Decoder.encode_text
    features = apply(module, params, tokens, token_mask, **given, method=encode)

    def denoise(x_t, t):
        given = {"z_img": z_img, "text": features, "keep_z": keep}
        out = apply(module, params, x_t, t, **given, method=Decoder.denoise)
        return gaussian.predict(cfg.diffusion, out, x_t=x_t, t=t)

    return guidance.guided(denoise, scale=scale) if guided else denoise


def _scaled(cfg: DecoderStageConfig, z_img: Embedding) -> Embedding:
    """z_img as the network sees it."""
    return z_img if cfg.embedding == "raw" else cfg.scale * unit(z_img)


def _caption(cfg: DecoderStageConfig, batch: Batch) -> dict[str, Any]:
    """The fields of a batch that say what the caption is."""
    names = ["tokens", "token_mask"]
    names += ["text_seq", "z_txt"] if cfg.model.caption == "clip_sequence" else []
    return {name: batch[name] for name in names}


def _clip_text(cfg: DecoderStageConfig, batch: Batch) -> ClipText | None:
    """The same as CLIP's features, or None where the decoder reads token ids."""
    if cfg.model.caption == "own":
        return None
    return ClipText(batch["z_txt"], batch["text_seq"], batch["token_mask"])


def _training_loss(
    cfg: DecoderStageConfig, params: Params, batch: Batch, noised: gaussian.Noised, key: Key
) -> Float[Array, " b"]:
    """Per-example loss with dropout and independent drops of z_img and caption."""
    kept = keeps(cfg, batch_size=noised.t.shape[0], key=key)
    dropout = {"deterministic": False, "rngs": {"dropout": rng.fold(key, "dropout")}}
    if cfg.model.inpaints:
        count, side = batch["image"].shape[:2]
        mask = inpainting.random_known(rng.fold(key, "known"), count=count, side=side)
        dropout["known"] = known_part(batch["image"], mask)
    return _loss_with(cfg, params, batch, noised, **kept, **dropout)


def keeps(cfg: DecoderStageConfig, *, batch_size: int, key: Key) -> dict[str, Bool[Array, " b"]]:
    """Which examples of a training batch keep z_img and which their caption, independently.

    In the paper 45 % keep both, 45 % z_img alone, 5 % the caption alone, 5 % nothing (section 2.1;
    figure 8 counts the third).
    """
    key_z, key_text = rng.fold(key, "drop_z"), rng.fold(key, "drop_text")
    kept = {"keep_z": guidance.keep_mask(key_z, batch_size=batch_size, drop=cfg.drop_z)}
    if cfg.model.caption == "own":
        kept["keep_text"] = guidance.keep_mask(key_text, batch_size=batch_size, drop=cfg.drop_text)
    return kept


def _loss_with(
    cfg: DecoderStageConfig,
    params: Params,
    batch: Batch,
    noised: gaussian.Noised,
    **options: Any,
) -> Float[Array, " b"]:
    """Per-example loss; without options nothing is dropped."""
    out = apply(
        Decoder(cfg.model),
        params,
        noised.x_t,
        noised.t,
        z_img=_scaled(cfg, batch[cfg.condition]),
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
    encoded: captions.EncodedCaptions | None = conditions.get("clip_text")
    ids: TokenIds | None = conditions.get("caption")
    if ids is None:
        assert encoded is not None
        ids = TokenIds(jnp.zeros_like(encoded.text.mask, jnp.int32), encoded.text.mask)
    z_img = conditions.get(cfg.condition)
    z_img = jnp.zeros((len(keys), cfg.model.z_dim)) if z_img is None else z_img
    features = {} if encoded is None else {"text": encoded.text, "empty": encoded.empty}
    images = sample(
        cfg,
        params,
        z_img=z_img,
        tokens=ids.tokens,
        token_mask=ids.mask,
        keys=keys,
        sampling=sampling,
        **features,
    )
    return {"image": images}


def _reads(cfg: DecoderStageConfig) -> tuple[str, ...]:
    """Returns the conditions of a decoder: an embedding, unless it is GLIDE, and the caption."""
    embedding = (cfg.condition,) if cfg.model.reads_z else ()
    return (*embedding, "clip_text" if cfg.model.caption == "clip_sequence" else "caption")


ENTRY = StageEntry(
    name="decoder",
    role="decoder",
    config=DecoderStageConfig,
    make=make,
    reads=_reads,
    yields=("image",),
    sample=sample_in_chain,
    requires=("image_size",),
)
