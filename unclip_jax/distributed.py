"""Several processes as one program: when, where from, and no longer than so.

`start` is called by every entry point before JAX touches a device. It connects the processes if

    flags          --coordinator=HOST:PORT --num_processes=N --process_id=I, all three
    environment    JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX_PROCESS_ID, all three
    Slurm          a step of several tasks; JAX finds the coordinator itself
    Cloud TPU, GKE several worker host names or slices; JAX finds the coordinator itself
    UNCLIP_DISTRIBUTED=1  set by launch scripts where nothing else shows; 0 forbids it

and otherwise does nothing: one process. Waiting is bounded, and ends in a message.
"""

import argparse
import dataclasses
import hashlib
import logging
import os
import pathlib
import socket
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any

import jax

from unclip_jax.core.checks import UserError
from unclip_jax.version import __version__

HEARTBEAT = 100  # seconds after which a silent process counts as dead and the others stop
MARGIN = 30  # seconds by which our own patience ends before JAX's, whose end is an abort
FAREWELL = 120  # seconds that a process that ends waits for the others

_TOGETHER = (
    "Start all of them at about the same time, with the same --coordinator and --num_processes, "
    "each with its own --process_id."
)

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Place:
    """Where this process stands; None = JAX finds out by itself.

    Attributes:
        coordinator: HOST:PORT at which process 0 listens.
        count: number of processes.
        index: of this one.
    """

    coordinator: str | None
    count: int | None
    index: int | None


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of every command that can run in several processes."""
    group = parser.add_argument_group("several processes (default: from the environment)")
    group.add_argument("--coordinator", help="HOST:PORT at which process 0 listens")
    group.add_argument("--num_processes", type=int, help="how many there are")
    group.add_argument("--process_id", type=int, help="which one this is, from 0")
    group.add_argument(
        "--connect_timeout", type=int, default=300, help="seconds to wait for the others"
    )


def start(args: argparse.Namespace) -> None:
    """Connect this process with the others, if there are any.

    Raises:
        UserError: settings that are incomplete or contradict each other, or others that do not
            answer in time.
    """
    place = find(args, os.environ)
    if place is None:
        return
    # JAX would catch SIGTERM from here on; the training loop has its own answer to it.
    jax.config.update("jax_enable_preemption_service", False)
    wait = args.connect_timeout
    if place.coordinator and place.index:
        _await(place.coordinator, wait)
    watch = threading.Timer(wait, _give_up, args=(wait,))
    watch.daemon = True
    watch.start()
    try:
        jax.distributed.initialize(
            coordinator_address=place.coordinator,
            num_processes=place.count,
            process_id=place.index,
            initialization_timeout=wait + MARGIN,
            heartbeat_timeout_seconds=HEARTBEAT,
            shutdown_timeout_seconds=FAREWELL,
        )
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise UserError(f"{_apart(wait)} ({reason}). {_TOGETHER}") from error
    finally:
        watch.cancel()
    if jax.process_index() > 0:  # one voice: the first process speaks for all
        logging.getLogger("unclip_jax").setLevel(logging.ERROR)
    log.info("process %d of %d", jax.process_index(), jax.process_count())


def find(args: argparse.Namespace, environ: Mapping[str, str]) -> Place | None:
    """Which processes there are, from flags, then from the environment; None = this one alone.

    Raises:
        UserError: settings that are incomplete or contradict each other.
    """
    given = (args.coordinator, args.num_processes, args.process_id)
    if any(value is not None for value in given):
        return _complete("--coordinator, --num_processes and --process_id", given)
    names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    told = environ.get("UNCLIP_DISTRIBUTED", "")
    if told not in ("", "0", "1"):
        raise UserError(f"UNCLIP_DISTRIBUTED is {told!r}; give 1, 0 or nothing.")
    if told == "0":
        return None
    if any(name in environ for name in names[1:]):
        where, *numbers = (environ.get(name) for name in names)
        for name, text in zip(names[1:], numbers, strict=True):
            if text is not None and not text.isdigit():
                raise UserError(f"{name} is {text!r}; it must be a number.")
        parsed = (None if text is None else int(text) for text in numbers)
        return _complete(", ".join(names), (where, *parsed))
    return Place(None, None, None) if told == "1" or _is_cluster(environ) else None


def facts() -> dict[str, Any]:
    """What must be equal in all processes besides the config: the code and its libraries."""
    return {"code": f"{__version__} {code_digest()}", "jax": jax.__version__}


def code_digest() -> str:
    """16 hexadecimal digits of the SHA-256 of every source file of this package."""
    root = pathlib.Path(__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root)}\n".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _is_cluster(environ: Mapping[str, str]) -> bool:
    """Whether Slurm, Cloud TPU or GKE has started more than one process."""
    tasks = environ.get("SLURM_STEP_NUM_TASKS", environ.get("SLURM_NTASKS", "1"))
    if "SLURM_PROCID" in environ and tasks.isdigit() and int(tasks) > 1:
        return True
    hosts = environ.get("TPU_PROCESS_ADDRESSES", environ.get("TPU_WORKER_HOSTNAMES", ""))
    slices = environ.get("MEGASCALE_NUM_SLICES", "1")
    return "," in hosts or (slices.isdigit() and int(slices) > 1)


def _complete(names: str, values: tuple[Any, ...]) -> Place:
    """A place whose three parts are there and fit together."""
    place = Place(*values)
    if None in values:
        raise UserError(f"{names} belong together; give all three or none.")
    host, _, port = str(place.coordinator).rpartition(":")
    if not host or not port.isdigit():
        raise UserError(f"the coordinator is {place.coordinator!r}; write HOST:PORT.")
    if not 0 <= int(values[2]) < int(values[1]):
        raise UserError(
            f"this is process {place.index} of {place.count}; processes are numbered from 0 to "
            "their number less 1."
        )
    return place


def _apart(seconds: float) -> str:
    return f"the processes did not come together within {seconds:g} s"


def _give_up(seconds: float) -> None:
    """End this process while JAX waits in C++, where no exception reaches it."""
    sys.stderr.write(f"error: {_apart(seconds)}. {_TOGETHER}\n")
    sys.stderr.flush()
    os._exit(2)


def _await(coordinator: str, seconds: float) -> None:
    """Wait until process 0 listens; asked here because JAX's own wait can end the process.

    Raises:
        UserError: it does not within `seconds`.
    """
    host, _, port = coordinator.rpartition(":")
    end = time.monotonic() + seconds
    while True:
        try:
            with socket.create_connection((host, int(port)), timeout=5.0):
                return
        except OSError as error:
            if time.monotonic() >= end:
                raise UserError(
                    f"the coordinator {coordinator} cannot be reached within {seconds:g} s "
                    f"({error}). Start process 0 too, check the address, and let the port through."
                ) from None
        time.sleep(0.2)
