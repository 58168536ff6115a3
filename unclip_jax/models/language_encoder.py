"""Text encoders that Imagen compares, one of which it keeps frozen: T5 v1.1, BERT and CLIP's.

T5's is pre-norm with relative position biases and a gated MLP (Raffel et al., arXiv 1910.10683;
version 1.1), BERT's post-norm with learned positions (Devlin et al., arXiv 1810.04805). CLIP's text
tower is causal and pre-norm with learned positions (Radford et al., arXiv 2103.00020); Imagen reads
its penultimate layer (arXiv 2205.11487, appendix D.1).
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Int

from unclip_jax.backbones.layers import (
    LayerNorm,
    activation,
    check_tokens,
    compute_dtype,
    dense,
    normal,
    stacked,
)
from unclip_jax.core.checks import UserError, one_of, positive
from unclip_jax.core.types import Mask, Tokens
from unclip_jax.parallel.axes import by_example, sharded

FAMILIES = ("t5", "bert", "clip")
BUCKETS, REACH = 32, 128  # of T5's relative distances: rows of the table, and the farthest one
NEGATIVE = -1e9  # logit of a hidden key


@dataclasses.dataclass(frozen=True)
class LanguageEncoderConfig:
    """Size of the encoder of a language model.

    Attributes:
        family: "t5" (version 1.1, also Flan-T5 and mT5), "bert" or "clip".
        width: of the residual stream.
        depth: number of blocks; of a CLIP without its last one.
        heads: of attention.
        head_width: channels per head; T5's need not add up to the width.
        mlp: hidden width of the MLP.
        vocab_size: rows of the token table.
        context: length of every caption, in tokens.
        positions: tokens that the model was trained for at most; rows of a learned position table.
        eps: of the norms.
        activation: of the MLP of "clip"; the other families have their own.
        remat: "none", "block" or "dots".
        dtype: compute dtype; T5's activations overflow float16.
    """

    family: str
    width: int
    depth: int
    heads: int
    head_width: int
    mlp: int
    vocab_size: int
    context: int
    positions: int = 512
    eps: float = 1e-6
    activation: str = "quick_gelu"
    remat: str = "none"
    dtype: str = "float32"

    def __post_init__(self):
        one_of("config.model.model.family", self.family, FAMILIES)
        for name in ("width", "depth", "heads", "head_width", "mlp", "vocab_size", "context"):
            positive(f"config.model.model.{name}", getattr(self, name))
        if self.context > self.positions:
            raise UserError(
                f"config.model.model.context is {self.context}, but this {self.family} was trained "
                f"on {self.positions} tokens at most; read shorter captions."
            )

    def norm(self, name: str) -> LayerNorm:
        """Returns a norm of this family."""
        return LayerNorm(self.eps, self.family != "t5", name=name)


class LanguageEncoder(nn.Module):
    """Maps token ids to contextual features of every slot."""

    cfg: LanguageEncoderConfig

    @nn.compact
    def __call__(self, tokens: Tokens, token_mask: Mask) -> Float[Array, " b l d"]:
        """Returns features; slots whose mask is False are seen by none, and hold numbers.

        Raises:
            UserError: captions of another length than `context`.
        """
        cfg = self.cfg
        check_tokens(tokens, context=cfg.context)
        dtype, length = compute_dtype(cfg.dtype), tokens.shape[1]
        init = sharded(normal(1.0 if cfg.family == "t5" else 0.02), "vocab", "embed")
        x = jnp.take(self.param("tokens", init, (cfg.vocab_size, cfg.width)), tokens, axis=0)
        bias = jnp.where(token_mask, 0.0, NEGATIVE)[:, None, None, :].astype(jnp.float32)
        if cfg.family == "clip":
            bias = jnp.where(jnp.tri(length, dtype=bool), bias, NEGATIVE)
        if cfg.family == "t5":
            table = self.param(
                "relative", sharded(normal(0.02), None, "heads"), (BUCKETS, cfg.heads)
            )
            rows = jnp.take(table, relative_buckets(length), axis=0)
            bias = bias + rows.transpose(2, 0, 1)[None]
        else:
            init, shape = sharded(normal(0.02), "position", "embed"), (cfg.positions, cfg.width)
            rows = self.param("positions", init, shape)[:length]
            if cfg.family == "bert":
                types = self.param("types", sharded(normal(0.02), None, "embed"), (2, cfg.width))
                rows = types[:1] + rows
            x = x + rows[None]
            x = cfg.norm("first_norm")(x) if cfg.family == "bert" else x
        layers = stacked(LanguageEncoderBlock, depth=cfg.depth, remat=cfg.remat)
        x, _ = layers(cfg, name="blocks")(by_example(x.astype(dtype)), bias)
        return cfg.norm("final_norm")(x) if cfg.family == "t5" else x


class LanguageEncoderBlock(nn.Module):
    """Attention and MLP, each with its norm before it or (BERT) behind it; a scan body."""

    cfg: LanguageEncoderConfig

    @nn.compact
    def __call__(
        self, x: Float[Array, " b l d"], bias: Float[Array, " b #n #l l"]
    ) -> tuple[Float[Array, " b l d"], None]:
        """Applies one layer; `bias` is added to the logits of attention."""
        for name, layer in (("attention", self._attention), ("mlp", self._mlp)):
            norm = self.cfg.norm(f"{name}_norm")
            x = norm(x + layer(x, bias)) if self.cfg.family == "bert" else x + layer(norm(x), bias)
        return by_example(x), None

    def _dense(self, features: int, name: str, *axes: str) -> nn.Dense:
        dtype, bias = compute_dtype(self.cfg.dtype), self.cfg.family != "t5"
        return dense(features, name=name, axes=(axes[0], axes[1]), dtype=dtype, use_bias=bias)

    def _attention(self, x: Array, bias: Array) -> Array:
        """Computes attention, which T5 does not scale by the head width."""
        cfg = self.cfg
        inner, shape = cfg.heads * cfg.head_width, (*x.shape[:2], cfg.heads, cfg.head_width)
        q, k, v = (self._dense(inner, n, "embed", "heads")(x).reshape(shape) for n in "qkv")
        logits = jnp.einsum("b l n k, b m n k -> b n l m", q, k).astype(jnp.float32)
        scale = 1.0 if cfg.family == "t5" else cfg.head_width**-0.5
        weights = jax.nn.softmax(logits * scale + bias, axis=-1).astype(x.dtype)
        y = jnp.einsum("b n l m, b m n k -> b l n k", weights, v)
        return self._dense(cfg.width, "out", "heads", "embed")(y.reshape(*x.shape[:2], inner))

    def _mlp(self, x: Array, bias: Array) -> Array:
        """Applies the MLP, whose hidden units T5 multiplies by a second map."""
        up = self._dense(self.cfg.mlp, "up", "embed", "mlp")(x)
        if self.cfg.family == "t5":
            up = activation("gelu_tanh")(self._dense(self.cfg.mlp, "gate", "embed", "mlp")(x)) * up
        else:
            up = activation("gelu" if self.cfg.family == "bert" else self.cfg.activation)(up)
        return self._dense(self.cfg.width, "down", "mlp", "embed")(up)


def relative_buckets(length: int) -> Int[np.ndarray, " l l"]:
    """Returns the row of T5's bias table for every pair of query and key.

    Sixteen rows for keys before the query or at it, sixteen for those behind it: distances 0 to 7
    have a row each, larger ones share rows of logarithmic size, the last from 91 on.
    """
    exact = BUCKETS // 4
    distance = np.arange(length)[None, :] - np.arange(length)[:, None]
    far = np.maximum(np.abs(distance), 1).astype(np.float32) / np.float32(exact)
    share = np.log(far) / np.float32(math.log(REACH / exact))
    rows = np.minimum(exact + (share * exact).astype(np.int32), 2 * exact - 1)
    rows = np.where(np.abs(distance) < exact, np.abs(distance), rows)
    return rows + np.where(distance > 0, 2 * exact, 0)
