"""Work of one device in one step, counted in the compiled program.

Unlike a count of the traced function this sees what the compiler added: work that it repeats on
several devices, padding, layouts. Loops count as often as they run.

Memory traffic is a model: every instruction outside a fusion reads its operands from the device's
main memory and writes its result there, except where the compiler placed an array elsewhere. A
slice of an array counts as the slice.
"""

import math
import re
from typing import NamedTuple

from unclip_jax.planning.flops import valid_pairs
from unclip_jax.planning.hlo import Array, Computation, Instruction, Module

# Opcodes that name, bundle or await arrays and move nothing themselves.
_FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional"),
    *("call", "after-all", "partition-id", "replica-id", "opt-barrier", "domain", "iota"),
    *("add-dependency", "async-done", "async-update"),
}
_NO_ESTIMATE = 1e12  # cycles; the compiler writes such values where it has no model
_PRODUCTS = re.compile(r"gemm|matmul|conv|attention|fmha|tpu_custom_call|mosaic", re.IGNORECASE)


class Work(NamedTuple):
    """Work of one device in one step.

    Attributes:
        flops: of matrix products and convolutions.
        bytes: to and from main memory.
        cycles: the compiler's own estimate for all fusions and copies; None where it makes none,
            and for programs with kernels (custom calls), for which it makes none.
        hidden: targets of custom calls that may hold products, which were not counted.
    """

    flops: float
    bytes: float
    cycles: float | None
    hidden: tuple[str, ...]


def measure(module: Module) -> Work:
    """Counts the work of a whole program."""
    flops = moved = cycles = 0.0
    hidden: set[str] = set()
    kernels = False
    for computation, times in module.running():
        for each in computation.instructions.values():
            flops += times * _flops(each, computation)
            if computation.name not in module.fused:
                moved += times * _bytes(each, computation, module)
                cycles += times * _cycles(each)
            target = _kernel(each)
            kernels = kernels or bool(target)
            if target and not _stated_flops(each):
                hidden.add(target)
    return Work(flops, moved, None if kernels else cycles or None, tuple(sorted(hidden)))


def _cycles(line: Instruction) -> float:
    """Returns the compiler's estimate of an instruction; its placeholders count as 0."""
    match = re.search(r'"estimated_cycles":"(\d+)"', line.attributes)
    return float(match[1]) if match and float(match[1]) < _NO_ESTIMATE else 0.0


def _kernel(line: Instruction) -> str:
    """Returns the target of a custom call that may hold products, else ""."""
    target = re.search(r'custom_call_target="([^"]*)"', line.attributes)
    return target[1] if target and _PRODUCTS.search(target[1]) else ""


def _stated_flops(line: Instruction) -> float:
    """Returns the FLOPs that a Pallas kernel states about itself, 0 without a statement."""
    stated = re.search(r'"cost_estimate":\{"flops":"(\d+)"', line.attributes)
    return float(stated[1]) if stated else 0.0


def _flops(line: Instruction, computation: Computation) -> float:
    if line.opcode == "dot":
        left = _shape(line.operands[0], computation)
        axes = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", line.attributes)
        contracted = [int(axis) for axis in axes[1].split(",") if axis] if axes else []
        outputs = math.prod(line.arrays[0].shape)
        return 2.0 * outputs * math.prod(left[axis] for axis in contracted)
    if line.opcode == "convolution":
        return _convolution(line, computation)
    return _stated_flops(line) if line.opcode == "custom-call" else 0.0


def _convolution(line: Instruction, computation: Computation) -> float:
    """Counts as `flops._convolution`; the TPU compiler writes every matrix product as one."""
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", line.attributes)
    if not labels:
        return 0.0
    left, right = (_shape(name, computation) for name in line.operands[:2])
    image = dict(zip(labels[1], left, strict=True))
    kernel = dict(zip(labels[2], right, strict=True))
    output = dict(zip(labels[3], line.arrays[0].shape, strict=True))
    window = _window(line.attributes)
    pairs = 1
    for index in range(sum(name.isdigit() for name in labels[1])):
        axis = str(index)
        pairs *= valid_pairs(
            size=image[axis],
            window=kernel[axis],
            outputs=output[axis],
            stride=window["stride"][index] if "stride" in window else 1,
            low=window["pad"][index] if "pad" in window else 0,
            base_dilation=window["lhs_dilate"][index] if "lhs_dilate" in window else 1,
            window_dilation=window["rhs_dilate"][index] if "rhs_dilate" in window else 1,
        )
    return 2.0 * pairs * output["b"] * output["f"] * kernel["i"]


