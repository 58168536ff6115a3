"""Layers that all networks share.

Linear maps and convolutions with named axes, norms, timestep features.

Epsilon is 1e-5 in every norm (Flax defaults to 1e-6; all public checkpoints use 1e-5).
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Int

from unclip_jax.core.checks import UserError, divisible, one_of
from unclip_jax.core.types import Steps
from unclip_jax.parallel.axes import sharded

EPS = 1e-5
DTYPES = ("float32", "bfloat16")
UNROLLED = 8  # layers, at most
REMAT = ("none", "block", "dots")

fan_in_normal = nn.initializers.lecun_normal()
zeros = nn.initializers.zeros
ones = nn.initializers.ones
normal = nn.initializers.normal


def compute_dtype(name: str) -> jnp.dtype:
    """Returns the compute dtype called `name`.

    Raises:
        UserError: the name is neither "float32" nor "bfloat16".
    """
    return jnp.dtype(one_of("dtype", name, DTYPES))


def rematerialised(
    block: Any, policy: str, *, scanned: bool, static_argnums: tuple[int, ...] = ()
) -> Any:
    """Wraps the module class `block` to recompute activations in the backward pass.

    "none" stores them all, "block" stores only the block's inputs, "dots" stores matrix products.

    Args:
        block: a Flax module class.
        policy: among REMAT.
        scanned: the block is the body of a scan (which already prevents undoing the policy).
        static_argnums: Python arguments of `__call__`, counted from self = 0.

    Raises:
        UserError: an unknown policy.
    """
    if one_of("remat policy", policy, REMAT) == "none":
        return block
    keep = jax.checkpoint_policies.dots_with_no_batch_dims_saveable if policy == "dots" else None
    return nn.remat(block, prevent_cse=not scanned, policy=keep, static_argnums=static_argnums)


def scan_unroll(depth: int, *, remat: str) -> int:
    """Returns the unroll factor of a scan over `depth` layers: all of a small model's, or one.

    A scan copies activations into stacks and back, a sixth of the training step of the miniature's
    prior on CPUs (docs/speed.md). Large models need it to compile within minutes.
    """
    return depth if remat == "none" and depth <= UNROLLED else 1


def stacked(block: Any, *, depth: int, remat: str, in_axes: Any = nn.broadcast) -> Any:
    """Returns a module class of `depth` blocks; their parameters are stacked on an axis "layers".

    Args:
        block: a Flax module class whose call returns (carry, output).
        depth: number of blocks.
        remat: policy of `rematerialised`.
        in_axes: of the arguments after the carry, as in `nn.scan`; default: the same for all.
    """
    return nn.scan(
        rematerialised(block, remat, scanned=True),
        variable_axes={"params": 0},
        split_rngs={"params": True},
        in_axes=in_axes,
        length=depth,
        unroll=scan_unroll(depth, remat=remat),
        metadata_params={nn.PARTITION_NAME: "layers"},
    )


def dense(
    features: int,
    *,
    name: str,
    axes: tuple[str, str],
    dtype: jnp.dtype,
    init: nn.initializers.Initializer = fan_in_normal,
    use_bias: bool = True,
) -> nn.Dense:
    """Creates a linear map whose kernel [in, out] carries the two logical `axes`."""
    return nn.Dense(
        features,
        use_bias=use_bias,
        dtype=dtype,
        kernel_init=sharded(init, *axes),
        bias_init=sharded(zeros, axes[1]),
        name=name,
    )


def conv(
    features: int,
    *,
    name: str,
    size: int = 3,
    stride: int = 1,
    dtype: jnp.dtype,
    init: nn.initializers.Initializer = fan_in_normal,
    out: str = "conv_out",
) -> nn.Conv:
    """Creates a `size` x `size` convolution with padding; kernel [size, size, in, out]."""
    return nn.Conv(
        features,
        (size, size),
        (stride, stride),
        dtype=dtype,
        kernel_init=sharded(init, None, None, "conv_in", out),
        bias_init=sharded(zeros, out),
        name=name,
    )


class LayerNorm(nn.Module):
    """Layer normalisation of the last axis in float32, with gain and bias.

    Attributes:
        eps: added to the variance.
        centred: False subtracts no mean and adds no bias: the root mean square norm of T5 (Zhang &
            Sennrich, arXiv 1910.07467).
    """

    eps: float = EPS
    centred: bool = True

    @nn.compact
    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        """Returns `x` normalised, in the dtype of `x`."""
        shape = (1,) * (x.ndim - 1) + (-1,)
        scale = self.param("scale", sharded(ones, "norm"), (x.shape[-1],))
        wide = x.astype(jnp.float32)
        centred = wide - jnp.mean(wide, axis=-1, keepdims=True) if self.centred else wide
        rate = jax.lax.rsqrt(jnp.mean(centred**2, axis=-1, keepdims=True) + self.eps)
        y = centred * rate * scale.reshape(shape)
        if self.centred:
            y = y + self.param("bias", sharded(zeros, "norm"), (x.shape[-1],)).reshape(shape)
        return y.astype(x.dtype)


class GroupNorm(nn.Module):
    """Group normalisation, over space or at every position, in float32.

    `modulation` gives adaptive group norm (ADM, arXiv 2105.05233, eq. 8): the normalised and
    affinely mapped x times (1 + scale) plus shift, with [scale, shift] per example. Every factor
    per channel is folded into one gain and one offset per example, so the image is read twice.

    Attributes:
        groups: of channels.
        over_space: one mean and deviation for all positions of a group (Wu & He, arXiv 1803.08494);
            False takes them at every position separately, so that one region of the image
            does not depend on the others.
        eps: added to the variance.

    Raises:
        UserError: `groups` does not divide the channels.
    """

    groups: int
    over_space: bool = True
    eps: float = EPS

    @nn.compact
    def __call__(
        self, x: Float[Array, " b h w c"], modulation: Float[Array, " b 2*c"] | None = None
    ) -> Float[Array, " b h w c"]:
        """Returns `x` normalised (and modulated), in the dtype of `x`."""
        channels = x.shape[-1]
        divisible("channels", channels, self.groups, "choose norm_groups that divides all levels.")
        gain = self.param("scale", sharded(ones, "norm"), (channels,))[None, :]
        offset = self.param("bias", sharded(zeros, "norm"), (channels,))[None, :]
        if modulation is not None:
            scale, shift = jnp.split(modulation.astype(jnp.float32), 2, axis=-1)
            gain, offset = gain * (1.0 + scale), offset * (1.0 + scale) + shift
        wide = x.astype(jnp.float32)
        mean, rate = self._statistics(wide)
        return ((wide - mean) * (rate * _image(gain)) + _image(offset)).astype(x.dtype)

    def _statistics(self, x: Float[Array, " b h w c"]) -> tuple[Array, Array]:
        """Computes mean and reciprocal deviation [b #h #w c], each equal within a group."""
        mean = self._group_mean(self._space_mean(x))
        centred = x - mean
        variance = self._group_mean(self._space_mean(centred * centred))
        return mean, jax.lax.rsqrt(variance + self.eps)

    def _space_mean(self, x: Float[Array, " b h w c"]) -> Float[Array, " b #h #w c"]:
        return jnp.mean(x, axis=(1, 2), keepdims=True) if self.over_space else x

    def _group_mean(self, x: Float[Array, " b #h #w c"]) -> Float[Array, " b #h #w c"]:
        *places, c = x.shape
        means = jnp.mean(x.reshape(*places, self.groups, c // self.groups), axis=-1)
        return jnp.repeat(means, c // self.groups, axis=-1)


def _image(x: Array) -> Array:
    return x[:, None, None, :]


def activation(name: str) -> Callable[[Array], Array]:
    """Returns SiLU, the exact (erf) GELU, its tanh form, or OpenAI CLIP's x * sigmoid(1.702 x).

    Raises:
        UserError: an unknown name.
    """
    functions: dict[str, Callable[[Array], Array]] = {
        "silu": jax.nn.silu,
        "gelu": lambda x: jax.nn.gelu(x, approximate=False),
        "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
        "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    }
    return functions[one_of("activation", name, functions)]


def timestep_features(
    t: Steps, *, width: int, num_timesteps: int = 1000
) -> Float[Array, " b width"]:
    """Computes cosines, then sines of `t`, frequencies exp(-ln(10000) k / half) (ADM code).

    A chain of another length is stretched to 0..1000, so that the features of a noise level do not
    depend on the number of steps.

    Raises:
        UserError: `width` is odd.
    """
    half = divisible("width of the timestep features", width, 2, "make it even.") // 2
    # On the host: XLA's float32 exp is off by some units in the last place, times t = 999.
    exponents = (
        np.float32(-math.log(10000.0)) * np.arange(half, dtype=np.float32) / np.float32(half)
    )
    rates = jnp.asarray(np.exp(exponents.astype(np.float64)), jnp.float32)
    angles = (t.astype(jnp.float32) * (1000.0 / num_timesteps))[:, None] * rates[None, :]
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


class TimeEmbedding(nn.Module):
    """Timestep features, Linear, SiLU, Linear (ADM, arXiv 2105.05233; as in its code).

    Attributes:
        features: number of timestep features.
        width: of the embedding.
        num_timesteps: length of the chain.
        dtype: compute dtype.
        act: activation, "silu" or "gelu".
    """

    features: int
    width: int
    num_timesteps: int
    dtype: jnp.dtype
    act: str = "silu"

    @nn.compact
    def __call__(self, t: Steps) -> Float[Array, " b e"]:
        """Returns the embedding of every timestep, of width `width`."""
        x = timestep_features(t, width=self.features, num_timesteps=self.num_timesteps)
        axes = ("time", "time")
        x = dense(self.width, name="linear_1", axes=axes, dtype=self.dtype)(x.astype(self.dtype))
        x = activation(self.act)(x)
        return dense(self.width, name="linear_2", axes=axes, dtype=self.dtype)(x)


def check_tokens(tokens: Int[Array, " b l"], *, context: int) -> None:
    """Checks that captions have the length of the model.

    Raises:
        UserError: they do not.
    """
    if tokens.shape[1] != context:
        raise UserError(
            f"captions have {tokens.shape[1]} tokens; this model takes {context}. "
            "Tokenize with that length."
        )
