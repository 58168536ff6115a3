"""The autoregressive prior between any two embedding spaces: codes of the target, one by one.

    conditions, then   start, code 0, code 1, ...
                       |      |       |
                       code 0 code 1  code 2

Conditions are a prefix that every layer sees as keys and values, as the caption is in the paper's
autoregressive prior (unCLIP, arXiv 2204.06125, section 2.2). In addition the input that predicts
code i holds the bucket of coordinate i of a linear prediction of the target.
"""

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from unclip_jax.backbones.causal_transformer import Cache, CausalTransformer
from unclip_jax.backbones.layers import LayerNorm, compute_dtype, dense, normal, zeros
from unclip_jax.backbones.transformer import TransformerConfig
from unclip_jax.models.condition_tokens import ConditionedTokens, Conditions, Masks
from unclip_jax.models.embedding_prior import EmbeddingPriorConfig
from unclip_jax.models.pca_quantizer import Codes
from unclip_jax.parallel.axes import sharded


class Prefix(ConditionedTokens):
    """Embeds conditions."""

    cfg: EmbeddingPriorConfig

    @nn.compact
    def __call__(
        self, conditions: Conditions, masks: Masks, keep: Bool[Array, " b c"] | None
    ) -> Float[Array, " b l d"]:
        """Returns the tokens of all conditions; learned vectors where `keep` is False."""
        tokens = self._conditions(conditions, masks, keep)
        return tokens + self._table("positions", tokens.shape[1])[None].astype(tokens.dtype)


class EmbeddingCodes(nn.Module):
    """Predicts logits of the next code from conditions and earlier codes; uniform when fresh."""

    cfg: EmbeddingPriorConfig

    def setup(self):
        """Creates the submodules; their names are the parameter paths of checkpoints."""
        cfg = self.cfg
        buckets, width = cfg.codec.buckets, cfg.width
        table = sharded(normal(0.02), "vocab", "embed")
        self.prefix = Prefix(cfg)
        self.start_token = self.param("start", sharded(normal(0.02), "embed"), (width,))
        self.codes = self.param("codes", table, (buckets, width))
        if cfg.ridge:  # the last row is for conditions that are not complete
            self.ridge_codes = self.param("ridge_codes", table, (buckets + 1, width))
        positions = sharded(normal(0.01), "position", "embed")
        self.positions = self.param("positions", positions, (cfg.components, width))
        self.latents = CausalTransformer(
            TransformerConfig(
                width=width,
                depth=cfg.depth,
                heads=cfg.heads,
                causal=True,
                remat=cfg.remat,
                dtype=cfg.dtype,
            )
        )
        self.final_norm = LayerNorm()
        # float32 for a cross-entropy over buckets; zero, so that a fresh loss is ln n
        axes, exact = ("embed", "out"), jnp.dtype("float32")
        self.out = dense(buckets, name="out", axes=axes, dtype=exact, init=zeros)

    def __call__(
        self,
        codes: Codes,
        *,
        conditions: Conditions,
        masks: Masks,
        keep: Bool[Array, " b c"] | None = None,
        ridge: Codes | None = None,
    ) -> Float[Array, " b k n"]:
        """Computes the logits of every code, conditioned on those before it.

        Args:
            codes: of the true target; the last is ignored.
            conditions: by name; standardised by the caller.
            masks: of sequences whose lengths differ, by name.
            keep: False replaces condition c of an example by learned nulls; None keeps all.
            ridge: codes of a linear prediction of the target, dropped with any condition.
        """
        prefix = self.prefix(conditions, masks, keep)
        start = jnp.broadcast_to(self.start_token, (len(codes), 1, self.cfg.width))
        own = jnp.concatenate([start, jnp.take(self.codes, codes[:, :-1], axis=0)], axis=1)
        own = own + self.positions[None] + self._linear(ridge, keep)
        x, _ = self.latents(self._cast(own), prefix, text_mask=_all(prefix))
        return self._logits(x)

    def start(
        self,
        *,
        conditions: Conditions,
        masks: Masks,
        keep: Bool[Array, " b c"] | None = None,
        ridge: Codes | None = None,
    ) -> tuple[Float[Array, " b n"], Cache]:
        """Computes the logits of code 0 and the cache for `step`; arguments as above."""
        prefix = self.prefix(conditions, masks, keep)
        linear = self._linear(None if ridge is None else ridge[:, :1], keep)
        own = jnp.broadcast_to(self.start_token, (len(prefix), 1, self.cfg.width))
        own = own + self.positions[None, :1] + linear
        slots = self.cfg.components
        x, cache = self.latents(self._cast(own), prefix, text_mask=_all(prefix), keep=slots)
        assert cache is not None
        return self._logits(x)[:, 0], cache

    def step(
        self,
        code: Int[Array, " b"],
        cache: Cache,
        *,
        index: Int[Array, ""],
        keep: Bool[Array, " b c"] | None = None,
        ridge: Codes | None = None,
    ) -> tuple[Float[Array, " b n"], Cache]:
        """Computes the logits of code `index` + 1 after sampling `code` as code `index`."""
        position = index + 1
        own = jnp.take(self.codes, code, axis=0)[:, None] + self.positions[position][None, None]
        if ridge is not None:
            own = own + self._linear(jnp.take(ridge, position, axis=1)[:, None], keep)
        prefix = cache.k.shape[2] - self.cfg.components
        text_mask = jnp.ones((len(code), prefix), bool)
        x, cache = self.latents.step(self._cast(own), cache, position=position, text_mask=text_mask)
        return self._logits(x)[:, 0], cache

    def _linear(
        self, ridge: Codes | None, keep: Bool[Array, " b c"] | None
    ) -> Float[Array, " b k d"] | float:
        """Returns the embeddings of the codes of the linear prediction."""
        if not self.cfg.ridge:
            return 0.0
        assert ridge is not None, "this network reads a linear prediction"
        if keep is not None:
            ridge = jnp.where(jnp.all(keep, axis=1)[:, None], ridge, self.cfg.codec.buckets)
        return jnp.take(self.ridge_codes, ridge, axis=0)

    def _cast(self, x: Float[Array, " b k d"]) -> Float[Array, " b k d"]:
        return x.astype(compute_dtype(self.cfg.dtype))

    def _logits(self, x: Float[Array, " b k d"]) -> Float[Array, " b k n"]:
        return self.out(self.final_norm(x).astype(jnp.float32))


def _all(prefix: Float[Array, " b l d"]) -> Bool[Array, " b l"]:
    return jnp.ones(prefix.shape[:2], bool)
