"""Fused attention for TPUs in Pallas: scores stay on the chip, forward and backward.

Plain XLA writes the scores [b n l m] to memory in float32 and reads them several times in every
layer. The sequences of these networks are short enough for all keys and values of a few heads to
fit into on-chip memory, so the softmax needs no running maximum (Dao et al. 2022, arXiv 2205.14135,
without its blocks of keys), and the backward pass recomputes the scores from queries and keys.
Heads are slices of the lanes of [b l n*k], as the projections write them: nothing is transposed.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Bool, Float, Int8

LANES = 128
LANES_PER_PROGRAM = 512  # about; wider programs hide the cost of starting one
MOST_SCORES = 2**19  # of one head in one program; 2 MiB in float32
MOST_BYTES = 12 * 2**20  # of one program by `_bytes`; kernels may use 16 MiB by default
HIDDEN = -0.7 * float(jnp.finfo(jnp.float32).max)  # score of a hidden key, as in jax.nn


Operand = Array | jax.ShapeDtypeStruct


@dataclasses.dataclass(frozen=True, kw_only=True)
class Blocks:
    """One program of the kernel's grid (example, heads, queries).

    Attributes:
        heads: processed one after another.
        queries: rows of the scores; divides the number of queries.
        head_size: lanes per head.
        causal: query i attends to keys 0..i only.
        interpret: runs the kernel without a TPU, for tests.
    """

    heads: int
    queries: int
    head_size: int
    causal: bool = False
    interpret: bool = False

    @property
    def lanes(self) -> int:
        """Lanes of one program."""
        return self.heads * self.head_size

    def head(self, index: int) -> slice:
        """The lanes of a head."""
        return slice(index * self.head_size, (index + 1) * self.head_size)


def unsupported(q: Operand, k: Operand, mask: Operand | None) -> str:
    """Returns why the kernel cannot attend from q [b l n k] to k [b m n k], "" if it can."""
    if mask is not None and mask.shape[1] != 1:
        return "the mask differs between heads"
    if _blocks(q, k, causal=False) is None:
        return f"no block of heads and queries of {q.shape} and {k.shape} fits into on-chip memory"
    return ""


def fused_attention(
    q: Float[Array, " b l n k"],
    k: Float[Array, " b m n k"],
    v: Float[Array, " b m n k"],
    *,
    mask: Bool[Array, " #b 1 #l m"] | None = None,
    causal: bool = False,
    interpret: bool = False,
) -> Float[Array, " b l n k"]:
    """Computes attention as `attention.attention` does, where `unsupported` finds no reason."""
    blocks = _blocks(q, k, causal=causal, interpret=interpret)
    assert blocks is not None
    flat = [jnp.reshape(x, (*x.shape[:2], -1)) for x in (q, k, v)]
    hidden = None if mask is None else mask.astype(jnp.int8)[:, 0]
    out: Any = _attention(*flat, hidden, blocks)
    return out.reshape(q.shape)


def _blocks(q: Operand, k: Operand, *, causal: bool, interpret: bool = False) -> Blocks | None:
    """Selects the largest program that fits, None if none does."""
    (_, length, num_heads, head_size), keys = q.shape, k.shape[1]
    divisors = [heads for heads in range(1, num_heads + 1) if num_heads % heads == 0]
    whole = [n for n in divisors if n == num_heads or n * head_size % LANES == 0]
    for heads in sorted(whole, key=lambda n: abs(n * head_size - LANES_PER_PROGRAM)):
        queries = _queries(length, keys)
        if queries and _bytes(queries, keys, heads * head_size) <= MOST_BYTES:
            return Blocks(
                heads=heads,
                queries=queries,
                head_size=head_size,
                causal=causal,
                interpret=interpret,
            )
    return None


def _queries(length: int, keys: int) -> int:
    """Returns how many queries a program processes: all, or whole tiles that divide them."""
    padded = -(-keys // LANES) * LANES
    if length * padded <= MOST_SCORES:
        return length
    sizes = (size for size in range(LANES, length, LANES) if length % size == 0)
    return max((size for size in sizes if size * padded <= MOST_SCORES), default=0)


def _bytes(queries: int, keys: int, lanes: int) -> int:
    """Estimates the on-chip memory of a backward program, which needs more than a forward one."""
    padded = -(-keys // LANES) * LANES
    rows = 3 * queries + 4 * padded  # q, g, dq; k, v, dk, dv
    buffers = 2 * 2 * lanes * rows  # in bfloat16, one to compute with while another is copied
    sums = 2 * 4 * lanes * padded  # of dk and dv, in float32
    scores = 3 * 4 * queries * padded  # weights and two gradients of one head, in float32
    return buffers + sums + scores


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _attention(
    q: Float[Array, " b l d"],
    k: Float[Array, " b m d"],
    v: Float[Array, " b m d"],
    mask: Int8[Array, " #b #l m"] | None,
    blocks: Blocks,
) -> Float[Array, " b l d"]:
    specs, masks = _specs(q, k, mask, blocks)
    return pl.pallas_call(
        functools.partial(_forward_kernel, blocks=blocks),
        grid=_grid(q, blocks),
        in_specs=[specs.query, specs.key, specs.key, *specs.masks],
        out_specs=specs.query,
        out_shape=jax.ShapeDtypeStruct(q.shape, q.dtype),
        **_options(q, k, blocks, products=2),
    )(q, k, v, *masks)


def _forward(q: Array, k: Array, v: Array, mask: Array | None, blocks: Blocks) -> tuple[Array, Any]:
    return _attention(q, k, v, mask, blocks), (q, k, v, mask)


def _backward(blocks: Blocks, residuals: Any, gradient: Array) -> tuple[Any, ...]:
    q, k, v, mask = residuals
    specs, masks = _specs(q, k, mask, blocks)
    accumulator = pltpu.VMEM((k.shape[1], blocks.lanes), jnp.float32)
    dq, dk, dv = pl.pallas_call(
        functools.partial(_backward_kernel, blocks=blocks),
        grid=_grid(q, blocks),
        in_specs=[specs.query, specs.query, specs.key, specs.key, *specs.masks],
        out_specs=[specs.query, specs.key, specs.key],
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (q, k, v)],
        scratch_shapes=[accumulator, accumulator],
        **_options(q, k, blocks, products=5),
    )(q, gradient, k, v, *masks)
    return dq, dk, dv, None


_attention.defvjp(_forward, _backward)


@dataclasses.dataclass(frozen=True)
class _Specs:
    query: pl.BlockSpec
    key: pl.BlockSpec
    masks: list[pl.BlockSpec]


def _specs(q: Array, k: Array, mask: Array | None, blocks: Blocks) -> tuple[_Specs, list[Array]]:
    """Returns the blocks of queries, keys and mask of a program, and the masks to pass."""
    keys, lanes, queries = k.shape[1], blocks.lanes, blocks.queries
    query = pl.BlockSpec((None, queries, lanes), lambda b, h, i: (b, i, h))
    key = pl.BlockSpec((None, keys, lanes), lambda b, h, i: (b, 0, h))
    if mask is None:
        return _Specs(query, key, []), []
    examples, rows = mask.shape[0] > 1, mask.shape[1] > 1

    def place(b: Any, h: Any, i: Any) -> tuple[Any, Any, int]:
        del h
        return (b if examples else 0), (i if rows else 0), 0

    block = pl.BlockSpec((None, queries if rows else 1, keys), place)
    return _Specs(query, key, [block]), [mask]


def _grid(q: Array, blocks: Blocks) -> tuple[int, int, int]:
    return q.shape[0], q.shape[2] // blocks.lanes, q.shape[1] // blocks.queries


def _options(q: Array, k: Array, blocks: Blocks, *, products: int) -> dict[str, Any]:
    """Returns what both passes state about themselves; `products` are of scores and values."""
    scores = q.shape[0] * q.shape[1] * k.shape[1] * (q.shape[2] // blocks.head_size)
    return {
        "interpret": blocks.interpret,
        "compiler_params": pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary")
        ),
        "cost_estimate": pl.CostEstimate(
            flops=2 * products * scores * blocks.head_size,
            transcendentals=scores,
            bytes_accessed=q.dtype.itemsize * products * (q.size + k.size),
        ),
    }


def _forward_kernel(q: Any, k: Any, v: Any, *rest: Any, blocks: Blocks) -> None:
    """Writes the attended values of a program's heads."""
    *mask, out = rest
    visible = _visible(q.shape[0], k.shape[0], mask, blocks)
    for index in range(blocks.heads):
        head = blocks.head(index)
        weights, total = _weights(q[:, head], k[:, head], visible)
        values = _product(weights.astype(v.dtype), v[:, head], (1, 0))
        out[:, head] = (values / total).astype(out.dtype)


