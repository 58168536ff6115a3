"""Devices to compile for: a TPU slice that need not be present, or the devices of this machine.

libtpu compiles for any slice on any machine. It is an optional dependency (`pip install
'unclip_jax[tpu]'`); without it plans are for the devices of this machine.
"""

import importlib.util
import os
import re
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies

from unclip_jax.core.checks import UserError, one_of
from unclip_jax.planning import chips
from unclip_jax.planning.chips import Chip

# Numbers of dimensions in the names that libtpu knows.
DIMENSIONS = {"v4": (3,), "v5e": (2,), "v5p": (3,), "v6e": (2,)}


class CompileTarget(NamedTuple):
    """The devices that a program is compiled for.

    Attributes:
        name: "v5p:4x4x8", or "8 x cpu" for the devices of this machine.
        devices: one per chip, real or compile-only.
        chip: peaks, or None where they are not known.
        real: True if the devices are present.
    """

    name: str
    devices: list[Any]
    chip: Chip | None
    real: bool


def can_compile_for_tpu() -> bool:
    """True if libtpu is installed."""
    return importlib.util.find_spec("libtpu") is not None


def local_devices() -> CompileTarget:
    """Returns the devices of this machine."""
    devices = jax.devices()
    kind = devices[0].device_kind
    return CompileTarget(f"{len(devices)} x {kind}", devices, chips.of_kind(kind), True)


def tpu(name: str, *, slices: int = 1) -> CompileTarget:
    """Returns the chips of the TPU slice `name`, such as "v5e:16x16", or of several such slices.

    Touches no accelerator and initialises the CPU backend only, also on a TPU machine, whose chips
    another process may use.

    Raises:
        UserError: no such topology, or libtpu does not know it.
    """
    generation, sizes = parse(name)
    # An installed libtpu looks for chips, asks a metadata server for them and locks them.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-8")
    jax.config.update("jax_platforms", "cpu")
    options: dict[str, Any] = {"num_slices": slices} if slices > 1 else {}
    if generation == "v4":  # else two devices per chip
        options["chip_config_name"] = "megacore"
    try:
        topology = topologies.get_topology_desc(platform="tpu", topology_name=name, **options)
    except Exception as error:
        reason = str(error).split("\n")[0]
        raise UserError(
            f"libtpu knows no topology {name!r} ({reason}); sides of a slice are even, such as "
            f"{generation}:{'x'.join('4' for _ in sizes)}."
        ) from error
    devices = topology.devices
    many = f"{slices} x {name}" if slices > 1 else name
    return CompileTarget(many, devices, chips.of_kind(devices[0].device_kind), False)


def parse(name: str) -> tuple[str, tuple[int, ...]]:
    """Parses "v5p:4x4x8" to ("v5p", (4, 4, 8)).

    Raises:
        UserError: another form, or an unknown generation.
    """
    match = re.fullmatch(r"(\w+):(\d+(?:x\d+)*)", name)
    if not match:
        raise UserError(
            f"--topology is {name!r}; write GENERATION:AxB or GENERATION:AxBxC, for instance "
            "v5e:16x16 or v5p:4x4x8."
        )
    generation = one_of("TPU generation in --topology", match[1], DIMENSIONS)
    sizes = tuple(int(size) for size in match[2].split("x"))
    if len(sizes) not in DIMENSIONS[generation]:
        form = "x".join("ABC"[: DIMENSIONS[generation][0]])
        raise UserError(f"--topology is {name!r}; slices of {generation} are {generation}:{form}.")
    return generation, sizes
