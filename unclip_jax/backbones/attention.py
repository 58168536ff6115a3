"""Attention with the implementation that fits the device: cuDNN, a Pallas kernel, or plain XLA."""

import contextlib
import contextvars
import functools
import math
import warnings
from collections.abc import Iterator
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float

from unclip_jax.backbones import tpu_attention
from unclip_jax.parallel.axes import EXAMPLES

_plain = contextvars.ContextVar("plain", default=False)


def attention(
    q: Float[Array, " b l n k"],
    k: Float[Array, " b m n k"],
    v: Float[Array, " b m n k"],
    *,
    mask: Bool[Array, " #b #n #l m"] | None = None,
    causal: bool = False,
) -> Float[Array, " b l n k"]:
    """Computes attention with scale k^-1/2, softmax in float32; `mask` True = attend."""
    implementation = _implementation(q, k, mask)
    if implementation == "pallas":
        return _on_shards(q, k, v, mask, causal=causal)
    if implementation == "cudnn" and mask is not None:  # which does not broadcast lengths
        mask = jnp.broadcast_to(mask, (*mask.shape[:2], q.shape[1], k.shape[1]))
    return jax.nn.dot_product_attention(
        q, k, v, mask=mask, is_causal=causal, implementation=implementation
    )


@contextlib.contextmanager
def plain() -> Iterator[None]:
    """Traces attention by plain XLA, for comparisons."""
    token = _plain.set(True)
    try:
        yield
    finally:
        _plain.reset(token)


def _implementation(q: Array, k: Array, mask: Array | None) -> Literal["cudnn", "pallas", "xla"]:
    """Selects cuDNN (head size 8..128 by 8, even lengths if masked) or Pallas, for bfloat16."""
    platform = "" if _plain.get() else _platform()
    if q.dtype != jnp.bfloat16:
        return "xla"
    if platform == "gpu":
        even = mask is None or (q.shape[1] % 2 == 0 and k.shape[1] % 2 == 0)
        return "cudnn" if q.shape[-1] % 8 == 0 and q.shape[-1] <= 128 and even else "xla"
    if platform != "tpu":
        return "xla"
    reason = _unsupported_on_tpu(q, k, mask)
    if reason:  # Python shows the same warning once
        warnings.warn(f"attention by plain XLA, which is slower: {reason}", stacklevel=2)
    return "xla" if reason else "pallas"


def _unsupported_on_tpu(q: Array, k: Array, mask: Array | None) -> str:
    """Returns why the kernel cannot be used on this mesh, "" if it can."""
    shares = _shares(q)
    if shares is None:
        return f"the mesh does not divide {q.shape[0]} examples with {q.shape[2]} heads"
    examples, heads = shares

    def local(x: Array) -> jax.ShapeDtypeStruct:
        b, length, n, size = x.shape
        return jax.ShapeDtypeStruct((b // examples, length, n // heads, size), x.dtype)

    return tpu_attention.unsupported(local(q), local(k), mask)


def _platform() -> str:
    """Returns the platform that the function is traced for: the mesh's, else the default one."""
    device = getattr(jax.sharding.get_abstract_mesh(), "abstract_device", None)
    return device.platform if device is not None else jax.default_backend()


def _shares(q: Array) -> tuple[int, int] | None:
    """Returns into how many parts the mesh divides examples and heads, None if it cannot."""
    mesh = jax.sharding.get_abstract_mesh()
    auto = {} if mesh.empty else {axis: mesh.shape[axis] for axis in mesh.auto_axes}
    examples = math.prod(auto.get(axis, 1) for axis in EXAMPLES)
    heads = auto.get("tensor", 1)
    return None if q.shape[0] % examples or q.shape[2] % heads else (examples, heads)


def _on_shards(q: Array, k: Array, v: Array, mask: Array | None, *, causal: bool) -> Array:
    """Runs the kernel on every device's examples and heads; XLA cannot divide a kernel itself."""
    kernel = functools.partial(tpu_attention.fused_attention, causal=causal)
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or not mesh.auto_axes:
        return kernel(q, k, v, mask=mask)
    auto = {*mesh.auto_axes}
    examples = tuple(axis for axis in EXAMPLES if axis in auto)
    whole = PartitionSpec(examples, None, "tensor" if "tensor" in auto else None)
    masked = PartitionSpec(examples if mask is not None and mask.shape[0] > 1 else None)

    def local(q: Array, k: Array, v: Array, *masks: Any) -> Array:
        return kernel(q, k, v, mask=masks[0] if masks else None)

    inputs = (q, k, v) if mask is None else (q, k, v, mask)
    return jax.shard_map(
        local,
        in_specs=(whole, whole, whole, masked)[: len(inputs)],
        out_specs=whole,
        axis_names=auto,
        check_vma=False,
    )(*inputs)
