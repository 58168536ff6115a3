"""Plans of a stage on given devices, from an experiment to JSON-ready reports."""

import dataclasses
import json
import logging
import pathlib
import sys
from typing import Any

from unclip_jax.core.checks import UserError, divisible, one_of, positive, suggest
from unclip_jax.parallel.mesh import MeshConfig, batch_shards, check_batch, make_mesh
from unclip_jax.planning import compile_target, plan_report, program, search
from unclip_jax.planning.compile_target import CompileTarget

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class PlanOptions:
    """Settings of a plan.

    Attributes:
        what: "train" or "sample".
        batch: images at once when sampling; None = 8 per chip.
        effort: of the compiler, a key of `program.EFFORTS`.
    """

    what: str = "train"
    batch: int | None = None
    effort: str = "default"

    def __post_init__(self):
        """Raises a `UserError` for an unknown effort."""
        one_of("--effort", self.effort, program.EFFORTS)


def parse_mesh(text: str) -> MeshConfig:
    """Returns the mesh that "data=4,fsdp=16" describes.

    Raises:
        UserError: an unknown axis, or a size that is no integer.
    """
    axes = [field.name for field in dataclasses.fields(MeshConfig)]
    sizes: dict[str, int] = {}
    for part in text.split(","):
        name, _, size = part.partition("=")
        if name not in axes:
            raise UserError(f"--mesh has no axis {name!r}.{suggest(name, axes)}")
        if not size.removeprefix("-").isdigit():
            raise UserError(f"--mesh gives {name} the size {size!r}; give an integer, -1 = rest.")
        sizes[name] = int(size)
    return MeshConfig(**sizes)


def find_target(name: str, *, slices: int = 1) -> CompileTarget:
    """Returns the TPU slice `name`; the local devices if it is "" or libtpu is missing.

    Raises:
        UserError: no such slice.
    """
    if not name:
        return compile_target.local_devices()
    compile_target.parse(name)
    if compile_target.can_compile_for_tpu():
        return compile_target.tpu(name, slices=slices)
    target = compile_target.local_devices()
    sys.stderr.write(
        f"libtpu is not installed (pip install 'unclip_jax[tpu]'), so {name} cannot be compiled "
        f"for; planning for the device at hand, {target.name}, instead\n"
    )
    return target


def plan(experiment: Any, target: CompileTarget, options: PlanOptions) -> dict[str, Any]:
    """Returns the plan of one program.

    Args:
        experiment: an `unclip_jax.experiment.config.Experiment`.
        target: devices to compile for.
        options: which program, and how to compile it.

    Raises:
        UserError: a mesh that does not divide the chips or the batch.
    """
    mesh = make_mesh(experiment.mesh, devices=target.devices)
    if options.what == "train":
        train = experiment.train
        check_batch(mesh, batch_size=train.batch_size, accumulate=train.accumulate)
        traced = program.train(experiment, mesh=mesh)
    else:
        shards = batch_shards(mesh)
        batch = options.batch or 8 * shards
        divisible("--batch", positive("--batch", batch), shards, "the mesh splits it.")
        traced = program.sample(experiment, mesh=mesh, batch_size=batch)
    return {
        "experiment": experiment.name,
        "size": experiment.size,
        "rules": experiment.rules,
        "accumulate": experiment.train.accumulate,
        **plan_report.make(traced, target, effort=options.effort),
    }


def plan_candidates(
    experiment: Any, target: CompileTarget, options: PlanOptions, *, count: int
) -> list[dict[str, Any]]:
    """Returns the plans of the `count` most promising candidates, fitting and fast ones first."""
    ranked = search.screen(experiment, target)
    log.info("%d candidates may fit; compiling %d", len(ranked), min(count, len(ranked)))
    plans = []
    for screened in ranked[:count]:
        candidate = screened.candidate
        result = plan(search.with_candidate(experiment, candidate), target, options)
        plans.append({**result, "candidate": candidate.line()})
    return sorted(plans, key=lambda each: (not each["fits"], _step_seconds(each)))


def _step_seconds(result: dict[str, Any]) -> float:
    estimate = result.get("estimate")
    return estimate["step_seconds"][0] if estimate else float("inf")


def write(path: pathlib.Path, value: Any) -> None:
    """Writes plans as JSON.

    Raises:
        UserError: the place cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; give another --out.") from None
