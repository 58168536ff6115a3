"""Flags of every command that can run in several processes, and the connection they describe."""

import argparse
from typing import Any


def add(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that connect processes."""
    group = parser.add_argument_group("several processes (default: from the environment)")
    group.add_argument("--coordinator", help="HOST:PORT at which process 0 listens")
    group.add_argument("--num-processes", type=int, help="number of processes")
    group.add_argument("--process-id", type=int, help="rank of this one, from 0")
    group.add_argument(
        "--connect-timeout", type=int, default=300, help="seconds to wait for the others"
    )


def start(args: argparse.Namespace) -> None:
    """Connects the processes that the flags of `add` or the environment name.

    Raises:
        UserError: settings that contradict each other, or processes that do not answer in time.
    """
    from unclip_jax.parallel import cluster

    layout = cluster.ProcessLayout(args.coordinator, args.num_processes, args.process_id)
    cluster.start(layout, timeout=args.connect_timeout)


def start_alike(args: argparse.Namespace) -> None:
    """Connects the processes, and checks that all have the same arguments and software.

    Raises:
        UserError: as `start`; or the processes differ.
    """
    from unclip_jax.parallel import cluster, multihost

    start(args)
    multihost.check_same({**_common(vars(args)), **cluster.facts()})


def _common(arguments: dict[str, Any]) -> dict[str, str]:
    """Returns the arguments that all processes must have in common."""
    return {name: str(value) for name, value in arguments.items() if name != "process_id"}
