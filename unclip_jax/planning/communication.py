"""Traffic of every device in one step, by kind of collective.

Bytes are those that arrive at one device under a ring algorithm (Patarasuk & Yuan 2009), with g the
size of a group:

    all-gather          output x (g-1)/g
    reduce-scatter      input  x (g-1)/g
    all-reduce          input  x (g-1)/g x 2   (a reduce-scatter, then an all-gather)
    all-to-all          input  x (g-1)/g
    collective-permute  input
"""

import dataclasses
import math
import re

from unclip_jax.planning.hlo import Computation, Instruction, Module

KINDS = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective of the program.

    Attributes:
        kind: among KINDS.
        group: devices that take part together.
        arrived: bytes that arrive at one device each time.
        times: per step.
        identity: the same for copies of one collective.
    """

    kind: str
    group: int
    arrived: float
    times: float
    identity: str

    @property
    def bytes(self) -> float:
        """Bytes that arrive at one device per step."""
        return self.arrived * self.times


def collectives(module: Module, *, devices: int) -> list[Collective]:
    """Lists every collective of a program, each once.

    The TPU compiler repeats an asynchronous collective in the fusions that carry it along; all its
    copies have one channel. Outside fusions the channel says nothing: JAX's manual collectives all
    have the same one.

    Args:
        module: the program.
        devices: that run it, where groups are not written out.
    """
    by_identity: dict[str, Collective] = {}
    for computation, times in module.running():
        for each in computation.instructions.values():
            kind = each.opcode.removesuffix("-start")
            if kind not in KINDS:
                continue
            fused = computation.name in module.fused
            collective = _collective(
                kind, each, computation, fused=fused, times=times, devices=devices
            )
            previous = by_identity.get(collective.identity)
            if previous is None or previous.times < collective.times:
                by_identity[collective.identity] = collective
    return [each for each in by_identity.values() if each.group > 1]


def bytes_by_kind(collectives: list[Collective]) -> dict[str, float]:
    """Returns the bytes that arrive at one device per step, by the kinds that occur."""
    totals = {kind: sum(c.bytes for c in collectives if c.kind == kind) for kind in KINDS}
    return {kind: total for kind, total in totals.items() if total}


def group_size(attributes: str, *, devices: int) -> int:
    """Returns the devices per group of a collective's `replica_groups`, in any form of XLA's.

    Lists {{0,1},{2,3}}, iota [groups,size]<=[...], and meshes mesh['a'=2,'b'=4] {'b'}, whose axes
    may be cut: 'b':(2)2 is two devices of b.
    """
    if listed := re.search(r"replica_groups=\{\{([\d,]*)\}", attributes):
        return len(listed[1].split(","))
    if iota := re.search(r"replica_groups=\[(\d+),(\d+)\]", attributes):
        return int(iota[2])
    if mesh := re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", attributes):
        sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", mesh[1])}
        used = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", mesh[2])
        return math.prod(int(part) if part else sizes[name] for name, part in used)
    return devices


def _collective(
    kind: str,
    line: Instruction,
    computation: Computation,
    *,
    fused: bool,
    times: float,
    devices: int,
) -> Collective:
    group = group_size(line.attributes, devices=devices)
    operands = [computation.instructions[name] for name in line.operands]
    operand_bytes = float(sum(array.bytes for each in operands for array in each.arrays))
    if kind == "all-reduce" and _scatters(line, computation):
        kind = "reduce-scatter"
    share = (group - 1) / group
    if kind == "all-gather":
        arrived = operand_bytes * (group - 1)  # a start returns its input too
    elif kind == "all-reduce":
        arrived = 2 * operand_bytes * share
    elif kind == "collective-permute":
        arrived, group = operand_bytes, 2
    else:
        arrived = operand_bytes * share
    channel = re.search(r"channel_id=(\d+)", line.attributes)
    identity = f"{computation.name}/{line.name}"
    if fused and channel:
        identity = f"{kind} {channel[1]} over {group} of {operand_bytes}"
    return Collective(kind, group, arrived, times, identity)


def _scatters(line: Instruction, computation: Computation) -> bool:
    """True for a slice of an all-reduce, the TPU compiler's form of a reduce-scatter."""
    users = computation.users[line.name]
    return (
        computation.name.startswith("all-reduce-scatter")
        and bool(users)
        and all(user.opcode == "dynamic-slice" for user in users)
    )
