"""The autoregressive prior's network: a text encoder and a causal transformer over codes.

    caption (through the text encoder), z_txt, dot token, code 0, code 1, ...
                                           |         |       |
                                           code 0    code 1  code 2

The caption is a prefix that every layer sees as keys and values, because the 384 positions of Table
3 cannot hold 256 caption tokens and 319 codes. The dot token is the bucket of z_img . z_txt, so
that sampling can request a close match. Source: unCLIP (arXiv 2204.06125), section 2.2.
"""

import dataclasses

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from unclip_jax.backbones.causal_transformer import Cache, CausalTransformer
from unclip_jax.backbones.layers import LayerNorm, compute_dtype, dense, normal, zeros
from unclip_jax.backbones.transformer import TransformerConfig
from unclip_jax.core.checks import UserError, one_of
from unclip_jax.core.types import Embedding, Mask, Tokens
from unclip_jax.models.pca_quantizer import Codes, DotQuantizer, DotQuantizerConfig
from unclip_jax.models.text import PADDING, TextEncoder, TextEncoderConfig
from unclip_jax.parallel.axes import sharded

PREFIX = 2  # z_txt and the dot token; the last of them predicts code 0


@dataclasses.dataclass(frozen=True)
class PriorArConfig:
    """Sizes of the autoregressive prior.

    Attributes:
        embed_dim: length z of a CLIP embedding.
        codec: the quantizer of embeddings.
        width: of the causal transformer.
        depth: its blocks.
        heads: its heads.
        latent_context: its positions, for z_txt, the dot token and all codes but the last.
        text_width: of the text encoder.
        text_depth: its blocks.
        text_heads: its heads.
        context: length of every caption.
        vocab_size: rows of the token table.
        padding: "learned" padding vectors, or "mask" to hide empty slots.
        remat: "none", "block" or "dots".
        dtype: compute dtype.
    """

    embed_dim: int
    codec: DotQuantizerConfig
    width: int
    depth: int
    heads: int
    latent_context: int
    text_width: int
    text_depth: int
    text_heads: int
    context: int
    vocab_size: int
    padding: str = "learned"
    remat: str = "none"
    dtype: str = "float32"

    def __post_init__(self):
        one_of("prior_ar.padding", self.padding, PADDING)
        components = self.codec.components
        if components > self.embed_dim:
            raise UserError(
                f"config.model.model.codec.components is {components}, but CLIP embeddings have "
                f"{self.embed_dim} dimensions; keep at most {self.embed_dim}."
            )
        if components > self.most_components:
            raise UserError(
                f"config.model.model.latent_context is {self.latent_context}, which holds "
                f"{self.most_components} codes after z_txt and the dot token, not {components}; "
                f"set it to {components + PREFIX - 1} or more."
            )

    @property
    def most_components(self) -> int:
        """The largest number of codes that positions and embedding allow."""
        return min(self.embed_dim, self.latent_context - PREFIX + 1)

    @property
    def components(self) -> int:
        """Codes per embedding; the largest possible number until the fit has counted them."""
        return self.codec.components or self.most_components

    @property
    def text(self) -> TextEncoderConfig:
        """Config of the caption transformer."""
        return TextEncoderConfig(
            width=self.text_width,
            depth=self.text_depth,
            heads=self.text_heads,
            context=self.context,
            vocab_size=self.vocab_size,
            padding=self.padding,
            remat=self.remat,
            dtype=self.dtype,
        )

    @property
    def decoder(self) -> TransformerConfig:
        """Config of the causal transformer."""
        return TransformerConfig(
            width=self.width,
            depth=self.depth,
            heads=self.heads,
            causal=True,
            remat=self.remat,
            dtype=self.dtype,
        )

    def make_quantizer(self) -> DotQuantizer:
        """Creates the module of the codes; its parameters are fitted, not learned."""
        return DotQuantizer(self.codec, self.components, self.embed_dim)