def _backward_kernel(q: Any, g: Any, k: Any, v: Any, *rest: Any, blocks: Blocks) -> None:
    """Writes the gradients of queries, and of keys and values at the last block of queries."""
    *mask, dq, dk, dv, sum_dk, sum_dv = rest
    step, last = pl.program_id(2), pl.num_programs(2) - 1

    @pl.when(step == 0)
    def _() -> None:
        sum_dk[...] = jnp.zeros_like(sum_dk)
        sum_dv[...] = jnp.zeros_like(sum_dv)

    visible = _visible(q.shape[0], k.shape[0], mask, blocks)
    for index in range(blocks.heads):
        head = blocks.head(index)
        weights, total = _weights(q[:, head], k[:, head], visible)
        weights = weights / total
        sum_dv[:, head] += _product(weights.astype(g.dtype), g[:, head], (0, 0))
        inner = _product(g[:, head], v[:, head], (1, 1))
        scores = weights * (inner - jnp.sum(weights * inner, axis=1, keepdims=True))
        scores = (scores * blocks.head_size**-0.5).astype(q.dtype)
        dq[:, head] = _product(scores, k[:, head], (1, 0)).astype(dq.dtype)
        sum_dk[:, head] += _product(scores, q[:, head], (0, 0))

    @pl.when(step == last)
    def _() -> None:
        dk[...] = sum_dk[...].astype(dk.dtype)
        dv[...] = sum_dv[...].astype(dv.dtype)


