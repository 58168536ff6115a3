"""The training loop: dispatch a step, fetch the next batch, report the previous step.

The loop depends on a stage only through its functions; everything else is a hook. A run is a
function of (stage, configs, data, seed): if it is interrupted and continued, the result is the same
bit for bit.
"""

import contextlib
import dataclasses
import logging
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh
from tqdm.contrib.logging import logging_redirect_tqdm

from unclip_jax.core import rng
from unclip_jax.core.checks import UserError
from unclip_jax.core.stage import Stage
from unclip_jax.core.types import Key, Metrics, Params
from unclip_jax.parallel import place
from unclip_jax.parallel.mesh import MeshConfig, check_batch, make_mesh
from unclip_jax.parallel.multihost import ConsensusStop
from unclip_jax.training import fingerprint, memory, replica_restore, sam
from unclip_jax.training.checkpoint import Checkpoints
from unclip_jax.training.config import TrainConfig
from unclip_jax.training.evaluators import HeldOut, Labels, PeriodicEval, SamplePreview
from unclip_jax.training.goodput import Goodput
from unclip_jax.training.hooks import (
    SAVE,
    Every,
    LoopState,
    MetricsWriter,
    NaNGuard,
    Numbers,
    Profiler,
    ProgressBar,
    SaveClock,
    StateHook,
    StepDone,
    StepHook,
)
from unclip_jax.training.optimizer import OptimConfig
from unclip_jax.training.prefetch import CheckpointableIterator, DevicePrefetcher, PrefetchedBatch
from unclip_jax.training.signals import Interrupted, Interrupts
from unclip_jax.training.state import TrainState
from unclip_jax.training.train_program import TrainProgram, make_train_program
from unclip_jax.training.wandb_log import WandbLog
from unclip_jax.training.watchdog import Watchdog
from unclip_jax.training.workdir import Workdir, as_workdir

log = logging.getLogger(__name__)


def train(
    stage: Stage,
    *,
    config: TrainConfig,
    optim: OptimConfig,
    mesh: MeshConfig,
    rules: str,
    train_data: CheckpointableIterator,
    eval_data: HeldOut | None,
    workdir: str | pathlib.Path | Workdir,
    identity: dict[str, Any],
    earlier: dict[str, Any] | None = None,
    devices: Sequence[Any] | None = None,
    initial: Callable[[], Params] | None = None,
    fitted: Callable[[], Params] | None = None,
    teacher: Callable[[], Params] | None = None,
    labels: Labels | None = None,
) -> TrainState:
    """Trains `stage` from scratch, or from the newest checkpoint in `workdir`, to the end.

    Args:
        stage: the stage to train.
        config: lengths, intervals and sizes.
        optim: settings of the optimiser.
        mesh: number of devices along each mesh axis.
        rules: sharding table, "dp", "fsdp" or "fsdp_tp".
        train_data: endless host batches (this process's part) with a position.
        eval_data: starts a pass over the same held-out batches; None = no evaluation.
        workdir: folder of checkpoints, metrics and images, or the places of these.
        identity: JSON-ready facts that identify the run; see `fingerprint.claim`.
        earlier: the identity in the form of earlier versions; see `fingerprint.claim`.
        devices: devices to train on; None = all.
        initial: returns the initial parameters (not boxed) instead of `stage.init`.
        fitted: returns the groups of parameters that a new run fits to the data; not called with
            `initial`, which includes them.
        teacher: returns the parameters (not boxed) of the stage's teacher, if it has one.
        labels: returns the captions of the sample grid for a held-out batch.

    Returns:
        The state after the last step, of which the workdir has a complete checkpoint.

    Raises:
        UserError: for all mistakes of the user, before the first step if possible.
        Interrupted: after SIGTERM or ctrl-C, when the state is saved; the same call continues.
    """
    program = prepare(stage, config, optim, mesh=make_mesh(mesh, devices=devices), rules=rules)
    _announce(stage, program, config, optim)
    run_dir = as_workdir(workdir)
    first = fingerprint.claim(run_dir.folder, identity, earlier=earlier)
    key = place.replicate(rng.fold(jax.random.key(config.seed), stage.name), program.mesh)
    with _opened(run_dir, config) as checkpoints, contextlib.ExitStack() as stack:
        try:
            state = _start(program, checkpoints, train_data, key, initial, fitted)
        except UserError:
            if first:  # nothing was trained, so other data or settings may use it
                fingerprint.release(run_dir.folder)
            raise
        start = int(jax.device_get(state.step))
        if start >= config.steps:
            log.info("%s: all %d steps are done", stage.name, start)
            return state
        fixed = () if teacher is None else (program.place_teacher(teacher()),)
        run = _Run(stage, program, config, key, run_dir.folder, start, str(run_dir), fixed)
        prefetcher = DevicePrefetcher(
            train_data, spec=stage.batch_spec, batch_size=config.batch_size, mesh=program.mesh
        )
        interrupts = stack.enter_context(Interrupts())
        stack.enter_context(logging_redirect_tqdm())
        hooks = _hooks(run, stack, checkpoints, eval_data, labels)
        return _iterate(run, state, prefetcher, hooks, checkpoints, interrupts)


