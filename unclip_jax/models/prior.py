"""The diffusion prior's network: a causal transformer over caption, z_txt, t and noised z_img.

    [caption tokens..., z_txt, timestep, noised z_img, query] -> output at the query

Source: unCLIP (arXiv 2204.06125), section 2.2; sizes from its Table 3.
"""

import dataclasses

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from unclip_jax.core.checks import UserError, one_of, positive
from unclip_jax.core.types import Embedding, Mask, Steps, Tokens
from unclip_jax.models.layers import LayerNorm, TimeEmbedding, compute_dtype, dense, normal
from unclip_jax.models.text import PADDING, CaptionEmbedding
from unclip_jax.models.transformer import Transformer, TransformerConfig
from unclip_jax.parallel.axes import sharded

CAPTIONS = ("tokens", "clip_sequence")
NULLS = ("learned", "empty")
EXTRA = 4  # z_txt, timestep, noised z_img, query


@dataclasses.dataclass(frozen=True)
class PriorConfig:
    """Size of the prior and its form of captions.

    Attributes:
        embed_dim: length z of a CLIP embedding.
        width: of the transformer.
        depth: its blocks.
        heads: its heads.
        context: length of every caption.
        vocab_size: rows of the token table.
        caption: "tokens": own embeddings, trained from scratch (the reading of Table 3);
            "clip_sequence": projected token features of the frozen CLIP (Karlo).
        clip_text_width: width of those features.
        padding: "learned" padding vectors, or "mask" to hide empty slots.
        null: the null caption: "learned" vectors of the network, or "empty", CLIP's features of the
            empty caption, provided by the caller (Karlo).
        num_timesteps: length of the trained chain.
        remat: "none", "block" or "dots".
        dtype: compute dtype.
    """

    embed_dim: int
    width: int
    depth: int
    heads: int
    context: int
    vocab_size: int
    caption: str = "tokens"
    clip_text_width: int | None = None
    padding: str = "learned"
    null: str = "learned"
    num_timesteps: int = 1000
    remat: str = "none"
    dtype: str = "float32"

    def __post_init__(self):
        one_of("prior.caption", self.caption, CAPTIONS)
        one_of("prior.padding", self.padding, PADDING)
        one_of("prior.null", self.null, NULLS)
        if self.null == "empty" and (self.caption, self.padding) != ("clip_sequence", "mask"):
            raise UserError(
                f"prior.null 'empty' needs prior.caption 'clip_sequence' and prior.padding 'mask', "
                f"not {self.caption!r} and {self.padding!r}."
            )
        if self.caption == "clip_sequence":
            if self.clip_text_width is None:
                raise UserError(
                    "prior.caption 'clip_sequence' needs prior.clip_text_width, the width of "
                    "CLIP's text tower."
                )
            positive("prior.clip_text_width", self.clip_text_width)


class Prior(nn.Module):
    """Predicts the target (x_0 in the paper) from noised z_img and its conditions."""

    cfg: PriorConfig

    @nn.compact
    def __call__(
        self,
        x_t: Embedding,
        t: Steps,
        *,
        tokens: Tokens,
        token_mask: Mask,
        z_txt: Embedding,
        text_seq: Float[Array, " b l e"] | None = None,
        keep_text: Bool[Array, " b"] | None = None,
    ) -> Embedding:
        """Computes the raw output, one embedding per row.

        Args:
            x_t: noised image embedding, scaled.
            t: timesteps of the trained chain.
            tokens: caption ids.
            token_mask: True at real tokens.
            z_txt: text embedding, scaled like x_t.
            text_seq: CLIP's token features, for caption "clip_sequence".
            keep_text: False drops caption *and* z_txt, never x_t; None keeps all.

        Raises:
            UserError: `text_seq` missing, unexpected, or of another width than configured; a
                `keep_text` without a learned null.
        """
        cfg, dtype = self.cfg, compute_dtype(self.cfg.dtype)
        if cfg.null == "learned":
            null = self.param("null_z_txt", sharded(normal(0.02), "z"), (cfg.embed_dim,))
            if keep_text is not None:
                token_mask = token_mask & keep_text[:, None]
                z_txt = jnp.where(keep_text[:, None], z_txt, null[None].astype(z_txt.dtype))
        elif keep_text is not None:
            raise UserError(
                "this prior has no learned null (prior.null is 'empty'); instead of dropping a "
                "caption pass CLIP's features of the empty one."
            )
        caption = self._caption(tokens, token_mask, text_seq).astype(dtype)
        time = TimeEmbedding(cfg.width, cfg.width, cfg.num_timesteps, dtype, name="time")(t)
        text = self._project("z_txt_in", z_txt)
        image = self._project("x_t_in", x_t)
        query = self.param("query", sharded(normal(0.01), "embed"), (cfg.width,))
        query = jnp.broadcast_to(query[None].astype(dtype), image.shape)
        tail = jnp.stack([text, time, image, query], axis=1)
        x = self._positioned(jnp.concatenate([caption, tail], axis=1))
        x = Transformer(self._stack(), name="transformer")(x, self._visible(token_mask))
        x = LayerNorm(name="final_norm")(x[:, -1])
        return dense(cfg.embed_dim, name="out", axes=("embed", "z"), dtype=dtype)(x).astype(
            jnp.float32
        )

    def _caption(self, tokens: Tokens, mask: Mask, text_seq: Array | None) -> Array:
        cfg = self.cfg
        if cfg.caption == "tokens":
            if text_seq is not None:
                raise UserError("this prior reads token ids; do not pass text_seq.")
            embed = CaptionEmbedding(
                cfg.vocab_size, cfg.context, cfg.width, positions=False, name="captions"
            )
            return embed(tokens, mask)
        if text_seq is None:
            raise UserError("this prior reads CLIP's token features; pass text_seq.")
        if text_seq.shape[-1] != cfg.clip_text_width:
            raise UserError(
                f"text_seq has width {text_seq.shape[-1]}; prior.clip_text_width is "
                f"{cfg.clip_text_width}. Use the CLIP of this prior."
            )
        x = self._project("text_seq_in", text_seq)
        if cfg.null == "empty":  # slots without a token are hidden then
            return x
        init = sharded(normal(0.01), "position", "embed")
        padding = self.param("padding", init, (cfg.context, cfg.width))
        return jnp.where(mask[..., None], x, padding[None].astype(x.dtype))

    def _project(self, name: str, x: Array) -> Array:
        """Projects embeddings or features to the width."""
        dtype = compute_dtype(self.cfg.dtype)
        return dense(self.cfg.width, name=name, axes=("z", "embed"), dtype=dtype)(x.astype(dtype))

    def _positioned(self, x: Array) -> Array:
        """Adds a learned position to all slots (initial deviation 0.01)."""
        init = sharded(normal(0.01), "position", "embed")
        shape = (self.cfg.context + EXTRA, self.cfg.width)
        return x + self.param("positions", init, shape)[None].astype(x.dtype)

    def _visible(self, mask: Mask) -> Bool[Array, " b m"] | None:
        """Returns the mask of slots that later ones attend to; None = all."""
        if self.cfg.padding == "learned":
            return None
        return jnp.concatenate([mask, jnp.ones((len(mask), EXTRA), bool)], axis=1)

    def _stack(self) -> TransformerConfig:
        cfg = self.cfg
        return TransformerConfig(
            width=cfg.width,
            depth=cfg.depth,
            heads=cfg.heads,
            causal=True,
            remat=cfg.remat,
            dtype=cfg.dtype,
        )
