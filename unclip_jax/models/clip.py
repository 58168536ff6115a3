"""CLIP: a vision transformer and a causal text transformer into one space (arXiv 2103.00020).

Layer for layer the released architecture, so that public weights need renaming only. Towers return
raw embeddings; `__call__` normalises them. Images come in [-1, 1] and are standardised inside.
"""

import functools
import math

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct
from jaxtyping import Array, Float

from unclip_jax.backbones.layers import (
    LayerNorm,
    activation,
    check_tokens,
    compute_dtype,
    dense,
    fan_in_normal,
    normal,
    timestep_features,
    zeros,
)
from unclip_jax.backbones.transformer import Transformer
from unclip_jax.core.arrays import unit
from unclip_jax.core.checks import UserError
from unclip_jax.core.types import Embedding, Image, Mask, Scalar, Steps, Tokens
from unclip_jax.models.clip_config import ClipConfig
from unclip_jax.parallel.axes import sharded

MAX_LOGIT_SCALE = 100.0  # arXiv 2103.00020, section 2.5
TIME_FEATURES = 128
INITIAL_LOG_SCALE = math.log(1 / 0.07)  # likewise


@struct.dataclass
class TextOutput:
    """The output of the text tower.

    Attributes:
        pooled: raw embedding, of the end token.
        sequence: features of all slots after the final norm.
    """

    pooled: Float[Array, " b z"]
    sequence: Float[Array, " b l d"]


@struct.dataclass
class ClipOutput:
    """The embeddings of a batch of pairs.

    Attributes:
        z_img: L2-normalised image embeddings.
        z_txt: L2-normalised text embeddings.
        logit_scale: exp of the learned temperature, at most 100.
    """

    z_img: Float[Array, " b z"]
    z_txt: Float[Array, " b z"]
    logit_scale: Float[Array, ""]


class Clip(nn.Module):
    """CLIP: an image tower, a text tower and a temperature."""

    cfg: ClipConfig

    def setup(self):
        """Creates the towers; their names are the parameter paths of checkpoints."""
        if "image" in self.cfg.towers:
            self.image = ImageTower(self.cfg)
        if "text" in self.cfg.towers:
            self.text = TextTower(self.cfg)
        if self.cfg.temperature:
            init = sharded(lambda _: jnp.float32(INITIAL_LOG_SCALE))
            self.log_scale = self.param("log_scale", init)

    def __call__(
        self, images: Image, tokens: Tokens, token_mask: Mask, t: Steps | None = None
    ) -> ClipOutput:
        """Embeds pairs; `t` as for `encode_image`.

        Raises:
            UserError: a tower or the temperature is missing.
        """
        self._require("image")
        self._require("text")
        if not self.cfg.temperature:
            raise UserError(
                "this CLIP has no temperature (clip.temperature is off), so its pairs cannot be "
                "compared; convert the complete CLIP."
            )
        z_img = unit(self.encode_image(images, t))
        z_txt = unit(self.encode_text(tokens, token_mask).pooled)
        return ClipOutput(z_img, z_txt, self.logit_scale())

    def run(
        self, images: Image | None, tokens: Tokens | None, token_mask: Mask | None
    ) -> tuple[Embedding | None, TextOutput | None]:
        """Returns the raw outputs of the towers that have an input."""
        z_img = None if images is None else self.encode_image(images)
        if tokens is None or token_mask is None:
            return z_img, None
        return z_img, self.encode_text(tokens, token_mask)

    def encode_image(self, images: Image, t: Steps | None = None) -> Embedding:
        """Returns the raw embeddings of images in [-1, 1], or of images noised to timesteps `t`.

        Raises:
            UserError: no image tower.
        """
        self._require("image")
        return self.image(images, t)

    def encode_text(self, tokens: Tokens, token_mask: Mask) -> TextOutput:
        """Returns raw text embeddings and per-token features.

        Raises:
            UserError: no text tower.
        """
        self._require("text")
        return self.text(tokens, token_mask)

    def _require(self, tower: str) -> None:
        if tower not in self.cfg.towers:
            raise UserError(
                f"this CLIP has no {tower} tower (it has {', '.join(self.cfg.towers)}); use a "
                "complete CLIP, or convert its pipeline together with one that has it."
            )

    def logit_scale(self) -> Scalar:
        """Returns exp of the temperature, clamped (section 2.5)."""
        return logit_scale(self.log_scale)


def logit_scale(log_scale: Scalar) -> Scalar:
    """Returns exp of a learned inverse temperature, at most `MAX_LOGIT_SCALE`.

    There the gradient may lead back below the bound, but not further above it.
    """
    return jnp.exp(_clamp_above(log_scale, math.log(MAX_LOGIT_SCALE)))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _clamp_above(x: Scalar, bound: float) -> Scalar:
    """Computes min(x, bound), with gradients that lead below the bound but not further above it."""
    return jnp.minimum(x, bound)


def _clamp_above_forward(x: Scalar, bound: float) -> tuple[Scalar, Scalar]:
    return jnp.minimum(x, bound), x


def _clamp_above_backward(bound: float, x: Scalar, slope: Scalar) -> tuple[Scalar]:
    return (jnp.where((x >= bound) & (slope < 0), 0.0, slope),)


_clamp_above.defvjp(_clamp_above_forward, _clamp_above_backward)


