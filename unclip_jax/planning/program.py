"""Programs to plan: one train step, or one call of a stage's sampling function.

Both are traced and compiled from shapes alone, with the functions that `train` and `sample` run.
"""

import dataclasses
import re
import time
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from unclip_jax.core import batch as batches
from unclip_jax.core.config import as_dict
from unclip_jax.core.stage import Stage
from unclip_jax.core.trees import count
from unclip_jax.experiment.config import Experiment
from unclip_jax.parallel import place
from unclip_jax.parallel.mesh import batch_sharding, replicated, traced_on
from unclip_jax.planning import flops, sampling
from unclip_jax.stages import distillation
from unclip_jax.training.train_program import make_train_program

EFFORTS = {"default": {}, "low": {"exec_time_optimization_effort": -1.0}}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
    """A traced program with its properties before compilation.

    Attributes:
        what: "train" or "sample".
        mesh: of the devices it is for.
        examples: per call.
        calls: of a whole training run; None for sampling.
        parameters: of the stage.
        resident: bytes per device that stay allocated between calls, by kind.
        model_flops: of one call over all devices, without recomputation: 3 times the forward pass
            for each gradient that training needs (two with SAM), all FLOPs for sampling.
        traced: FLOPs of one call over all devices as written, recomputation included.
        lowered: ready to compile.
        memory_options: ways to lower the memory of activations, most useful first.
    """

    what: str
    mesh: Mesh
    examples: int
    calls: int | None
    parameters: int
    resident: dict[str, int]
    model_flops: float
    traced: flops.Count
    lowered: Any
    memory_options: tuple[str, ...]


class CompiledProgram(NamedTuple):
    """Output of the compiler.

    Attributes:
        text: of the program for one device; None if XLA failed to write it.
        memory: XLA's memory analysis.
        seconds: time of compilation.
        failure: first line of XLA's message, if there is no text.
    """

    text: str | None
    memory: Any
    seconds: float
    failure: str = ""


class RejectedProgram(NamedTuple):
    """A program that the compiler rejects for lack of memory.

    Attributes:
        reason: first line of its message.
        required: bytes that the program needs, if the message says so.
    """

    reason: str
    required: float | None


def train(experiment: Experiment, *, mesh: Mesh) -> Program:
    """Traces one step of training `experiment` on `mesh`.

    Raises:
        UserError: see `make_train_program`.
    """
    stage, config, optim = experiment.build_stage(), experiment.train, experiment.optim
    train_program = make_train_program(
        stage,
        optim=optim,
        mesh=mesh,
        rules=experiment.rules,
        steps=config.steps,
        ema_decay=config.ema_decay,
        accumulate=config.accumulate,
    )
    batch = batches.abstract(stage.batch_spec, config.batch_size)
    key = jax.eval_shape(lambda: jax.random.key(0))
    plain = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), train_program.abstract.params
    )
    transferred = batches.abstract(stage.batch_spec, config.batch_size, transferred=True)
    teacher = train_program.teacher
    traced = train_program.step.trace(train_program.abstract, transferred, key, *teacher)
    return Program(
        what="train",
        mesh=mesh,
        examples=config.batch_size,
        calls=config.steps,
        parameters=count(plain),
        resident={
            "parameters": place.bytes_per_device(train_program.abstract.params),
            "optimiser": place.bytes_per_device(train_program.abstract.opt_state),
            "average": place.bytes_per_device(train_program.abstract.ema_params),
            **({"teacher": place.bytes_per_device(teacher)} if teacher else {}),
        },
        model_flops=_model_flops(stage, plain, batch, key, teacher) * (2 if optim.sam else 1),
        traced=flops.of_jaxpr(traced.jaxpr.jaxpr),
        lowered=traced.lower(),
        memory_options=memory_options(experiment, stage),
    )


