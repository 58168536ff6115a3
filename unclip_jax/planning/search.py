"""Which mesh, how many microbatches, which remat policy: screened without compiling, then compiled.

The screen traces a stage once per remat policy and knows: bytes of the state per chip, what the
backward pass keeps (`training.memory`), FLOPs, and the traffic of parameters and gradients under
ring collectives. It ranks candidates; the first few are then compiled, which decides.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax

from unclip_jax.core import batch as batches
from unclip_jax.core.checks import UserError
from unclip_jax.core.trees import num_bytes
from unclip_jax.parallel import place
from unclip_jax.parallel.mesh import MeshConfig, batch_shards, make_mesh
from unclip_jax.planning import flops
from unclip_jax.planning.compile_target import CompileTarget
from unclip_jax.planning.program import Experiment
from unclip_jax.training import memory
from unclip_jax.training.train_program import make_train_program

REMAT = ("none", "dots", "block")  # from fastest to smallest
MICROBATCHES = (1, 2, 4)
# Passes over the parameters in bfloat16: forward, and backward with its recomputation.
GATHERS = 3


class Candidate(NamedTuple):
    """One way to run a stage on given chips."""

    mesh: MeshConfig
    accumulate: int
    remat: str

    def line(self) -> str:
        """As the command line writes it."""
        sizes = ",".join(f"{k}={v}" for k, v in dataclasses.asdict(self.mesh).items())
        return f"--mesh={sizes} --config.train.accumulate={self.accumulate}, remat {self.remat}"


class Screened(NamedTuple):
    """What is known of a candidate before it is compiled.

    Attributes:
        candidate: which.
        bytes: a chip must hold, about.
        seconds: a step takes at least.
    """

    candidate: Candidate
    bytes: float
    seconds: float


class Traced(NamedTuple):
    """Of one remat policy: bytes that the backward pass keeps per example, FLOPs of a step."""

    kept: float
    flops: float


def candidates(*, chips: int, rules: str, batch_size: int, splittable: bool) -> Iterator[Candidate]:
    """Every way that divides the chips and the batch.

    Args:
        chips: there are.
        rules: sharding table; decides which mesh axes can be used.
        batch_size: of a step over all chips.
        splittable: whether the loss allows microbatches.
    """
    powers = [2**n for n in range(chips.bit_length()) if chips % 2**n == 0]
    for fsdp in powers if rules != "dp" else [1]:
        for tensor in (1, 2, 4) if rules == "fsdp_tp" else (1,):
            if chips % (fsdp * tensor):
                continue
            mesh = MeshConfig(data=chips // (fsdp * tensor), fsdp=fsdp, tensor=tensor)
            for parts in MICROBATCHES if splittable else (1,):
                if batch_size % (parts * chips // tensor) == 0:
                    yield from (Candidate(mesh, parts, remat) for remat in REMAT)


def screen(experiment: Experiment, target: CompileTarget) -> list[Screened]:
    """All candidates that may fit, the fastest first.

    Raises:
        UserError: the peaks of the target are not known, or nothing fits.
    """
    chip, chips = target.chip, len(target.devices)
    if chip is None:
        raise UserError("--search needs published peaks; give a --topology.")
    stage, size = experiment.build_stage(), experiment.train.batch_size
    traced = {remat: _trace(with_remat(experiment, remat), size) for remat in REMAT}
    shapes = place.unbox(jax.eval_shape(stage.init, jax.random.key(0)))
    found, least, copy = [], float("inf"), float(num_bytes(shapes))
    options = candidates(
        chips=chips, rules=experiment.rules, batch_size=size, splittable=stage.splittable
    )
    sizes: dict[MeshConfig, tuple[int, int, int]] = {}
    for each in options:
        if each.mesh not in sizes:
            sizes[each.mesh] = _state(experiment, each.mesh, target)
        state, gradients, shards = sizes[each.mesh]
        own = traced[each.remat]
        held = state + gradients + own.kept * size / each.accumulate / shards
        least = min(least, held)
        if held > chip.hbm:
            continue
        compute = own.flops / chips / chip.flops
        moved = _traffic(copy, each)
        found.append(Screened(each, held, max(compute, moved / chip.all_axes)))
    if not found:
        raise UserError(
            f"nothing fits: every mesh of {chips} x {chip.name} needs at least "
            f"{place.size_text(least)} per chip, and one has {place.size_text(chip.hbm)}. Take "
            "more chips, or chips with more memory."
        )
    return sorted(found, key=lambda each: (each.seconds, each.bytes))


def with_remat(experiment: Any, policy: str) -> Any:
    """`experiment` (or any config), every field called remat set to `policy`."""
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(experiment):
        value = getattr(experiment, field.name)
        if field.name == "remat":
            changes["remat"] = policy
        elif dataclasses.is_dataclass(value):
            changes[field.name] = with_remat(value, policy)
    return dataclasses.replace(experiment, **changes)


def chosen(experiment: Any, candidate: Candidate) -> Any:
    """`experiment` as the candidate says."""
    train = dataclasses.replace(experiment.train, accumulate=candidate.accumulate)
    changed = dataclasses.replace(experiment, train=train, mesh=candidate.mesh)
    return with_remat(changed, candidate.remat)


def _trace(experiment: Experiment, batch_size: int) -> Traced:
    """FLOPs of a whole step, and what the backward pass keeps per example."""
    stage = experiment.build_stage()
    params = place.unbox(jax.eval_shape(stage.init, jax.random.key(0)))
    batch = batches.abstract(stage.batch_spec, batch_size)
    key = jax.eval_shape(lambda: jax.random.key(0))
    alone = make_mesh(MeshConfig(), devices=jax.devices()[:1])
    kept = memory.activations(stage, params, batch_size=batch_size, mesh=alone)
    slope = jax.grad(lambda p, b, k: stage.loss(p, b, k)[0])
    return Traced(kept / batch_size, flops.count(slope, params, batch, key).flops)


def _state(experiment: Any, config: MeshConfig, target: CompileTarget) -> tuple[int, int, int]:
    """Bytes per chip of the state and of the gradients, and the parts of a batch."""
    mesh = make_mesh(config, devices=target.devices)
    train_program = make_train_program(
        experiment.build_stage(),
        optim=experiment.optim,
        mesh=mesh,
        rules=experiment.rules,
        steps=experiment.train.steps,
        ema_decay=experiment.train.ema_decay,
    )
    held = place.bytes_per_device(train_program.abstract)
    return held, place.bytes_per_device(train_program.abstract.params), batch_shards(mesh)


def _traffic(parameters: float, candidate: Candidate) -> float:
    """Bytes that arrive at a chip: parameters fetched, gradients scattered, shards averaged.

    Args:
        parameters: float32 bytes of one whole copy; they travel in bfloat16.
        candidate: how it is run.
    """
    data, fsdp = candidate.mesh.data, candidate.mesh.fsdp
    half = parameters / 2
    fetched = GATHERS * half * (fsdp - 1) / fsdp
    scattered = half * (fsdp - 1) / fsdp
    averaged = 2 * half / fsdp * (data - 1) / data
    return candidate.accumulate * (fetched + scattered) + averaged