class ImageTower(nn.Module):
    """Patches, class token, positions, norm, blocks, norm of the class token, projection."""

    cfg: ClipConfig

    @nn.compact
    def __call__(self, images: Image, t: Steps | None = None) -> Embedding:
        """Returns raw embeddings.

        Raises:
            UserError: images of another size.
        """
        cfg, dtype, width = self.cfg, compute_dtype(self.cfg.dtype), self.cfg.image_width
        if images.shape[1:] != (cfg.image_size, cfg.image_size, 3):
            raise UserError(
                f"images are {images.shape[1:]}; this CLIP takes "
                f"{(cfg.image_size, cfg.image_size, 3)}. Resize them first."
            )
        x = _standardised(images, cfg).astype(dtype)
        x = Stem(cfg, name="patches")(x) if cfg.stem == "conv" else _patches(cfg)(x)
        x = x.reshape(len(x), -1, width)
        first = self.param("class_token", sharded(normal(width**-0.5), "embed"), (width,))
        first = jnp.broadcast_to(first.astype(dtype), (len(x), 1, width))
        if cfg.reads_time:  # 0, clean, at first, so that a clean CLIP can be trained on
            t = jnp.zeros(len(x), jnp.int32) if t is None else t
            first = first + TimeToken(width, dtype, name="time")(t)[:, None]
        x = jnp.concatenate([first, x], axis=1)
        init = sharded(normal(cfg.position_scale * width**-0.5), "position", "embed")
        x = x + self.param("positions", init, (x.shape[1], width)).astype(dtype)[None]
        x = Transformer(cfg.image_tower, name="transformer")(LayerNorm(name="pre_norm")(x))
        x = LayerNorm(name="post_norm")(x[:, 0])
        return _projection(cfg, width)(x).astype(jnp.float32)


class TimeToken(nn.Module):
    """Timestep features, Linear, SiLU, Linear that is zero when fresh."""

    width: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, t: Steps) -> Float[Array, " b d"]:
        """Returns what is added to the class token at every timestep of a chain of 1,000."""
        x = timestep_features(t, width=TIME_FEATURES).astype(self.dtype)
        axes = ("time", "embed")
        x = jax.nn.silu(dense(self.width, name="linear_1", axes=axes, dtype=self.dtype)(x))
        options = {"axes": ("time", "embed"), "dtype": self.dtype, "init": zeros}
        return dense(self.width, name="linear_2", **options)(x)


class Stem(nn.Module):
    """Strided 3x3 convolutions down to one token per patch (arXiv 2106.14881, section 4).

    Channels double up to the width. Such a stem learns to distinguish shapes from far fewer
    examples than a linear map of raw pixels.
    """

    cfg: ClipConfig

    @nn.compact
    def __call__(self, x: Image) -> Float[Array, " b l d"]:
        """Returns one token per patch, row by row."""
        cfg, dtype = self.cfg, compute_dtype(self.cfg.dtype)
        levels = int(math.log2(cfg.patch_size))
        for level in range(levels):
            channels = cfg.image_width // 2 ** (levels - 1 - level)
            x = nn.Conv(
                channels,
                (3, 3),
                strides=2,
                dtype=dtype,
                kernel_init=sharded(fan_in_normal, None, None, "conv_in", "conv_out"),
                bias_init=sharded(zeros, "conv_out"),
                name=f"conv_{level}",
            )(x)
            x = activation(cfg.activation)(x)
        axes = ("conv_in", "embed")
        x = dense(cfg.image_width, name="out", axes=axes, dtype=dtype)(x)
        return x.reshape(len(x), -1, cfg.image_width)


def _patches(cfg: ClipConfig) -> nn.Conv:
    """The stem of the paper: one linear map of every patch."""
    return nn.Conv(
        cfg.image_width,
        (cfg.patch_size, cfg.patch_size),
        strides=cfg.patch_size,
        padding="VALID",
        use_bias=False,
        dtype=compute_dtype(cfg.dtype),
        kernel_init=sharded(normal(cfg.image_width**-0.5), None, None, "conv_in", "embed"),
        name="patches",
    )


class TextTower(nn.Module):
    """Tokens, positions, causal blocks, norm, projection of the end token."""

    cfg: ClipConfig

    @nn.compact
    def __call__(self, tokens: Tokens, token_mask: Mask) -> TextOutput:
        """Returns the raw embedding and the features of all slots.

        The stack is causal, so slots after the end token do not affect it.

        Raises:
            UserError: captions of another length.
        """
        cfg, width = self.cfg, self.cfg.text_width
        check_tokens(tokens, context=cfg.context)
        table = self.param(
            "tokens", sharded(normal(0.02), "vocab", "embed"), (cfg.vocab_size, width)
        )
        init = sharded(normal(0.01), "position", "embed")
        x = jnp.take(table, tokens, axis=0)
        x = x + self.param("positions", init, (cfg.context, width))[None]
        x = x.astype(compute_dtype(cfg.dtype))
        x = Transformer(cfg.text_tower, name="transformer")(x)
        x = LayerNorm(name="final_norm")(x)
        end = jnp.sum(token_mask, axis=1) - 1
        pooled = jnp.take_along_axis(x, end[:, None, None], axis=1)[:, 0]
        if cfg.projection:
            pooled = _projection(cfg, width)(pooled)
        return TextOutput(pooled.astype(jnp.float32), x)


def _projection(cfg: ClipConfig, width: int) -> nn.Dense:
    """The linear map to the shared space, without a bias."""
    return dense(
        cfg.embed_dim,
        name="projection",
        axes=("embed", "z"),
        dtype=compute_dtype(cfg.dtype),
        init=normal(width**-0.5),
        use_bias=False,
    )


def _standardised(images: Image, cfg: ClipConfig) -> Image:
    """Converts [-1, 1] to standardised pixels."""
    mean, std = (jnp.array(v)[None, None, None] for v in (cfg.image_mean, cfg.image_std))
    return ((images + 1.0) / 2.0 - mean) / std