def check_fit(
    stage: Stage, *, config: TrainConfig, optim: OptimConfig, mesh: MeshConfig, rules: str
) -> None:
    """Checks within seconds that a run fits these devices, before data are opened.

    `train` also checks the memory for activations.

    Raises:
        UserError: mesh, rules or batch size do not match, or the state exceeds the memory.
    """
    program = prepare(stage, config, optim, mesh=make_mesh(mesh), rules=rules)
    if config.check_memory:
        memory.check(
            stage, program.abstract, mesh=program.mesh, batch_size=0, teacher=program.teacher
        )


def newest(
    stage: Stage,
    *,
    config: TrainConfig,
    optim: OptimConfig,
    mesh: MeshConfig,
    rules: str,
    workdir: str | pathlib.Path | Workdir,
    identity: dict[str, Any],
    earlier: dict[str, Any] | None = None,
) -> TrainState:
    """Restores the newest checkpoint in `workdir`, without training.

    Raises:
        UserError: there is no checkpoint, or it belongs to another experiment.
    """
    run_dir = as_workdir(workdir)
    folder = run_dir.folder
    if not (folder / fingerprint.FILE).exists():
        raise UserError(f"{run_dir} holds no run; train first, or give another --workdir.")
    fingerprint.claim(folder, identity, earlier=earlier)
    program = prepare(stage, config, optim, mesh=make_mesh(mesh), rules=rules)
    with _opened(run_dir, config) as checkpoints:
        restored = checkpoints.restore(program.abstract)
    if restored is None:
        raise UserError(f"{run_dir} holds no checkpoint yet; train first.")
    return restored.state


def _opened(run_dir: Workdir, config: TrainConfig) -> Checkpoints:
    """Opens the checkpoints of a run."""
    return Checkpoints(
        run_dir.checkpoints,
        keep=config.keep,
        keep_every=config.keep_every,
        single_replica=config.single_replica_restore,
        before_save=run_dir.before_save,
    )


class _Run(NamedTuple):
    """The constants of a run."""

    stage: Stage
    program: TrainProgram
    config: TrainConfig
    key: Key
    workdir: pathlib.Path
    start: int
    name: str
    teacher: tuple[Params, ...]


class _Hooks(NamedTuple):
    """The hooks of a run: for steps, for states, and the one that saves, with its clock."""

    steps: list[StepHook]
    states: list[Every]
    save: StateHook
    clock: SaveClock


def prepare(
    stage: Stage, config: TrainConfig, optim: OptimConfig, *, mesh: Mesh, rules: str
) -> TrainProgram:
    """Prepares the program of a run.

    Raises:
        UserError: the mesh does not divide the batch, or replicas cannot be restored as `config`
            requests; see also `make_train_program`.
    """
    sizes = {"batch_size": config.batch_size, "accumulate": config.accumulate}
    check_batch(mesh, **sizes)
    if config.single_replica_restore:
        replica_restore.check(mesh)
    sam.copies(optim, mesh=mesh, **sizes)
    return make_train_program(
        stage,
        optim=optim,
        mesh=mesh,
        rules=rules,
        steps=config.steps,
        ema_decay=config.ema_decay,
        accumulate=config.accumulate,
    )


def _announce(stage: Stage, program: TrainProgram, config: TrainConfig, optim: OptimConfig) -> None:
    """Logs the memory and replicated bytes of a run, or rejects one that does not fit."""
    sizes = {"batch_size": config.batch_size, "accumulate": config.accumulate}
    line = memory.check(
        stage,
        program.abstract,
        mesh=program.mesh,
        batch_size=config.batch_size,
        accumulate=sam.parts(optim, mesh=program.mesh, **sizes),
        copies=sam.copies(optim, mesh=program.mesh, **sizes),
        enforce=config.check_memory,
        teacher=program.teacher,
    )
    log.info("%s", line)
    if program.mesh.shape["fsdp"] * program.mesh.shape["tensor"] > 1:
        log.info("%s: %s", stage.name, place.measure_replication(program.abstract).line())


def _start(
    program: TrainProgram,
    checkpoints: Checkpoints,
    data: CheckpointableIterator,
    key: Key,
    initial: Callable[[], Params] | None,
    fitted: Callable[[], Params] | None,
) -> TrainState:
    """Restores the newest checkpoint and the data position, or creates a fresh state."""
    restored = checkpoints.restore(program.abstract)
    if restored is not None:
        data.set_state(restored.position)
        log.info("continuing from step %d", int(jax.device_get(restored.state.step)))
        return restored.state
    if initial is not None:
        return program.create_from(initial())
    groups = None if fitted is None else fitted()  # before the state is allocated
    state = program.create(rng.fold(key, "init"))
    return state if groups is None else program.with_fitted(state, groups)


