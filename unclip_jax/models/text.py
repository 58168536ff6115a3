"""Token features of captions: embeddings with learned padding, and the decoder's text encoder.

A slot without a token holds a learned vector of its position and is attended to like any other
(DALL-E 1, GLIDE); a caption that is all padding is the null condition. `padding="mask"` hides such
slots from attention instead, as Karlo does.
"""

import dataclasses

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from unclip_jax.backbones.layers import LayerNorm, check_tokens, compute_dtype, normal
from unclip_jax.backbones.transformer import Transformer, TransformerConfig
from unclip_jax.core.checks import one_of
from unclip_jax.core.types import Mask, Tokens
from unclip_jax.parallel.axes import sharded

PADDING = ("learned", "mask")


class CaptionEmbedding(nn.Module):
    """Embeds token ids, with learned padding and optional positions.

    Attributes:
        vocab_size: rows of the token table.
        context: length of every caption.
        width: of the features.
        positions: add a learned position to every token; False where the caller adds its own.
        padding: slots whose mask is False hold a learned vector; False = they hold tokens too.
    """

    vocab_size: int
    context: int
    width: int
    positions: bool = True
    padding: bool = True

    @nn.compact
    def __call__(self, tokens: Tokens, token_mask: Mask) -> Float[Array, " b l d"]:
        """Returns features; slots whose mask is False hold their position's padding vector.

        Raises:
            UserError: captions of another length than `context`.
        """
        check_tokens(tokens, context=self.context)
        table = self.param(
            "tokens", sharded(normal(0.02), "vocab", "embed"), (self.vocab_size, self.width)
        )
        slots, axes = (self.context, self.width), ("position", "embed")
        padding = None
        if self.padding:
            padding = self.param("padding", sharded(normal(0.01), *axes), slots)
        x = jnp.take(table, tokens, axis=0)
        if self.positions:
            x = x + self.param("positions", sharded(normal(0.01), *axes), slots)[None]
        if padding is None:
            return x
        return jnp.where(token_mask[..., None], x, padding[None])


@dataclasses.dataclass(frozen=True)
class TextEncoderConfig:
    """The decoder's own text transformer (GLIDE, arXiv 2112.10741, section 4).

    Attributes:
        width: of the transformer.
        depth: number of blocks.
        heads: must divide the width.
        context: length of every caption.
        vocab_size: rows of the token table.
        padding: "learned" or "mask"; see the module docstring.
        remat: "none", "block" or "dots".
        dtype: compute dtype.
    """

    width: int
    depth: int
    heads: int
    context: int
    vocab_size: int
    padding: str = "learned"
    remat: str = "none"
    dtype: str = "float32"

    def __post_init__(self):
        one_of("padding", self.padding, PADDING)


class TextEncoder(nn.Module):
    """Encodes captions: embeddings, a bidirectional transformer, a final norm."""

    cfg: TextEncoderConfig

    @nn.compact
    def __call__(self, tokens: Tokens, token_mask: Bool[Array, " b l"]) -> Float[Array, " b l d"]:
        """Returns features of all slots, padding included."""
        cfg = self.cfg
        embed = CaptionEmbedding(cfg.vocab_size, cfg.context, cfg.width, name="captions")
        stack = TransformerConfig(
            width=cfg.width,
            depth=cfg.depth,
            heads=cfg.heads,
            causal=False,
            remat=cfg.remat,
            dtype=cfg.dtype,
        )
        x = embed(tokens, token_mask).astype(compute_dtype(cfg.dtype))
        key_mask = token_mask if cfg.padding == "mask" else None
        x = Transformer(stack, name="transformer")(x, key_mask)
        return LayerNorm(name="final_norm")(x)
