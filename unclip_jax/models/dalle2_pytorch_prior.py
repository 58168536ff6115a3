"""The prior networks of DALLE2-pytorch and MindEye2, for weights that were trained with them.

    [caption features..., z_txt..., timestep..., noised target..., query]      DALLE2-pytorch
    [condition..., timestep..., noised target..., queries (or none)]           MindEye2

Both have the same transformer: attention with one head of keys and values (arXiv 1911.02150), by
cosine with a fixed scale, with a learned null key, rotary positions (arXiv 2104.09864) and a table
of relative distances (T5, arXiv 1910.10683, appendix); gated MLPs (arXiv 2002.05202); norms before
and after attention. Tokens have the width of the embedding. Sources, read for the arithmetic:
lucidrains/DALLE2-pytorch (DiffusionPriorNetwork) and MedARC-AI/MindEyeV2 (PriorNetwork).
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from unclip_jax.backbones.layers import EPS, compute_dtype, dense, fan_in_normal, normal, ones
from unclip_jax.core.checks import UserError, one_of, positive
from unclip_jax.core.types import Steps
from unclip_jax.parallel.axes import sharded

QUERIES = ("last", "tokens", "positions", "all_positions", "none")
BUCKETS, DISTANCE = 32, 128  # of the table of relative distances
SCALE = 16.0  # of cosines
ROTARY = 32  # features of a head that are rotated, at most

Tokens = Float[Array, " b l d"]


@dataclasses.dataclass(frozen=True)
class Dalle2PytorchConfig:
    """Sizes and variant of the transformer.

    Attributes:
        depth: its blocks.
        heads: heads of queries.
        head_dim: size of a head.
        mlp_ratio: hidden width of the MLP over the width.
        context: length of caption features; 0 = none are read (MindEye2).
        text_tokens: tokens of the text embedding.
        time_tokens: tokens of the timestep.
        image_tokens: tokens of a noised vector.
        time_table: one learned embedding per timestep; False = an MLP on sines.
        queries: learned queries: one "last" (DALLE2-pytorch); "tokens", one per target token;
            "positions" added to the target tokens or to "all_positions"; or "none" (MindEye2).
        causal: slots attend to themselves and earlier ones.
        norm_in: normalise tokens first.
        norm_out: normalise the output.
        project: project the output.
        norm_hidden: normalise the hidden units of the MLP.
        rotary: rotate queries and keys.
    """

    depth: int
    heads: int
    head_dim: int
    mlp_ratio: float = 4.0
    context: int = 0
    text_tokens: int = 1
    time_tokens: int = 1
    image_tokens: int = 1
    time_table: bool = True
    queries: str = "last"
    causal: bool = True
    norm_in: bool = False
    norm_out: bool = True
    project: bool = True
    norm_hidden: bool = False
    rotary: bool = True

    def __post_init__(self):
        one_of("dalle2_pytorch.queries", self.queries, QUERIES)
        for name in ("depth", "heads", "head_dim", "text_tokens", "time_tokens", "image_tokens"):
            positive(f"dalle2_pytorch.{name}", getattr(self, name))


class Dalle2PytorchNetwork(nn.Module):
    """Predicts the target of a diffusion from tokens of the conditions.

    Attributes:
        cfg: of the transformer.
        tokens: length of the target.
        width: of the target and of all tokens.
        num_timesteps: rows of the table of timesteps.
        dtype: compute dtype.
    """

    cfg: Dalle2PytorchConfig
    tokens: int
    width: int
    num_timesteps: int
    dtype: str = "float32"

    @nn.compact
    def __call__(
        self,
        x_t: Tokens,
        t: Steps,
        *,
        condition: Float[Array, " b m d"],
        features: Float[Array, " b c d"] | None = None,
        features_mask: Bool[Array, " b c"] | None = None,
        keep: Bool[Array, " b"] | None = None,
        keep_features: Bool[Array, " b"] | None = None,
    ) -> Tokens:
        """Computes the raw output, one token per token of `x_t`.

        Args:
            x_t: noised target.
            t: timesteps.
            condition: z_txt as one token, or a sequence as long as the target.
            features: of the caption's tokens.
            features_mask: True at real tokens; others are replaced by learned vectors.
            keep: False drops `condition`. Where everything is dropped, so is the noised target, as
                those libraries do for guidance.
            keep_features: False drops `features`.

        Raises:
            UserError: features of another length, or features that are not read.
        """
        cfg, size = self.cfg, len(x_t)
        every = jnp.ones(size, bool)
        keep = every if keep is None else keep
        keep_features = every if keep_features is None else keep_features
        parts = []
        if cfg.context:
            parts.append(self._features(features, features_mask, keep_features, size))
        elif features is not None:
            raise UserError("this prior reads no caption features; leave them out.")
        any_kept = keep | keep_features if cfg.context else keep
        lone = cfg.queries == "last"
        condition = self._spread("text_in", condition, cfg.text_tokens) if lone else condition
        rows = cfg.text_tokens if lone else self.tokens
        parts.append(self._or_null("null_condition", condition, keep, rows))
        parts.append(self._time(t))
        x = self._spread("image_in", x_t, cfg.image_tokens) if lone else x_t
        parts.append(self._or_null("null_image", x, any_kept, 1 if lone else self.tokens))
        return self._transformed(self._with_queries(parts))[:, -self.tokens :]

    def _with_queries(self, parts: list[Array]) -> Tokens:
        """Joins the tokens and adds the learned queries or positions."""
        cfg, size = self.cfg, len(parts[0])
        if cfg.queries == "none":
            return jnp.concatenate(parts, axis=1)
        if cfg.queries == "last":
            query = self.param("query", sharded(normal(1.0), "embed"), (self.width,))[None]
        else:
            every = sum(part.shape[1] for part in parts)
            rows = every if cfg.queries == "all_positions" else self.tokens
            query = self._vectors("query", rows)
        if cfg.queries == "positions":
            parts = [*parts[:-1], parts[-1] + query[None]]
        if cfg.queries in ("last", "tokens"):
            parts = [*parts, jnp.broadcast_to(query[None], (size, *query.shape))]
        x = jnp.concatenate(parts, axis=1)
        return x + query[None] if cfg.queries == "all_positions" else x

    def _vectors(self, name: str, rows: int) -> Float[Array, " l d"]:
        return self.param(name, sharded(normal(1.0), None, "embed"), (rows, self.width))

    def _or_null(self, name: str, x: Tokens, keep: Bool[Array, " b"], rows: int) -> Tokens:
        null = self._vectors(name, rows)
        return jnp.where(keep[:, None, None], x, null[None].astype(x.dtype))

    def _spread(self, name: str, x: Tokens, count: int) -> Float[Array, " b n d"]:
        """Projects the only token to several; one stays as it is."""
        if count == 1:
            return x
        dtype = compute_dtype(self.dtype)
        layer = dense(count * self.width, name=name, axes=("z", "embed"), dtype=dtype)
        return layer(x[:, 0]).reshape(len(x), count, self.width)

    def _features(
        self, x: Array | None, mask: Array | None, keep: Bool[Array, " b"], size: int
    ) -> Tokens:
        """Returns caption features with learned vectors in place of padding, or those alone."""
        null = self._vectors("null_features", self.cfg.context)
        if x is None:
            return jnp.broadcast_to(null[None], (size, *null.shape))
        if x.shape[1:] != null.shape:
            raise UserError(
                f"features have shape {list(x.shape[1:])}; this prior takes {list(null.shape)}. "
                "Use the CLIP that it was trained on."
            )
        real = keep[:, None] if mask is None else mask & keep[:, None]
        return jnp.where(real[..., None], x, null[None].astype(x.dtype))

    def _time(self, t: Steps) -> Tokens:
        cfg, d = self.cfg, self.width
        out = d * cfg.time_tokens
        if cfg.time_table:
            init = sharded(normal(1.0), None, "embed")
            table = self.param("time_table", init, (self.num_timesteps, out))
            x = jnp.take(table, t.astype(jnp.int32), axis=0)
        else:
            half = d // 2
            rates = np.exp(np.arange(half) * -(math.log(10000.0) / (half - 1)))
            angles = t.astype(jnp.float32)[:, None] * jnp.asarray(rates, jnp.float32)[None]
            x = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
            dtype = compute_dtype(self.dtype)
            for index, width in enumerate((2 * out, 2 * out, out)):
                layer = dense(width, name=f"time_{index}", axes=("time", "time"), dtype=dtype)
                x = layer(x if index == 0 else jax.nn.silu(x))
        return x.reshape(len(t), cfg.time_tokens, d)

    def _transformed(self, x: Tokens) -> Tokens:
        cfg, length, dtype = self.cfg, x.shape[1], compute_dtype(self.dtype)
        x = x.astype(dtype)
        if cfg.norm_in:
            x = Gain(name="norm_in")(x)
        init = sharded(normal(1.0), None, "heads")
        table = self.param("distances", init, (BUCKETS, cfg.heads))
        bias = jnp.moveaxis(jnp.take(table, distance_buckets(length), axis=0), -1, 0)
        for index in range(cfg.depth):
            x = x + Dalle2Attention(cfg, dtype, name=f"attention_{index}")(x, bias)
            x = x + Dalle2Mlp(cfg, dtype, name=f"mlp_{index}")(x)
        if cfg.norm_out:
            x = Gain(stable=True, name="norm_out")(x)
        if cfg.project:
            x = _linear(self.width, "out", ("embed", "z"), dtype)(x)
        return x.astype(jnp.float32)


class Gain(nn.Module):
    """Layer normalisation with a gain alone; `stable` divides by the largest entry first."""

    stable: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        """Returns `x` normalised, in its own dtype."""
        gain = self.param("scale", sharded(ones, "norm"), (x.shape[-1],))
        wide = x.astype(jnp.float32)
        if self.stable:
            wide = wide / jax.lax.stop_gradient(jnp.max(wide, axis=-1, keepdims=True))
        centred = wide - jnp.mean(wide, axis=-1, keepdims=True)
        rate = jax.lax.rsqrt(jnp.mean(centred**2, axis=-1, keepdims=True) + EPS)
        return (centred * rate * gain.reshape((1,) * (x.ndim - 1) + (-1,))).astype(x.dtype)


class Dalle2Attention(nn.Module):
    """Multi-query attention by cosine, with a null key; see the module docstring."""

    cfg: Dalle2PytorchConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Tokens, bias: Float[Array, " n l m"]) -> Tokens:
        """Returns the attended values; `bias` is added to the scores of m = l + 1 keys."""
        cfg, (size, length, width) = self.cfg, x.shape
        k = cfg.head_dim
        x = Gain(name="norm")(x)
        queries = _linear(cfg.heads * k, "q", ("embed", "heads"), self.dtype)(x)
        queries = queries.reshape(size, length, cfg.heads, k)
        keys, values = jnp.split(_linear(2 * k, "kv", ("embed", None), self.dtype)(x), 2, axis=-1)
        if cfg.rotary:
            queries, keys = rotated(queries), rotated(keys[:, :, None])[:, :, 0]
        null = self.param("null_kv", sharded(normal(1.0), None, None), (2, k)).astype(x.dtype)
        null = jnp.broadcast_to(null[None], (size, 2, k))
        keys = jnp.concatenate([null[:, :1], keys], axis=1)
        values = jnp.concatenate([null[:, 1:], values], axis=1)
        scores = SCALE * jnp.einsum("b l n k, b m k -> b n l m", _unit(queries), _unit(keys))
        scores = scores.astype(jnp.float32) + bias[None]
        if cfg.causal:
            later = np.triu(np.ones((length, length + 1), bool), 2)
            scores = jnp.where(later[None, None], -jnp.inf, scores)
        weights = jax.nn.softmax(scores, axis=-1).astype(x.dtype)
        out = jnp.einsum("b n l m, b m k -> b l n k", weights, values)
        out = _linear(width, "out", ("heads", "embed"), self.dtype)(out.reshape(size, length, -1))
        return Gain(name="norm_out")(out)


class Dalle2Mlp(nn.Module):
    """Norm, gated linear map with SiLU, linear map."""

    cfg: Dalle2PytorchConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Tokens) -> Tokens:
        """Applies it to every token."""
        width = x.shape[-1]
        hidden = int(self.cfg.mlp_ratio * width)
        x = Gain(name="norm")(x)
        x = _linear(2 * hidden, "fc_1", ("embed", "mlp"), self.dtype)(x)
        x, gate = jnp.split(x, 2, axis=-1)
        x = x * jax.nn.silu(gate)
        if self.cfg.norm_hidden:
            x = Gain(name="norm_hidden")(x)
        return _linear(width, "fc_2", ("mlp", "embed"), self.dtype)(x)


def distance_buckets(length: int) -> np.ndarray:
    """Returns the row of the table of distances for query i and key j, [length, length + 1].

    Key 0 is the null key, so that the distance of a token to itself is counted as -1 and falls,
    like all later keys, into bucket 0. Half of the buckets are exact, the others logarithmic.
    """
    distance = np.maximum(np.arange(length)[:, None] - np.arange(length + 1)[None], 0)
    exact = BUCKETS // 2
    ratio = np.log(np.maximum(distance, 1).astype(np.float32) / np.float32(exact))
    large = ratio / np.float32(math.log(DISTANCE / exact)) * (BUCKETS - exact)
    large = np.minimum(exact + large.astype(np.int64), BUCKETS - 1)
    return np.where(distance < exact, distance, large)


def rotary_rates(size: int) -> np.ndarray:
    """Returns the angle by which each pair of `size` features turns per position."""
    return 1.0 / 10000.0 ** (np.arange(0, size, 2)[: size // 2] / size)


def rotated(x: Float[Array, " b l n k"]) -> Float[Array, " b l n k"]:
    """Rotates neighbouring features by angles that grow with the position (RoFormer, eq. 15)."""
    size = min(ROTARY, x.shape[-1])
    angles = np.repeat(np.arange(x.shape[1])[:, None] * rotary_rates(size)[None], 2, axis=1)
    cos, sin = (jnp.asarray(f(angles), x.dtype)[None, :, None] for f in (np.cos, np.sin))
    head, tail = x[..., :size], x[..., size:]
    pairs = head.reshape(*head.shape[:-1], -1, 2)
    turned = jnp.stack([-pairs[..., 1], pairs[..., 0]], axis=-1).reshape(head.shape)
    return jnp.concatenate([head * cos + turned * sin, tail], axis=-1)


def _unit(x: Array) -> Array:
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def _linear(features: int, name: str, axes: tuple[str | None, str | None], dtype: jnp.dtype):
    """Creates a linear map without bias."""
    init = sharded(fan_in_normal, *axes)
    return nn.Dense(features, use_bias=False, dtype=dtype, kernel_init=init, name=name)