def _model_flops(
    stage: Stage, params: Any, batch: Any, key: Any, teacher: tuple[Any, ...]
) -> float:
    """Returns the FLOPs of a training step on ShapeDtypeStructs; a teacher takes one forward pass.

    With a teacher they are those of the gradient as written, recomputation included.
    """

    def loss(params: Any, batch: Any, key: Any) -> Any:
        return stage.loss(params, batch, key, *teacher)[0]

    if teacher:
        return flops.count(jax.grad(loss), params, batch, key).flops
    return 3 * flops.count(loss, params, batch, key).flops


def memory_options(experiment: Experiment, stage: Stage) -> tuple[str, ...]:
    """Returns ways to lower the memory of activations in training, most useful first."""
    options = []
    optim = experiment.optim
    if optim.sam_batch and not optim.sam_cached:
        options.append("--config.optim.sam_cached=True (one replica of SAM at a time)")
    if stage.splittable or (stage.pairwise is not None and not optim.sam_batch):
        options.append(f"--config.train.accumulate={2 * experiment.train.accumulate} or more")
    if "block" not in _values(as_dict(experiment.model), "remat"):
        options.append("the model's remat 'block'")
    return (*options, "more chips")


def _values(settings: Any, name: str) -> set[Any]:
    """Returns the values of all keys called `name`, at any depth."""
    if not isinstance(settings, dict):
        return set()
    below = (_values(value, name) for value in settings.values())
    return set().union({settings[name]} if name in settings else set(), *below)


def sample(experiment: Experiment, *, mesh: Mesh, batch_size: int) -> Program:
    """Traces one call of the stage's sampling function, with all parameters on every device.

    Raises:
        UserError: a stage that is not sampled.
    """
    stage = experiment.build_stage()
    model = experiment.model
    if experiment.distill is not None:
        model = distillation.student_config(model, experiment.distill)
    draw, inputs = sampling.function(experiment.stage, model, batch_size=batch_size)
    boxed = jax.eval_shape(stage.init, jax.random.key(0))
    params = place.unbox(boxed)
    whole, split = replicated(mesh), batch_sharding(mesh)
    jitted = jax.jit(traced_on(mesh, draw), in_shardings=(whole, split), out_shardings=split)
    traced = jitted.trace(params, inputs)
    counted = flops.of_jaxpr(traced.jaxpr.jaxpr)
    placed = place.abstract(params, jax.tree.map(lambda _: whole, params))
    return Program(
        what="sample",
        mesh=mesh,
        examples=batch_size,
        calls=None,
        parameters=count(params),
        resident={"parameters": place.bytes_per_device(placed)},
        model_flops=counted.flops,
        traced=counted,
        memory_options=("--batch with fewer images", "chips with more memory"),
        lowered=traced.lower(),
    )


def compile_program(
    program: Program, *, effort: str = "default"
) -> CompiledProgram | RejectedProgram:
    """Compiles for the program's devices.

    Args:
        program: to compile.
        effort: "default", or "low", which finds slower code in a tenth of the time (TPU only).
    """
    began = time.perf_counter()
    tpu = program.mesh.devices.flat[0].platform == "tpu"
    try:
        compiled = program.lowered.compile(compiler_options=EFFORTS[effort] if tpu else {})
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return _too_large(str(error))
    seconds, memory = time.perf_counter() - began, compiled.memory_analysis()
    try:
        return CompiledProgram(compiled.as_text(), memory, seconds)
    except jax.errors.JaxRuntimeError as error:  # some asynchronous operations fail a check of XLA
        return CompiledProgram(None, memory, seconds, failure=str(error).splitlines()[0])


def _too_large(message: str) -> RejectedProgram:
    """Parses the compiler's message, with sizes such as 725.12G or 512.0M in powers of 1024."""
    line = next(
        (part for part in message.splitlines() if "exceed" in part), message.splitlines()[0]
    )
    sizes = re.findall(r"(\d+(?:\.\d+)?)([KMGT])\b", line)
    scale = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
    required = max((float(number) * scale[unit] for number, unit in sizes), default=None)
    return RejectedProgram(line.removeprefix("RESOURCE_EXHAUSTED: ").strip(), required)
