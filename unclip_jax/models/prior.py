"""The diffusion prior's network: a causal transformer over caption, z_txt, t and noised z_img.

    [caption tokens..., z_txt, timestep, noised z_img, query] -> output at the query

Source: unCLIP (arXiv 2204.06125), section 2.2; sizes from its Table 3.
"""

import dataclasses

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from unclip_jax.backbones.layers import compute_dtype, normal
from unclip_jax.backbones.token_denoiser import TokenDenoiser
from unclip_jax.core.checks import UserError, one_of, positive
from unclip_jax.core.types import Embedding, Mask, Steps, Tokens
from unclip_jax.models.text import PADDING, CaptionEmbedding
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


class Prior(TokenDenoiser):
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
        text = self._project("z_txt_in", z_txt)[:, None]
        query = self.param("query", sharded(normal(0.01), "embed"), (cfg.width,))
        out = self._denoised(
            jnp.concatenate([caption, text], axis=1),
            time=self._time(t),
            noised=self._project("x_t_in", x_t)[:, None],
            queries=query[None],
            features=cfg.embed_dim,
            visible=self._visible(token_mask),
        )
        return out[:, 0]

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
        padding = self._table("padding", cfg.context)
        return jnp.where(mask[..., None], x, padding[None].astype(x.dtype))

    def _visible(self, mask: Mask) -> Bool[Array, " b m"] | None:
        """Returns the mask of slots that later ones attend to; None = all."""
        if self.cfg.padding == "learned":
            return None
        return jnp.concatenate([mask, jnp.ones((len(mask), EXTRA), bool)], axis=1)