def _window(attributes: str) -> dict[str, list[int]]:
    """Parses the window per spatial axis, with the padding before the first element."""
    text = re.search(r"window=\{([^}]*)\}", attributes)
    fields = re.findall(r"(\w+)=([\d_x\-]+)", text[1]) if text else []
    return {name: [int(p.split("_")[0]) for p in value.split("x")] for name, value in fields}


def _shape(name: str, computation: Computation) -> tuple[int, ...]:
    return computation.instructions[name].arrays[0].shape


def _bytes(line: Instruction, computation: Computation, module: Module) -> float:
    """Counts the bytes of main memory that an instruction outside a fusion reads and writes."""
    if line.opcode in _FREE or line.opcode.endswith("-done"):
        return 0.0
    operands = [computation.instructions[name] for name in line.operands]
    fusion = module.computations.get(line.called.get("calls", ""))
    if line.opcode == "fusion" and fusion is not None:
        return _fusion(line, operands, fusion, module)
    written = _hbm(line.arrays)
    read = [_hbm(each.arrays) for each in operands]
    if line.opcode in ("dynamic-slice", "gather", "slice"):
        return 2.0 * written
    if line.opcode in ("dynamic-update-slice", "scatter"):
        return 2.0 * sum(read[1:])
    if line.opcode.endswith("-start"):  # its result bundles the operands with what is written
        return 2.0 * sum(read)
    return written + sum(read)


def _fusion(
    line: Instruction, operands: list[Instruction], fusion: Computation, module: Module
) -> float:
    """Counts the bytes of operands that the fusion uses and of results that it computes."""
    total = 0.0
    for operand, parameter in zip(operands, _parameters(fusion), strict=True):
        if any(array.in_hbm for array in operand.arrays):
            total += min(_used(parameter, fusion, module), _hbm(operand.arrays))
    root = fusion.root
    results = [fusion.instructions[n] for n in root.operands] if root.opcode == "tuple" else [root]
    if len(results) != len(line.arrays):
        return total + _hbm(line.arrays)
    return total + sum(
        _written(result, fusion, module)
        for result, array in zip(results, line.arrays, strict=True)
        if array.in_hbm
    )


def _parameters(fusion: Computation) -> list[Instruction]:
    """Returns the parameters of a computation by number."""
    parameters = (each for each in fusion.instructions.values() if each.opcode == "parameter")
    return sorted(parameters, key=lambda each: int(each.argument))


def _used(parameter: Instruction, fusion: Computation, module: Module) -> float:
    """Counts the bytes of a parameter that the fusion reads, also through fusions inside it."""
    total = 0.0
    for user in fusion.users[parameter.name]:
        inner = module.computations.get(user.called.get("calls", ""))
        if user.opcode in ("tuple", "parameter"):  # handed through
            continue
        if user.opcode == "bitcast":
            total += _used(user, fusion, module)
        elif user.opcode in ("dynamic-slice", "gather", "slice"):
            total += sum(array.bytes for array in user.arrays)
        elif user.opcode in ("dynamic-update-slice", "scatter") and (
            user.operands[0] == parameter.name
        ):
            continue  # updated in place
        elif user.opcode == "fusion" and inner is not None:
            arguments = zip(user.operands, _parameters(inner), strict=True)
            total += sum(
                _used(each, inner, module) for name, each in arguments if name == parameter.name
            )
        else:
            return float(sum(array.bytes for array in parameter.arrays))
    return total


def _written(result: Instruction, fusion: Computation, module: Module) -> float:
    """Counts the bytes of a result that the fusion writes."""
    while result.opcode == "bitcast":
        result = fusion.instructions[result.operands[0]]
    inner = module.computations.get(result.called.get("calls", ""))
    if result.opcode == "fusion" and inner is not None and inner.root.opcode != "tuple":
        return _written(inner.root, inner, module)
    if result.opcode == "parameter":
        return 0.0
    if result.opcode in ("dynamic-update-slice", "scatter"):
        index = 1 if result.opcode == "dynamic-update-slice" else -1
        update = fusion.instructions[result.operands[index]]
        return float(sum(array.bytes for array in update.arrays))
    return float(sum(array.bytes for array in result.arrays))


def _hbm(arrays: tuple[Array, ...]) -> float:
    return float(sum(array.bytes for array in arrays if array.in_hbm))
