"""The features of a caption as a U-Net reads them: a pooled vector and a sequence of tokens.

Imagen (arXiv 2205.11487, section 2.5 and appendix D.3.1): the pooled features of a frozen language
model join the timestep embedding, and attention sees all of them, with norms in both.
"""

import dataclasses

import jax.numpy as jnp
from flax import linen as nn
from flax import struct
from jaxtyping import Array, Bool, Float

from unclip_jax.backbones.attention import attention
from unclip_jax.backbones.layers import LayerNorm, dense, normal
from unclip_jax.core.checks import UserError, divisible, one_of, positive
from unclip_jax.parallel.axes import sharded

POOLING = ("attention", "mean", "none")
QUERIES = ("learned", "mean")
PADDING = ("mask", "seen")
NULLS = ("zero", "empty")


@struct.dataclass
class TextFeatures:
    """An encoded caption, computed once for all sampling steps.

    Attributes:
        sequence: features of all slots.
        last: added to the timestep embedding: a pooled feature (Imagen), the last slot's (GLIDE),
            or CLIP's z_txt.
        mask: True at slots to attend to.
    """

    sequence: Float[Array, " b l d"]
    last: Float[Array, " b e"]
    mask: Bool[Array, " b l"]


@dataclasses.dataclass(frozen=True)
class TextConditionConfig:
    """The path of frozen text features into a U-Net.

    Attributes:
        width: of the frozen features.
        context: slots per caption.
        project: width of the tokens that attention sees; None = as they come.
        pooling: "attention", "mean" or "none", of the vector that joins the timestep embedding.
        pool_heads: of attention pooling.
        pool_query: "learned", or "mean": the mean of the tokens and a learned position (DeepFloyd
            IF).
        attend: False leaves attention to the image alone: pooled text is all that it is told.
        norm: LayerNorm before and after pooling (Imagen, section 2.5).
        padding: "mask" hides empty slots; "seen" shows them (DeepFloyd IF), so that the number of
            slots is part of the model.
        null: a dropped caption: "zero" features (Imagen, section 4.1), or "empty": the features of
            the empty caption (DeepFloyd IF).
    """

    width: int
    context: int
    project: int | None = None
    pooling: str = "attention"
    pool_heads: int = 8
    pool_query: str = "learned"
    attend: bool = True
    norm: bool = True
    padding: str = "mask"
    null: str = "zero"

    def __post_init__(self):
        for name in ("width", "context", "pool_heads"):
            positive(f"text.{name}", getattr(self, name))
        one_of("text.pooling", self.pooling, POOLING)
        one_of("text.pool_query", self.pool_query, QUERIES)
        one_of("text.padding", self.padding, PADDING)
        one_of("text.null", self.null, NULLS)
        if self.pooling == "attention":
            divisible("text.width", self.width, self.pool_heads, "choose pool_heads that divides.")
        if not self.attend and self.pooling == "none":
            raise UserError(
                "text.attend is off and text.pooling is 'none', so no text would be read; turn "
                "attend on, or set pooling."
            )


class TextCondition(nn.Module):
    """Projects and pools frozen text features.

    Attributes:
        cfg: the path.
        emb_width: width of the timestep embedding.
        dtype: compute dtype.
    """

    cfg: TextConditionConfig
    emb_width: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self,
        features: Float[Array, " b l d"],
        mask: Bool[Array, " b l"],
        keep: Bool[Array, " b"] | None = None,
    ) -> TextFeatures:
        """Returns the features for the U-Net.

        Args:
            features: of the frozen encoder.
            mask: True at real tokens.
            keep: False replaces a caption by `null`; None keeps all.

        Raises:
            UserError: features of another width or number of slots, or a dropped caption of a
                model without a null of its own.
        """
        cfg = self.cfg
        if features.shape[1:] != (cfg.context, cfg.width):
            raise UserError(
                f"text features are {features.shape[1]} tokens of width {features.shape[2]}; this "
                f"model reads {cfg.context} of width {cfg.width}. Use the text encoder that it was "
                "trained on."
            )
        if keep is not None:
            if cfg.null != "zero":
                raise UserError(
                    "this model has no null caption of its own (text.null is 'empty'); pass the "
                    "features of the empty caption instead of dropping one."
                )
            features, mask = null(features, mask, keep=keep)
        if cfg.padding == "seen":
            mask = jnp.ones_like(mask)
        x = features.astype(self.dtype)
        sequence = x
        if cfg.project:
            axes = ("embed", "context")
            sequence = dense(cfg.project, name="project", axes=axes, dtype=self.dtype)(x)
        return TextFeatures(sequence, self._pooled(x, mask), mask)

    def _pooled(self, x: Float[Array, " b l d"], mask: Bool[Array, " b l"]) -> Array:
        cfg = self.cfg
        if cfg.pooling == "none":
            return jnp.zeros((x.shape[0], self.emb_width), self.dtype)
        x = LayerNorm(name="pool_norm")(x) if cfg.norm else x
        visible = mask[..., None].astype(x.dtype)
        pooled = jnp.sum(x * visible, axis=1) / jnp.maximum(jnp.sum(visible, axis=1), 1)
        if cfg.pooling == "attention":
            query = pooled if cfg.pool_query == "mean" else jnp.zeros_like(pooled)
            pooled = AttentionPooling(cfg.pool_heads, self.dtype, name="pool")(x, query, mask)
        axes = ("embed", "time")
        pooled = dense(self.emb_width, name="pooled", axes=axes, dtype=self.dtype)(pooled)
        return LayerNorm(name="pooled_norm")(pooled) if cfg.norm else pooled


class AttentionPooling(nn.Module):
    """One query that attends to itself and all tokens; its heads are joined without another map.

    Attributes:
        heads: must divide the width.
        dtype: compute dtype.
    """

    heads: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self, x: Float[Array, " b l d"], query: Float[Array, " b d"], mask: Bool[Array, " b l"]
    ) -> Float[Array, " b d"]:
        """Returns the pooled token; a learned vector is added to the query first."""
        width = x.shape[-1]
        position = self.param("position", sharded(normal(width**-0.5), None, "embed"), (1, width))
        query = query + position.astype(self.dtype)
        x = jnp.concatenate([query[:, None], x], axis=1)
        mask = jnp.pad(mask, ((0, 0), (1, 0)), constant_values=True)

        def heads(name: str, tokens: Array) -> Array:
            y = dense(width, name=name, axes=("embed", "heads"), dtype=self.dtype)(tokens)
            return y.reshape(*tokens.shape[:2], self.heads, -1)

        q, k, v = heads("q", x[:, :1]), heads("k", x), heads("v", x)
        return attention(q, k, v, mask=mask[:, None, None, :]).reshape(-1, width)


def null(
    features: Float[Array, " b l d"], mask: Bool[Array, " b l"], *, keep: Bool[Array, " b"]
) -> tuple[Float[Array, " b l d"], Bool[Array, " b l"]]:
    """Returns zeros in place of dropped captions, with the first slot alone in sight.

    One slot stays visible because attention to no key at all has no value (Imagen, section 4.1,
    zeroes the embeddings and leaves open what is attended to). The null is one, whatever the length
    of the caption.
    """
    first = jnp.arange(mask.shape[1])[None] < 1
    return features * keep[:, None, None], jnp.where(keep[:, None], mask, first)
