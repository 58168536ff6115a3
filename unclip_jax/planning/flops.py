"""Matrix FLOPs of a traced function, including scans, branches and recomputation.

A multiplication and an addition count two. Only products count (dot_general and convolutions), as
is usual for MFU; everything else of these networks is below a hundredth of them.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax


class Count(NamedTuple):
    """FLOPs of one function over all devices together.

    Attributes:
        flops: counted ones.
        unknown: names of primitives that may hold products which were not counted.
    """

    flops: float
    unknown: tuple[str, ...]


def count(function: Callable[..., Any], *args: Any) -> Count:
    """Counts the FLOPs of `function(*args)`; args may be ShapeDtypeStructs."""
    return of_jaxpr(jax.make_jaxpr(function)(*args).jaxpr)


def of_jaxpr(jaxpr: Any) -> Count:
    """Counts the FLOPs of one run of a jaxpr."""
    total, unknown = 0.0, set()
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        if name == "dot_general":
            total += _dot(equation)
        elif name == "conv_general_dilated":
            total += _convolution(equation)
        else:
            part = _inner(equation)
            total += part.flops
            unknown.update(part.unknown)
    return Count(total, tuple(sorted(unknown)))


def _inner(equation: Any) -> Count:
    """Counts the FLOPs of an equation that contains other jaxprs."""
    parts = [of_jaxpr(jaxpr) for jaxpr in _jaxprs(equation.params)]
    name, times = equation.primitive.name, 1
    unknown = {each for part in parts for each in part.unknown}
    if name == "scan":
        times = equation.params["length"]
    elif name == "while" and any(part.flops for part in parts):
        unknown.add("while")  # how often it runs is known at run time only
    elif name == "shard_map":
        mesh, axes = equation.params["mesh"], equation.params["newly_manual_axes"]
        times = math.prod(mesh.shape[axis] for axis in axes)
    elif name == "pallas_call":
        grid = equation.params["grid_mapping"].grid
        times = math.prod(side for side in grid if isinstance(side, int))
        if not all(isinstance(side, int) for side in grid):
            unknown.add(name)  # how often it runs is known at run time only
    counts = [part.flops for part in parts]
    flops = max(counts, default=0.0) if name == "cond" else sum(counts)
    return Count(times * flops, tuple(sorted(unknown)))


def _jaxprs(params: dict[str, Any]) -> Iterator[Any]:
    """Returns the jaxprs among the parameters of an equation, without their constants."""
    for name, value in params.items():
        if name in ("jvp_jaxpr_fun", "jvp_jaxpr_thunk", "fwd_jaxpr_thunk"):
            continue
        for each in value if isinstance(value, tuple | list) else (value,):
            inner = getattr(each, "jaxpr", each)
            if hasattr(inner, "eqns"):
                yield inner


def _dot(equation: Any) -> float:
    """Returns 2 x outputs x contracted length."""
    (contracted, _), _ = equation.params["dimension_numbers"]
    left = equation.invars[0].aval.shape
    return 2.0 * _size(equation.outvars[0]) * math.prod(left[axis] for axis in contracted)


def _convolution(equation: Any) -> float:
    """Returns 2 x products, of which padding and the gaps of dilation have none."""
    params = equation.params
    numbers = params["dimension_numbers"]
    left, kernel = (v.aval.shape for v in equation.invars)
    output = equation.outvars[0].aval.shape
    pairs = math.prod(
        valid_pairs(
            size=left[numbers.lhs_spec[2 + d]],
            window=kernel[numbers.rhs_spec[2 + d]],
            outputs=output[numbers.out_spec[2 + d]],
            stride=params["window_strides"][d],
            low=params["padding"][d][0],
            base_dilation=params["lhs_dilation"][d],
            window_dilation=params["rhs_dilation"][d],
        )
        for d in range(len(params["window_strides"]))
    )
    batch, features = (output[axis] for axis in numbers.out_spec[:2])
    inputs = kernel[numbers.rhs_spec[1]]  # per feature group
    return 2.0 * pairs * batch * features * inputs


def valid_pairs(
    *,
    size: int,
    window: int,
    outputs: int,
    stride: int = 1,
    low: int = 0,
    base_dilation: int = 1,
    window_dilation: int = 1,
) -> int:
    """Counts the (output, window) positions of one spatial axis that meet an element of the input.

    Args:
        size: of the input along the axis.
        window: of the kernel.
        outputs: of the output.
        stride: of the window.
        low: padding before the first element; may be negative.
        base_dilation: elements of the input are this far apart.
        window_dilation: elements of the window are this far apart.
    """
    pairs = 0
    for offset in range(window):
        first = offset * window_dilation - low  # where the window's element lies at output 0
        for output in range(outputs):
            place = first + output * stride
            if 0 <= place < (size - 1) * base_dilation + 1 and place % base_dilation == 0:
                pairs += 1
    return pairs


def _size(variable: Any) -> int:
    return math.prod(variable.aval.shape)
