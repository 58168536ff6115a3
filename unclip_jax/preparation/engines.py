"""Engines that call a function for many items: this machine, Ray or Apache Beam.

The engine schedules and retries. The function is pure except for the files that it writes, and does
nothing if they exist. Ray and Beam are imported only when chosen.
"""

import contextlib
import dataclasses
import functools
import importlib.util
import multiprocessing
import os
import pathlib
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from concurrent.futures import process
from typing import Any

from unclip_jax.core.checks import UserError, one_of

NAMES = ("local", "ray", "beam")
_WAITING = 4  # items per process or Ray worker that are submitted ahead
_RETRIES = 3


@dataclasses.dataclass(frozen=True)
class Engine:
    """Engine of a preparation and its settings.

    Attributes:
        name: "local", "ray" or "beam".
        address: address of a Ray cluster, such as "auto" or "ray://host:10001"; "" = start one
            here.
        options: options of a Beam pipeline, such as "--runner=DataflowRunner".
        processes: number of processes of the local engine; 0 = only this process.
    """

    name: str = "local"
    address: str = ""
    options: tuple[str, ...] = ()
    processes: int = 0

    def __post_init__(self):
        one_of("--engine", self.name, NAMES)
        if self.options and self.name != "beam":
            raise UserError(
                f"--beam-option is for --engine=beam; the engine is {self.name}. Leave it out."
            )


def parse(text: str, *, options: Sequence[str] = (), processes: int = 0) -> Engine:
    """Parses `--engine=NAME` or `--engine=ray:ADDRESS`.

    Raises:
        UserError: the engine is unknown or not installed, or an engine other than Ray has an
            address.
    """
    name, colon, address = text.partition(":")
    engine = Engine(name, address, tuple(options), processes)
    if colon and name != "ray":
        raise UserError(
            f"--engine={text} has an address; only ray takes one, as in ray:auto. Leave it out."
        )
    module = {"ray": "ray", "beam": "apache_beam"}.get(name)
    if module and importlib.util.find_spec(module) is None:
        raise UserError(
            f"--engine={name} needs the package {module}; pip install 'unclip_jax[{name}]'."
        )
    return engine


def run(function: Callable[[Any], Any], items: Sequence[Any], engine: Engine) -> Iterator[Any]:
    """Calls `function` for every item and yields the results in any order; for Beam only Nones.

    Raises:
        UserError: that of the first failing item, after items in progress have finished.
    """
    if engine.name == "ray":
        yield from _on_ray(function, items, engine)
    elif engine.name == "beam":
        yield from _on_beam(function, items, engine)
    elif engine.processes and len(items) > 1:
        yield from _in_processes(function, items, engine.processes)
    else:
        for item in items:
            yield function(item)


def _in_processes(
    function: Callable[[Any], Any], items: Sequence[Any], processes: int
) -> Iterator[Any]:
    context = multiprocessing.get_context("spawn")  # does not inherit threads and locks
    count = min(processes, len(items))
    with futures.ProcessPoolExecutor(count, mp_context=context) as pool:
        try:
            queue: set[futures.Future[Any]] = set()
            for item in items:
                queue.add(pool.submit(function, item))
                if len(queue) >= _WAITING * count:
                    done, queue = futures.wait(queue, return_when=futures.FIRST_COMPLETED)
                    yield from (each.result() for each in done)
            yield from (each.result() for each in futures.as_completed(queue))
        except process.BrokenProcessPool as error:
            raise UserError(
                "a worker process was killed, probably for its memory; run the same command again "
                "with a smaller --workers: finished shards are kept."
            ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _on_ray(function: Callable[[Any], Any], items: Sequence[Any], engine: Engine) -> Iterator[Any]:
    import ray  # pyright: ignore[reportMissingImports]

    options: dict[str, Any] = {"address": engine.address}
    if not engine.address:  # workers import the package of this process
        path = str(pathlib.Path(__file__).parents[2])
        options = {"include_dashboard": False, "runtime_env": {"env_vars": {"PYTHONPATH": path}}}
    with _ray_session(ray, options):
        remote = ray.remote(num_cpus=1, max_retries=_RETRIES)(_call)
        ahead = _WAITING * max(int(ray.cluster_resources().get("CPU", 1)), 1)
        queue: list[Any] = []
        for item in items:
            queue.append(remote.remote(function, item))
            if len(queue) >= ahead:
                done, queue = ray.wait(queue, num_returns=1)
                yield _ray_result(ray, done[0])
        while queue:
            done, queue = ray.wait(queue, num_returns=1)
            yield _ray_result(ray, done[0])


@contextlib.contextmanager
def _ray_session(ray: Any, options: dict[str, Any]) -> Iterator[None]:
    """Connects to Ray, unless this process is connected already."""
    if ray.is_initialized():
        yield
        return
    try:
        ray.init(log_to_driver=False, **options)
    except Exception as error:
        where = options.get("address", "this machine")
        raise UserError(
            f"cannot start Ray on {where}: {_first_line(error)}; check --engine=ray:ADDRESS, or "
            "use --engine=local."
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def _ray_result(ray: Any, reference: Any) -> Any:
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise _translated(error) from error
    except ray.exceptions.RayError as error:
        raise UserError(
            f"Ray lost a task {_RETRIES + 1} times ({_first_line(error)}); run the same command "
            "again: finished shards are kept."
        ) from error


def _on_beam(
    function: Callable[[Any], Any], items: Sequence[Any], engine: Engine
) -> Iterator[None]:
    import apache_beam as beam  # pyright: ignore[reportMissingImports]
    from apache_beam.options.pipeline_options import (  # pyright: ignore[reportMissingImports]
        PipelineOptions,
    )

    try:
        with beam.Pipeline(options=PipelineOptions(list(engine.options))) as pipeline:
            begun = pipeline | beam.Create(list(items)) | beam.Reshuffle()
            _ = begun | beam.Map(functools.partial(_call_only, function))
    except Exception as error:
        raise _translated(error) from error
    yield from (None for _ in items)


def _call(function: Callable[[Any], Any], item: Any) -> Any:
    return function(item)


def _call_only(function: Callable[[Any], Any], item: Any) -> None:
    function(item)


def _translated(error: Exception) -> Exception:
    """Returns the `UserError` of a task if the engine reports one, else `error`."""
    cause = getattr(error, "cause", error)  # Ray wraps the exception
    if isinstance(cause, UserError):
        return UserError(str(cause).partition(" [while running")[0])
    match = re.search(r"\bUserError: (.*?)(?: \[while running .*)?$", str(error), re.MULTILINE)
    return UserError(match[1]) if match else error


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def cores() -> int:
    """Returns the number of cores available to this process."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
