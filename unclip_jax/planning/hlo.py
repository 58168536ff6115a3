"""Parser of compiled HLO text: computations, instructions, and their number of runs per step.

XLA's own cost analysis counts the body of a loop once; here every computation has a count, the
product of the trip counts of the loops around it. Trip counts come from the loop's annotation or,
where the backend drops it (TPU), from the constant in the loop's condition.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

_HEADER = re.compile(r"^\s*(ENTRY\s+)?%?([\w.\-]+)\s.*\{\s*$")
_INSTRUCTION = re.compile(r"^\s*(ROOT\s+)?%?([\w.\-]+)\s=\s(.*)$")
_ARRAY = re.compile(r"([a-z]+\d*[a-z0-9]*)\[([\d,<=]*)\](?:\{([^{}]*)\})?")
_CALLED = re.compile(
    r"\b(calls|to_apply|body|condition|true_computation|false_computation)=%([\w.\-]+)"
)
_BRANCHES = re.compile(r"\b(?:branch_computations|called_computations|calls)=\{([^{}]*)\}")
_SIZES = {"pred": 1, "token": 0, "c64": 8, "c128": 16}


@dataclasses.dataclass(frozen=True)
class Array:
    """One array of an instruction's type.

    Attributes:
        dtype: "bf16".
        shape: of the array on one device.
        layout: the text between the braces, or "".
    """

    dtype: str
    shape: tuple[int, ...]
    layout: str

    @property
    def bytes(self) -> int:
        """Size in bytes without padding."""
        return math.ceil(math.prod(self.shape) * _bits(self.dtype) / 8)

    @property
    def in_hbm(self) -> bool:
        """True if it is in the device's main memory (S(n) names another one)."""
        return "S(" not in self.layout


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line.

    Attributes:
        name: unique in its computation.
        opcode: such as "fusion" or "all-gather".
        arrays: of the result; several for a tuple.
        operands: names of instructions of the same computation.
        attributes: the rest of the line.
        argument: the text between the parentheses (a constant's value, a parameter's number).
        root: True for the computation's result.
    """

    name: str
    opcode: str
    arrays: tuple[Array, ...]
    operands: tuple[str, ...]
    attributes: str
    argument: str
    root: bool

    @functools.cached_property
    def called(self) -> dict[str, str]:
        """Computations that this one calls, by attribute ("body", "calls", ...)."""
        names = dict(_CALLED.findall(self.attributes))
        for text in _BRANCHES.findall(self.attributes):
            for index, name in enumerate(re.findall(r"%([\w.\-]+)", text)):
                names[f"branch {index}"] = name
        return names


@dataclasses.dataclass(frozen=True)
class Computation:
    """A named list of instructions."""

    name: str
    instructions: dict[str, Instruction]

    @property
    def root(self) -> Instruction:
        """The instruction whose result is the computation's."""
        return next(each for each in self.instructions.values() if each.root)

    @functools.cached_property
    def users(self) -> dict[str, list[Instruction]]:
        """The instructions that use each instruction's result."""
        users: dict[str, list[Instruction]] = {name: [] for name in self.instructions}
        for each in self.instructions.values():
            for name in dict.fromkeys(each.operands):
                if name in users:
                    users[name].append(each)
        return users


@dataclasses.dataclass(frozen=True)
class Module:
    """A compiled program.

    Attributes:
        computations: by name.
        entry: name of the first.
        times: how often each computation runs in one call of the program.
        fused: names of computations whose instructions touch no memory of their own.
        endless: names of loops whose length is not known; they are counted once.
    """

    computations: dict[str, Computation]
    entry: str
    times: dict[str, float]
    fused: frozenset[str]
    endless: tuple[str, ...]

    def running(self) -> Iterator[tuple[Computation, float]]:
        """Yields the computations that run, with their number of runs."""
        for name, computation in self.computations.items():
            if self.times[name]:
                yield computation, self.times[name]


def parse(text: str) -> Module:
    """Reads the text of an optimised module (`compiled.as_text()`)."""
    computations, entry, current, name = {}, "", None, ""
    for line in text.splitlines():
        if current is None:
            header = _HEADER.match(line)
            if header and "->" in line:
                name, current = header[2], {}
                entry = name if header[1] else entry
        elif line.strip() == "}":
            computations[name] = Computation(name, current)
            current = None
        elif instruction := _instruction(line):
            current[instruction.name] = instruction
    return _counted(computations, entry)


def trip_count(loop: Instruction, computations: dict[str, Computation]) -> int | None:
    """Returns the number of runs of a while instruction's body; None if the text does not say."""
    annotation = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes)
    if annotation:
        return int(annotation[1])
    condition = computations.get(loop.called.get("condition", ""))
    if condition is None:
        return None
    limits = list(_integers(condition, computations))
    return max(limits) if limits and max(limits) > 0 else None


def _integers(computation: Computation, computations: dict[str, Computation]) -> Iterator[int]:
    """Returns the integer constants of a computation and of those it calls."""
    for each in computation.instructions.values():
        if each.opcode == "constant" and re.fullmatch(r"\d+", each.argument):
            yield int(each.argument)
        for name in each.called.values():
            if name in computations:
                yield from _integers(computations[name], computations)


def _counted(computations: dict[str, Computation], entry: str) -> Module:
    """Runs counts, callers before callees (XLA prints callees first)."""
    times = dict.fromkeys(computations, 0.0)
    times[entry] = 1.0
    fused, endless = set(), []
    for name in reversed(computations):
        inside = name in fused
        for each in computations[name].instructions.values():
            factor = 1.0
            if each.opcode == "while":
                trips = trip_count(each, computations)
                if trips is None:
                    endless.append(each.name)
                factor = 1.0 if trips is None else float(trips)
            for key, target in each.called.items():
                if target not in times:
                    continue
                times[target] += times[name] * factor
                if inside or each.opcode == "fusion" or key == "to_apply":
                    fused.add(target)
    return Module(computations, entry, times, frozenset(fused), tuple(endless))


def _instruction(line: str) -> Instruction | None:
    match = _INSTRUCTION.match(line)
    if not match:
        return None
    rest = match[3]
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.find(" ")
    kind, rest = rest[:end], rest[end:].lstrip()
    opening = rest.find("(")
    if opening < 0:
        return None
    closing = _closing(rest, opening)
    argument = rest[opening + 1 : closing]
    return Instruction(
        name=match[2],
        opcode=rest[:opening],
        arrays=_arrays(kind),
        operands=tuple(re.findall(r"%([\w.\-]+)", argument)),
        attributes=rest[closing + 1 :],
        argument=argument.strip(),
        root=bool(match[1]),
    )


def _closing(text: str, start: int) -> int:
    """Returns the index of the parenthesis that closes the one at `start`."""
    depth = 0
    for index in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[index], 0)
        if depth == 0:
            return index
    return len(text) - 1


def _arrays(kind: str) -> tuple[Array, ...]:
    return tuple(
        Array(dtype, tuple(int(size.lstrip("<=")) for size in shape.split(",") if size), layout)
        for dtype, shape, layout in _ARRAY.findall(kind)
    )


def _bits(dtype: str) -> int:
    if dtype in _SIZES:
        return 8 * _SIZES[dtype]
    digits = re.search(r"\d+", dtype)
    return int(digits[0]) if digits else 8
