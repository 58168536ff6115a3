"""Search for a mesh, a number of microbatches and a remat policy.

Candidates are first ranked without compiling, from one trace per remat policy: bytes of the state
per chip, bytes stored for the backward pass (`training.memory`), FLOPs, and the traffic of
parameters and gradients under ring collectives. The best few are then compiled, which decides.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax

from unclip_jax.core import batch as batches
from unclip_jax.core.checks import UserError
from unclip_jax.core.trees import num_bytes
from unclip_jax.experiment.config import Experiment
from unclip_jax.parallel import place
from unclip_jax.parallel.mesh import MeshConfig, batch_shards, make_mesh
from unclip_jax.planning import flops
from unclip_jax.planning.compile_target import CompileTarget
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
        """Returns the candidate as command-line flags."""
        sizes = ",".join(f"{k}={v}" for k, v in dataclasses.asdict(self.mesh).items())
        return f"--mesh={sizes} --config.train.accumulate={self.accumulate}, remat {self.remat}"


class RankedCandidate(NamedTuple):
    """A candidate with its estimates before compilation.

    Attributes:
        candidate: the way to run.
        bytes: per chip, approximately.
        seconds: lower bound of a step.
    """

    candidate: Candidate
    bytes: float
    seconds: float


class RematCost(NamedTuple):
    """Cost of one remat policy: bytes stored for the backward pass per example, FLOPs per step."""

    stored: float
    flops: float


def candidates(*, chips: int, rules: str, batch_size: int, splittable: bool) -> Iterator[Candidate]:
    """Yields every way to run that divides the chips and the batch.

    Args:
        chips: number of chips.
        rules: sharding table; decides which mesh axes can be used.
        batch_size: of a step over all chips.
        splittable: True if the batch may be processed in microbatches.
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


def screen(experiment: Experiment, target: CompileTarget) -> list[RankedCandidate]:
    """Returns all candidates that may fit, the fastest first.

    Raises:
        UserError: the peaks of the target are unknown, or nothing fits.
    """
    chip, chips = target.chip, len(target.devices)
    if chip is None:
        raise UserError("--search needs published peaks; give a --topology.")
    stage, size = experiment.build_stage(), experiment.train.batch_size
    costs = {remat: _cost(with_remat(experiment, remat), size) for remat in REMAT}
    shapes = place.unbox(jax.eval_shape(stage.init, jax.random.key(0)))
    ranked, least, copy = [], float("inf"), float(num_bytes(shapes))
    parts = stage.splittable or not (stage.pairwise is None or experiment.optim.sam_batch)
    options = candidates(chips=chips, rules=experiment.rules, batch_size=size, splittable=parts)
    sizes: dict[MeshConfig, tuple[int, int, int]] = {}
    for each in options:
        if each.mesh not in sizes:
            sizes[each.mesh] = _state(experiment, each.mesh, target)
        state, gradients, shards = sizes[each.mesh]
        cost = costs[each.remat]
        required = state + gradients + cost.stored * size / each.accumulate / shards
        least = min(least, required)
        if required > chip.hbm:
            continue
        compute = cost.flops / chips / chip.flops
        moved = _traffic(copy, each)
        ranked.append(RankedCandidate(each, required, max(compute, moved / chip.all_axes)))
    if not ranked:
        raise UserError(
            f"nothing fits: every mesh of {chips} x {chip.name} needs at least "
            f"{place.size_text(least)} per chip, and one has {place.size_text(chip.hbm)}. Take "
            "more chips, or chips with more memory."
        )
    return sorted(ranked, key=lambda each: (each.seconds, each.bytes))


def with_remat(experiment: Any, policy: str) -> Any:
    """Returns `experiment` (or any config) with every field called remat set to `policy`."""
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(experiment):
        value = getattr(experiment, field.name)
        if field.name == "remat":
            changes["remat"] = policy
        elif dataclasses.is_dataclass(value):
            changes[field.name] = with_remat(value, policy)
    return dataclasses.replace(experiment, **changes)


def with_candidate(experiment: Any, candidate: Candidate) -> Any:
    """Returns `experiment` with the settings of `candidate`."""
    train = dataclasses.replace(experiment.train, accumulate=candidate.accumulate)
    changed = dataclasses.replace(experiment, train=train, mesh=candidate.mesh)
    return with_remat(changed, candidate.remat)


def _cost(experiment: Experiment, batch_size: int) -> RematCost:
    """Traces a step for its FLOPs and the bytes stored for its backward pass per example."""
    stage = experiment.build_stage()
    params = place.unbox(jax.eval_shape(stage.init, jax.random.key(0)))
    batch = batches.abstract(stage.batch_spec, batch_size)
    key = jax.eval_shape(lambda: jax.random.key(0))
    alone = make_mesh(MeshConfig(), devices=jax.devices()[:1])
    stored = memory.activations(stage, params, batch_size=batch_size, mesh=alone)
    slope = jax.grad(lambda p, b, k: stage.loss(p, b, k)[0])
    return RematCost(stored / batch_size, flops.count(slope, params, batch, key).flops)


def _state(experiment: Any, config: MeshConfig, target: CompileTarget) -> tuple[int, int, int]:
    """Returns the bytes per chip of the state and of the gradients, and the parts of a batch."""
    mesh = make_mesh(config, devices=target.devices)
    train_program = make_train_program(
        experiment.build_stage(),
        optim=experiment.optim,
        mesh=mesh,
        rules=experiment.rules,
        steps=experiment.train.steps,
        ema_decay=experiment.train.ema_decay,
    )
    state = place.bytes_per_device(train_program.abstract)
    return state, place.bytes_per_device(train_program.abstract.params), batch_shards(mesh)


def _traffic(parameters: float, candidate: Candidate) -> float:
    """Returns the bytes that arrive at a chip: parameters, scattered gradients, averaged shards.

    Args:
        parameters: float32 bytes of one whole copy; they travel in bfloat16.
        candidate: the way to run.
    """
    data, fsdp = candidate.mesh.data, candidate.mesh.fsdp
    half = parameters / 2
    fetched = GATHERS * half * (fsdp - 1) / fsdp
    scattered = half * (fsdp - 1) / fsdp
    averaged = 2 * half / fsdp * (data - 1) / data
    return candidate.accumulate * (fetched + scattered) + averaged
