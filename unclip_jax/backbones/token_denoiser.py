"""The trunk of diffusion priors: one transformer over conditions, timestep and noised tokens.

    [conditions..., timestep, noised tokens..., queries...] -> outputs at the queries

Source: unCLIP (arXiv 2204.06125), section 2.2, with one noised token and one query.
"""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from unclip_jax.backbones.layers import LayerNorm, TimeEmbedding, compute_dtype, dense, normal
from unclip_jax.backbones.transformer import Transformer, TransformerConfig
from unclip_jax.core.types import Steps
from unclip_jax.parallel.axes import sharded


class TokenDenoiser(nn.Module):
    """Base class of networks that denoise tokens by attention to tokens of conditions.

    A subclass embeds its conditions, then calls `_denoised`. Its config has the fields width,
    depth, heads, num_timesteps, remat and dtype.

    Attributes:
        cfg: of the network.
    """

    cfg: Any

    def _time(self, t: Steps) -> Float[Array, " b d"]:
        """Returns the embedding of the timesteps."""
        cfg, dtype = self.cfg, compute_dtype(self.cfg.dtype)
        return TimeEmbedding(cfg.width, cfg.width, cfg.num_timesteps, dtype, name="time")(t)

    def _project(self, name: str, x: Array) -> Array:
        """Projects embeddings or features to the width."""
        dtype = compute_dtype(self.cfg.dtype)
        return dense(self.cfg.width, name=name, axes=("z", "embed"), dtype=dtype)(x.astype(dtype))

    def _table(self, name: str, rows: int) -> Float[Array, " l d"]:
        """Returns learned vectors of the width, one per row (initial deviation 0.01)."""
        init = sharded(normal(0.01), "position", "embed")
        return self.param(name, init, (rows, self.cfg.width))

    def _denoised(
        self,
        conditions: Float[Array, " b l d"],
        *,
        time: Float[Array, " b d"],
        noised: Float[Array, " b m d"],
        queries: Float[Array, " q d"] | None,
        features: int,
        visible: Bool[Array, " b s"] | None = None,
        causal: bool = True,
    ) -> Float[Array, " b n features"]:
        """Computes one output per query in float32; per noised token where there are no queries.

        Args:
            conditions: tokens of all conditions.
            time: embedding of the timestep.
            noised: projected noised tokens.
            queries: learned tokens whose outputs are read; None = those of the noised tokens are.
            features: of an output.
            visible: True at slots that later ones attend to; None = all.
            causal: slots attend to themselves and earlier ones only.
        """
        cfg, dtype = self.cfg, compute_dtype(self.cfg.dtype)
        parts, count = [conditions, time[:, None], noised], noised.shape[1]
        if queries is not None:
            count = queries.shape[0]
            repeated = jnp.broadcast_to(queries[None].astype(dtype), (len(time), *queries.shape))
            parts.append(repeated)
        x = jnp.concatenate([part.astype(dtype) for part in parts], axis=1)
        x = x + self._table("positions", x.shape[1])[None].astype(x.dtype)
        stack = TransformerConfig(
            width=cfg.width,
            depth=cfg.depth,
            heads=cfg.heads,
            causal=causal,
            remat=cfg.remat,
            dtype=cfg.dtype,
        )
        x = Transformer(stack, name="transformer")(x, visible)
        x = LayerNorm(name="final_norm")(x[:, -count:])
        out = dense(features, name="out", axes=("embed", "z"), dtype=dtype)(x)
        return out.astype(jnp.float32)
