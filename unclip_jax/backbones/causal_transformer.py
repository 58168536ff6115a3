"""A causal transformer with a key-value cache for sampling: of the autoregressive prior and DALL-E.

A caption may enter as features, which every layer attends to as further keys and values, before
those of its own tokens (as in GLIDE, arXiv 2112.10741, section 4): a prefix that costs no
positions. Layers may attend by different patterns (`Patterns`). Decoding token by token with the
cache equals one pass over all tokens.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from unclip_jax.backbones.attention import attention
from unclip_jax.backbones.layers import (
    LayerNorm,
    compute_dtype,
    dense,
    normal,
    stacked,
)
from unclip_jax.backbones.transformer import MLP, TransformerConfig
from unclip_jax.core.checks import divisible
from unclip_jax.parallel.axes import by_example

Features = Float[Array, " b l d"]
Text = Float[Array, " b m e"]
Visible = Bool[Array, " p #b 1 l s"]  # p patterns; s slots: the caption's, then those of own tokens


class Patterns(NamedTuple):
    """Masks among own tokens that layers choose from; without them all layers are causal.

    Attributes:
        tables: True where a token (row) attends to another (column); each includes the diagonal.
        order: the number of every layer's table.
    """

    tables: Bool[np.ndarray, " p l l"]
    order: tuple[int, ...]


@struct.dataclass
class Cache:
    """Keys and values: of the caption first, then one slot per own token.

    One layer's are [b s n k]; those of a stack have a leading axis of layers.
    """

    k: Float[Array, " *layers b s n k"]
    v: Float[Array, " *layers b s n k"]


class CausalTransformer(nn.Module):
    """`depth` causal blocks; no norm before the first or after the last."""

    cfg: TransformerConfig

    def __call__(
        self,
        x: Features,
        text: Text | None = None,
        *,
        text_mask: Bool[Array, " b m"] | None = None,
        keep: int = 0,
        patterns: Patterns | None = None,
    ) -> tuple[Features, Cache | None]:
        """Processes all tokens in one pass.

        Args:
            x: own tokens, positions included; the first of those that `patterns` are for.
            text: caption features of any width; None = there are none.
            text_mask: True at caption slots to attend to.
            keep: slots for own tokens in the returned cache; 0 = no cache, as in training.
            patterns: masks of the layers; None = causal.

        Returns:
            Features, and the cache with which `step` continues after these tokens.
        """
        length = x.shape[1]
        own = jnp.tril(jnp.ones((1, length, length), bool))
        if patterns is not None:
            own = jnp.asarray(patterns.tables[:, :length, :length])
        visible = _visible(own, text_mask)
        order = None if patterns is None else jnp.array(patterns.order)
        x, cache = self._stack(x, None, text, visible, None, order, keep=keep > 0)
        if cache is None:
            return x, None
        empty = ((0, 0), (0, 0), (0, keep - length), (0, 0), (0, 0))
        return x, jax.tree.map(lambda leaf: jnp.pad(leaf, empty), cache)

    def step(
        self,
        x: Float[Array, " b 1 d"],
        cache: Cache,
        *,
        position: Int[Array, ""],
        text_mask: Bool[Array, " b m"] | None = None,
        patterns: Patterns | None = None,
    ) -> tuple[Float[Array, " b 1 d"], Cache]:
        """Processes the own token at `position`, after those before it."""
        start = 0 if text_mask is None else text_mask.shape[1]
        own = (jnp.arange(cache.k.shape[2] - start) <= position)[None, None]
        if patterns is not None:
            own = jax.lax.dynamic_slice_in_dim(jnp.asarray(patterns.tables), position, 1, axis=1)
        visible = _visible(own, text_mask)
        order = None if patterns is None else jnp.array(patterns.order)
        x, updated = self._stack(x, cache, None, visible, start + position, order, keep=True)
        assert updated is not None
        return x, updated

    @nn.compact
    def _stack(self, x: Features, *inputs: Any, keep: bool) -> tuple[Features, Cache | None]:
        """Runs the scanned blocks, whose parameters both entry points share."""
        cfg = self.cfg
        divisible("causal transformer width", cfg.width, cfg.heads, "choose heads that divide it.")
        shared = nn.broadcast
        in_axes = (0, shared, shared, shared, 0)
        layers = stacked(Block, depth=cfg.depth, remat=cfg.remat, in_axes=in_axes)
        return layers(cfg, keep, name="blocks")(x, *inputs)


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); a scan body."""

    cfg: TransformerConfig
    keep: bool

    @nn.compact
    def __call__(
        self,
        x: Features,
        cache: Cache | None,
        text: Text | None,
        visible: Visible,
        slot: Int[Array, ""] | None,
        pattern: Int[Array, ""] | None,
    ) -> tuple[Features, Cache | None]:
        """Applies one layer, with either `text` or `cache` and `slot`, by its pattern."""
        visible = visible[0 if pattern is None else pattern]
        x = by_example(x.astype(compute_dtype(self.cfg.dtype)))
        y = LayerNorm(name="norm_1")(x)
        y, cache = TextAttention(self.cfg, name="attention")(y, cache, text, visible, slot)
        x = by_example(x + y)
        x = x + MLP(self.cfg, name="mlp")(LayerNorm(name="norm_2")(x))
        return by_example(x), cache if self.keep else None


class TextAttention(nn.Module):
    """Attention to the caption and to earlier own tokens; initial deviations as in CLIP's code."""

    cfg: TransformerConfig

    @nn.compact
    def __call__(
        self,
        x: Features,
        cache: Cache | None,
        text: Text | None,
        visible: Bool[Array, " #b 1 l s"],
        slot: Int[Array, ""] | None,
    ) -> tuple[Features, Cache]:
        """Returns the attended values, projected to the width, and all keys and values."""
        cfg = self.cfg
        q, k, v = (self._heads(name, x) for name in "qkv")
        if cache is None and text is not None:
            text = text.astype(x.dtype)
            k = jnp.concatenate([self._heads("text_k", text), k], axis=1)
            v = jnp.concatenate([self._heads("text_v", text), v], axis=1)
        elif cache is not None:
            assert slot is not None
            k = jax.lax.dynamic_update_slice_in_dim(cache.k, k, slot, axis=1)
            v = jax.lax.dynamic_update_slice_in_dim(cache.v, v, slot, axis=1)
        y = attention(q, k, v, mask=visible).reshape(x.shape)
        init = normal(cfg.residual_std)
        out = dense(cfg.width, name="out", axes=("heads", "embed"), dtype=x.dtype, init=init)
        return out(y), Cache(k, v)

    def _heads(self, name: str, x: Array) -> Float[Array, " b l n k"]:
        init = normal(x.shape[-1] ** -0.5)
        axes = ("embed", "heads")
        y = dense(self.cfg.width, name=name, axes=axes, dtype=x.dtype, init=init)(x)
        return y.reshape(*x.shape[:2], self.cfg.heads, -1)


def _visible(own: Bool[Array, " p l o"], text_mask: Bool[Array, " b m"] | None) -> Visible:
    """Returns all patterns among own tokens, after the mask of the caption."""
    own = own[:, None, None]
    if text_mask is None:
        return own
    caption = text_mask[None, :, None, None]
    shape = (len(own), len(text_mask), 1, own.shape[3])
    parts = (jnp.broadcast_to(x, (*shape, x.shape[-1])) for x in (caption, own))
    return jnp.concatenate(list(parts), axis=-1)