def _weights(q: Array, k: Array, visible: Array | None) -> tuple[Array, Array]:
    """Returns exp(scores - largest) [l m] and its sum [l 1], in float32."""
    scores = _product(q, k, (1, 1)) * q.shape[1] ** -0.5
    if visible is not None:
        scores = jnp.where(visible, scores, HIDDEN)
    weights = jnp.exp(scores - jnp.max(scores, axis=1, keepdims=True))
    return weights, jnp.sum(weights, axis=1, keepdims=True)


def _visible(queries: int, keys: int, mask: list[Any], blocks: Blocks) -> Array | None:
    """Returns which keys a query attends to [l m], None = all."""
    visible = None
    if mask:
        visible = jnp.broadcast_to(mask[0][...].astype(jnp.int32), (queries, keys)) != 0
    if blocks.causal:
        first = pl.program_id(2) * blocks.queries
        rows = jax.lax.broadcasted_iota(jnp.int32, (queries, keys), 0) + first
        before = rows >= jax.lax.broadcasted_iota(jnp.int32, (queries, keys), 1)
        visible = before if visible is None else visible & before
    return visible


def _product(left: Array, right: Array, contracted: tuple[int, int]) -> Array:
    """Multiplies two matrices over one axis of each, accumulating in float32."""
    axes = ((contracted[:1], contracted[1:]), ((), ()))
    return jax.lax.dot_general(left, right, axes, preferred_element_type=jnp.float32)