def _hooks(
    run: _Run,
    stack: contextlib.ExitStack,
    checkpoints: Checkpoints,
    eval_data: HeldOut | None,
    labels: Labels | None,
) -> _Hooks:
    """Creates the hooks of a run in their order; `stack` closes them."""
    stage, config, folder, start = run.stage, run.config, run.workdir, run.start
    size = config.batch_size
    bar = ProgressBar(name=stage.name, steps=config.steps, start=start, batch_size=size)
    stack.callback(bar.close)
    facts = {"stage": stage.name, **dataclasses.asdict(config)}
    remote = WandbLog(folder, project=config.wandb, name=run.name, facts=facts)
    stack.callback(remote.close)
    writer = MetricsWriter(
        folder, every=config.log_every, start=start, batch_size=size, copy=remote.write
    )
    stack.callback(writer.close)
    profiler = Profiler(folder, start=config.profile_start, steps=config.profile_steps)
    stack.callback(profiler.close)
    guard = NaNGuard(folder, most=config.max_bad_steps)
    watchdog = Watchdog(folder, minutes=config.stall_minutes)
    stack.callback(watchdog.close)
    goodput = Goodput(folder, start=start)
    stack.callback(goodput.close)

    def report(step: int, numbers: Numbers) -> None:
        writer.write(step, numbers)
        bar.note({name: value for name, value in numbers.items() if name == "val/loss"})

    clock = SaveClock(config.save_minutes)

    def save(moment: LoopState) -> None:
        clock.note_saved()
        with goodput.account("save"):
            _save(checkpoints, moment)
        goodput.write()

    state_hooks = [Every(config.save_every, save)]
    if eval_data is not None:
        where = {
            "key": run.key,
            "mesh": run.program.mesh,
            "shardings": run.program.shardings.params,
        }
        count = config.eval_batches
        options = {"count": count, "report": report, "teacher": run.teacher}
        validation = PeriodicEval(stage, eval_data, **options, **where)
        state_hooks.append(Every(config.eval_every, goodput.accounted("evaluate", validation)))
        if stage.preview is not None:
            count = config.num_samples
            samples = SamplePreview(
                stage, eval_data, count=count, folder=folder / "samples", labels=labels, **where
            )
            state_hooks.append(Every(config.sample_every, goodput.accounted("evaluate", samples)))
    steps = [writer, bar, profiler, guard, watchdog, goodput]
    return _Hooks(steps, state_hooks, save, clock)


def _iterate(
    run: _Run,
    state: TrainState,
    prefetcher: DevicePrefetcher,
    hooks: _Hooks,
    checkpoints: Checkpoints,
    interrupts: Interrupts,
) -> TrainState:
    """Runs the steps from `run.start` to the last."""
    step, batch, pending = run.start, prefetcher.next(), None
    consensus = ConsensusStop(run.program.mesh)
    while step < run.config.steps:
        state, metrics = run.program.step(state, batch.device, run.key, *run.teacher)
        step += 1
        last = step == run.config.steps
        before, pending = pending, (step, metrics, batch)
        moment = LoopState(step, state, batch.position)
        if not last:
            batch = _next(prefetcher, moment, checkpoints)  # while the device works
        _report(before, hooks.steps)  # waits for the step before this one
        request = consensus(interrupts.number or hooks.clock.request())
        signal = None if request == SAVE else request
        hurried = signal is not None and not last  # no time for samples after preemption
        due = [e.hook for e in hooks.states if not hurried and e.due(step, last=last)]
        if request == SAVE and hooks.save not in due:
            due.insert(0, hooks.save)
        if due or signal is not None:
            _report(pending, hooks.steps)
            pending = None
        for hook in due:
            hook(moment)
        if signal is not None or (last and run.config.save_every):
            checkpoints.save_now(step, state, position=moment.position)
        if signal is not None:
            log.warning("saved at step %d; the same command continues", step)
            raise Interrupted(signal, step)
    return state


def _report(done: tuple[int, Metrics, PrefetchedBatch] | None, hooks: list[StepHook]) -> None:
    """Waits for a step's metrics and passes them to the step hooks."""
    if done is not None:
        step, metrics, batch = done
        started = time.perf_counter()
        numbers = {name: float(value) for name, value in jax.device_get(metrics).items()}
        numbers["device_seconds"] = time.perf_counter() - started
        numbers["data_seconds"] = batch.wait_seconds
        for hook in hooks:
            hook(StepDone(step, numbers, batch.host))


def _next(
    prefetcher: DevicePrefetcher, moment: LoopState, checkpoints: Checkpoints
) -> PrefetchedBatch:
    """Fetches the next batch; if that fails, saves a checkpoint before raising the error.

    With several processes nothing is saved, because one cannot save alone and does not know whether
    the others fail.
    """
    try:
        return prefetcher.next()
    except UserError:
        if jax.process_count() == 1:
            _save(checkpoints, moment)
        raise


def _save(checkpoints: Checkpoints, moment: LoopState) -> None:
    checkpoints.save(moment.step, moment.state, position=moment.position)
