"""A pre-norm transformer, scanned over its layers: CLIP's towers, text encoders, the prior.

Parameters of all layers are stacked along a leading "layers" axis, so compile time does not grow
with depth. Queries, keys and values have separate kernels because every public checkpoint can be
converted to that form.
"""

import dataclasses

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from unclip_jax.backbones.attention import attention
from unclip_jax.backbones.layers import (
    LayerNorm,
    activation,
    compute_dtype,
    dense,
    normal,
    stacked,
)
from unclip_jax.core.checks import divisible
from unclip_jax.parallel.axes import by_example


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """A stack of identical blocks.

    Attributes:
        width: of the residual stream.
        depth: number of blocks.
        heads: must divide the width.
        causal: token i attends to tokens 0..i only.
        mlp_ratio: hidden width of the MLP over width (rounded to an integer).
        activation: "gelu" (exact) or "quick_gelu".
        remat: "none", "block" or "dots"; see `layers.rematerialised`.
        dtype: compute dtype, "float32" or "bfloat16".
    """

    width: int
    depth: int
    heads: int
    causal: bool
    mlp_ratio: float = 4.0
    activation: str = "gelu"
    remat: str = "none"
    dtype: str = "float32"

    @property
    def hidden(self) -> int:
        """Hidden width of the MLP."""
        return round(self.width * self.mlp_ratio)

    @property
    def residual_std(self) -> float:
        """Deviation of the maps that write to the residual stream: d^-1/2 (2 depth)^-1/2."""
        return (self.width * 2 * self.depth) ** -0.5


class Transformer(nn.Module):
    """`depth` blocks; no norm before the first or after the last."""

    cfg: TransformerConfig

    @nn.compact
    def __call__(
        self, x: Float[Array, " b l d"], key_mask: Bool[Array, " b l"] | None = None
    ) -> Float[Array, " b l d"]:
        """Runs the stack.

        Args:
            x: token features, converted to the compute dtype.
            key_mask: True at tokens to attend to. Every token attends to itself, so a row whose
                keys are all masked stays finite.

        Raises:
            UserError: the heads do not divide the width.
        """
        cfg = self.cfg
        divisible("transformer width", cfg.width, cfg.heads, "choose heads that divide it.")
        layers = stacked(Block, depth=cfg.depth, remat=cfg.remat)
        mask = None if key_mask is None else _visible(key_mask)
        x = by_example(x.astype(compute_dtype(cfg.dtype)))
        x, _ = layers(cfg, name="blocks")(x, mask)
        return x


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); a scan body, so it returns (x, None)."""

    cfg: TransformerConfig

    @nn.compact
    def __call__(
        self, x: Float[Array, " b l d"], mask: Bool[Array, " b 1 l l"] | None
    ) -> tuple[Float[Array, " b l d"], None]:
        """Applies one layer; `mask` is None or includes the diagonal."""
        x = x + SelfAttention(self.cfg, name="attention")(LayerNorm(name="norm_1")(x), mask)
        x = x + MLP(self.cfg, name="mlp")(LayerNorm(name="norm_2")(by_example(x)))
        return by_example(x), None


class SelfAttention(nn.Module):
    """Multi-head self-attention; initial deviations as in OpenAI's CLIP code."""

    cfg: TransformerConfig

    @nn.compact
    def __call__(
        self, x: Float[Array, " b l d"], mask: Bool[Array, " b 1 l l"] | None
    ) -> Float[Array, " b l d"]:
        """Returns the attended values, projected to the width."""
        cfg, dtype = self.cfg, compute_dtype(self.cfg.dtype)
        init = normal(cfg.width**-0.5)

        def heads(name: str) -> Array:
            y = dense(cfg.width, name=name, axes=("embed", "heads"), dtype=dtype, init=init)(x)
            return y.reshape(*x.shape[:2], cfg.heads, -1)

        y = attention(heads("q"), heads("k"), heads("v"), mask=mask, causal=cfg.causal)
        init = normal(cfg.residual_std)
        out = dense(cfg.width, name="out", axes=("heads", "embed"), dtype=dtype, init=init)
        return out(y.reshape(x.shape))


class MLP(nn.Module):
    """Linear, activation, Linear."""

    cfg: TransformerConfig

    @nn.compact
    def __call__(self, x: Float[Array, " b l d"]) -> Float[Array, " b l d"]:
        """Applies both maps to every token."""
        cfg, dtype = self.cfg, compute_dtype(self.cfg.dtype)
        init = normal((2 * cfg.width) ** -0.5)
        x = dense(cfg.hidden, name="fc_1", axes=("embed", "mlp"), dtype=dtype, init=init)(x)
        x = activation(cfg.activation)(x)
        init = normal(cfg.residual_std)
        return dense(cfg.width, name="fc_2", axes=("mlp", "embed"), dtype=dtype, init=init)(x)


def _visible(key_mask: Bool[Array, " b l"]) -> Bool[Array, " b 1 l l"]:
    """Returns the key mask with the diagonal set."""
    diagonal = jnp.eye(key_mask.shape[1], dtype=bool)[None, None]
    return key_mask[:, None, None, :] | diagonal