class PriorAr(nn.Module):
    """Predicts logits of the next code from conditions and earlier codes; uniform when fresh."""

    cfg: PriorArConfig

    def setup(self):
        """Creates the submodules; their names are the parameter paths of checkpoints."""
        cfg, dtype = self.cfg, compute_dtype(self.cfg.dtype)
        width, table = cfg.width, sharded(normal(0.02), "vocab", "embed")
        self.text_encoder = TextEncoder(cfg.text)
        self.null_z_txt = self.param("null_z_txt", sharded(normal(0.02), "z"), (cfg.embed_dim,))
        self.z_txt_in = dense(width, name="z_txt_in", axes=("z", "embed"), dtype=dtype)
        self.dots = self.param("dots", table, (cfg.codec.dot_buckets, width))
        self.codes = self.param("codes", table, (cfg.codec.buckets, width))
        positions = sharded(normal(0.01), "position", "embed")
        self.positions = self.param("positions", positions, (cfg.latent_context, width))
        self.latents = CausalTransformer(cfg.decoder)
        self.final_norm = LayerNorm()
        # float32, for a cross-entropy over a thousand buckets; zero, so that a fresh loss is ln n
        axes, exact = ("embed", "out"), jnp.dtype("float32")
        self.out = dense(cfg.codec.buckets, name="out", axes=axes, dtype=exact, init=zeros)

    def __call__(
        self,
        codes: Codes,
        *,
        dot: Int[Array, " b"],
        tokens: Tokens,
        token_mask: Mask,
        z_txt: Embedding,
        keep_text: Bool[Array, " b"] | None = None,
    ) -> Float[Array, " b k n"]:
        """Computes the logits of every code, conditioned on those before it.

        Args:
            codes: of the true embedding; the last is ignored.
            dot: bucket of z_img . z_txt.
            tokens: caption ids.
            token_mask: True at real tokens.
            z_txt: text embedding, scaled by the caller.
            keep_text: False drops caption *and* z_txt, never the dot token; None keeps all.
        """
        text, text_mask = self._caption(tokens, token_mask, keep_text)
        prefix = self._prefix(dot, z_txt, keep_text)
        own = jnp.concatenate([prefix, jnp.take(self.codes, codes[:, :-1], axis=0)], axis=1)
        x, _ = self.latents(self._positioned(own), text, text_mask=text_mask)
        return self._logits(x[:, PREFIX - 1 :])

    def start(
        self,
        *,
        dot: Int[Array, " b"],
        tokens: Tokens,
        token_mask: Mask,
        z_txt: Embedding,
        keep_text: Bool[Array, " b"] | None = None,
    ) -> tuple[Float[Array, " b n"], Cache]:
        """Computes the logits of code 0 and the cache for `step`; arguments as above."""
        text, text_mask = self._caption(tokens, token_mask, keep_text)
        own = self._positioned(self._prefix(dot, z_txt, keep_text))
        slots = PREFIX + self.cfg.components - 1
        x, cache = self.latents(own, text, text_mask=text_mask, keep=slots)
        assert cache is not None
        return self._logits(x[:, -1:])[:, 0], cache

    def step(
        self,
        code: Int[Array, " b"],
        cache: Cache,
        *,
        index: Int[Array, ""],
        token_mask: Mask,
        keep_text: Bool[Array, " b"] | None = None,
    ) -> tuple[Float[Array, " b n"], Cache]:
        """Computes the logits of code `index` + 1 after sampling `code` as code `index`."""
        position = PREFIX + index
        own = jnp.take(self.codes, code, axis=0)[:, None] + self.positions[position][None, None]
        x, cache = self.latents.step(
            own.astype(compute_dtype(self.cfg.dtype)),
            cache,
            position=position,
            text_mask=self._visible(_drop(token_mask, keep_text)),
        )
        return self._logits(x)[:, 0], cache

    def _caption(
        self, tokens: Tokens, mask: Mask, keep: Bool[Array, " b"] | None
    ) -> tuple[Float[Array, " b l e"], Mask]:
        """Returns caption features and their attention mask; a dropped caption is all padding."""
        mask = _drop(mask, keep)
        return self.text_encoder(tokens, mask), self._visible(mask)

    def _visible(self, mask: Mask) -> Mask:
        return mask if self.cfg.padding == "mask" else jnp.ones_like(mask)

    def _prefix(
        self, dot: Int[Array, " b"], z_txt: Embedding, keep: Bool[Array, " b"] | None
    ) -> Float[Array, " b l d"]:
        """Returns the tokens z_txt and dot."""
        if keep is not None:
            z_txt = jnp.where(keep[:, None], z_txt, self.null_z_txt[None].astype(z_txt.dtype))
        text = self.z_txt_in(z_txt.astype(compute_dtype(self.cfg.dtype)))
        return jnp.stack([text.astype(jnp.float32), jnp.take(self.dots, dot, axis=0)], axis=1)

    def _positioned(self, x: Float[Array, " b l d"]) -> Float[Array, " b l d"]:
        """Adds the first positions."""
        x = x + self.positions[None, : x.shape[1]]
        return x.astype(compute_dtype(self.cfg.dtype))

    def _logits(self, x: Float[Array, " b l d"]) -> Float[Array, " b l n"]:
        return self.out(self.final_norm(x).astype(jnp.float32))


def _drop(mask: Mask, keep: Bool[Array, " b"] | None) -> Mask:
    return mask if keep is None else mask & keep[:, None]
