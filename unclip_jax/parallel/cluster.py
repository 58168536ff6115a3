"""Connection of several processes into one JAX program, with a bounded wait.

Every command calls `start` before JAX touches a device. It connects the processes if one of these
names them, and does nothing otherwise:

    flags          --coordinator=HOST:PORT --num-processes=N --process-id=I, all three
    environment    JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX_PROCESS_ID, all three
    Slurm          a step of several tasks; JAX finds the coordinator itself
    Cloud TPU, GKE several worker host names or slices; JAX finds the coordinator itself
    UNCLIP_DISTRIBUTED=1  set by launch scripts where nothing else shows; 0 forbids it
"""

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

HEARTBEAT = 100  # seconds without a heartbeat after which a process counts as dead
MARGIN = 30  # seconds by which our timeout precedes JAX's, which aborts the process
SHUTDOWN = 120  # seconds that a finished process waits for the others
RESTART = 143  # exit status after which launch/until_done, Slurm and XPK start a process again

_ADVICE = (
    "Start all of them at about the same time, with the same --coordinator and --num-processes, "
    "each with its own --process-id."
)

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class ProcessLayout:
    """Rank and number of processes; None = JAX detects it.

    Attributes:
        coordinator: HOST:PORT at which process 0 listens.
        count: number of processes.
        index: rank of this process, from 0.
    """

    coordinator: str | None = None
    count: int | None = None
    index: int | None = None


def start(flags: ProcessLayout = ProcessLayout(), *, timeout: int = 300) -> None:
    """Connects this process with the others, if there are any.

    Args:
        flags: the layout from the command line; all None = from the environment.
        timeout: seconds to wait for the other processes.

    Raises:
        UserError: settings that are incomplete or contradict each other, or others that do not
            answer in time.
    """
    layout = detect(flags, os.environ)
    if layout is None:
        return
    # JAX would catch SIGTERM from here on; the training loop has its own answer to it.
    jax.config.update("jax_enable_preemption_service", False)
    if layout.coordinator and layout.index:
        _await(layout.coordinator, timeout)
    # Hosts that a launcher starts may come up minutes apart; by hand it is a mistake.
    status = RESTART if layout.coordinator is None else 2
    watchdog = threading.Timer(timeout, _abort, args=(timeout, status))
    watchdog.daemon = True
    watchdog.start()
    try:
        jax.distributed.initialize(
            coordinator_address=layout.coordinator,
            num_processes=layout.count,
            process_id=layout.index,
            initialization_timeout=timeout + MARGIN,
            heartbeat_timeout_seconds=HEARTBEAT,
            shutdown_timeout_seconds=SHUTDOWN,
        )
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise UserError(f"{_timed_out(timeout)} ({reason}). {_ADVICE}") from error
    finally:
        watchdog.cancel()
    if jax.process_index() > 0:  # only the first process logs
        logging.getLogger("unclip_jax").setLevel(logging.ERROR)
    log.info("process %d of %d", jax.process_index(), jax.process_count())


def detect(flags: ProcessLayout, environ: Mapping[str, str]) -> ProcessLayout | None:
    """Returns the layout from flags, else from the environment; None = a single process.

    Raises:
        UserError: settings that are incomplete or contradict each other.
    """
    values = dataclasses.astuple(flags)
    if any(value is not None for value in values):
        return _complete("--coordinator, --num-processes and --process-id", values)
    names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    switch = environ.get("UNCLIP_DISTRIBUTED", "")
    if switch not in ("", "0", "1"):
        raise UserError(f"UNCLIP_DISTRIBUTED is {switch!r}; give 1, 0 or nothing.")
    if switch == "0":
        return None
    if any(name in environ for name in names[1:]):
        address, *numbers = (environ.get(name) for name in names)
        for name, text in zip(names[1:], numbers, strict=True):
            if text is not None and not text.isdigit():
                raise UserError(f"{name} is {text!r}; it must be a number.")
        parsed = (None if text is None else int(text) for text in numbers)
        return _complete(", ".join(names), (address, *parsed))
    return ProcessLayout() if switch == "1" or _is_cluster(environ) else None


def facts() -> dict[str, Any]:
    """Returns versions that must be equal in all processes besides the config."""
    return {"code": f"{__version__} {code_digest()}", "jax": jax.__version__}


def code_digest() -> str:
    """16 hexadecimal digits of the SHA-256 of every source file of this package."""
    root = pathlib.Path(__file__).parents[1]
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root)}\n".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _is_cluster(environ: Mapping[str, str]) -> bool:
    """True if Slurm, Cloud TPU or GKE has started more than one process."""
    tasks = environ.get("SLURM_STEP_NUM_TASKS", environ.get("SLURM_NTASKS", "1"))
    if "SLURM_PROCID" in environ and tasks.isdigit() and int(tasks) > 1:
        return True
    hosts = environ.get("TPU_PROCESS_ADDRESSES", environ.get("TPU_WORKER_HOSTNAMES", ""))
    slices = environ.get("MEGASCALE_NUM_SLICES", "1")
    return "," in hosts or (slices.isdigit() and int(slices) > 1)


def _complete(names: str, values: tuple[Any, ...]) -> ProcessLayout:
    """Returns a complete and consistent layout.

    Raises:
        UserError: a value is missing or out of range.
    """
    layout = ProcessLayout(*values)
    if None in values:
        raise UserError(f"{names} belong together; give all three or none.")
    host, _, port = str(layout.coordinator).rpartition(":")
    if not host or not port.isdigit():
        raise UserError(f"the coordinator is {layout.coordinator!r}; write HOST:PORT.")
    if not 0 <= int(values[2]) < int(values[1]):
        raise UserError(
            f"this is process {layout.index} of {layout.count}; processes are numbered from 0 to "
            "their number less 1."
        )
    return layout


def _timed_out(seconds: int) -> str:
    return f"the processes did not connect within {seconds:g} s"


def _abort(seconds: int, status: int) -> None:
    """Ends this process while JAX waits in C++, where no exception reaches it."""
    sys.stderr.write(f"error: {_timed_out(seconds)}. {_ADVICE}\n")
    sys.stderr.flush()
    os._exit(status)


def _await(coordinator: str, seconds: float) -> None:
    """Waits until process 0 listens; done here because JAX's own wait can end the process.

    Raises:
        UserError: it does not listen within `seconds`.
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
