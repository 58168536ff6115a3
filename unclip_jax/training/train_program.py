"""The training program of a stage: optimiser, shapes, shardings and the jitted step.

No parameters are allocated and no data are read, so a program can also be compiled ahead of time
for absent devices: `program.step.lower(program.abstract, batch, key).compile()`.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from unclip_jax.core.checks import UserError
from unclip_jax.core.stage import Stage
from unclip_jax.core.trees import shape_differences
from unclip_jax.core.types import Key, Params
from unclip_jax.parallel import place
from unclip_jax.parallel.mesh import batch_sharding, replicated, traced_on
from unclip_jax.training import differentiation
from unclip_jax.training import state as states
from unclip_jax.training.optimizer import OptimConfig, Optimizer, make_optimizer
from unclip_jax.training.state import TrainState
from unclip_jax.training.step import make_train_step


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainProgram:
    """The functions and shapes with which a state is created, restored and advanced.

    Attributes:
        mesh: the devices.
        optimizer: the optax transformation and its rate.
        shardings: a TrainState of NamedShardings.
        abstract: a TrainState of ShapeDtypeStructs with these shardings.
        create: key -> state, created already sharded.
        step: the jitted step (state, batch, key, *teacher); donates the state.
        teacher: () or the parameters of the stage's teacher, as ShapeDtypeStructs with shardings.
    """

    mesh: Mesh
    optimizer: Optimizer
    shardings: TrainState
    abstract: TrainState
    create: Callable[[Key], TrainState]
    step: Any
    teacher: tuple[Any, ...] = ()

    def place_teacher(self, params: Params) -> Params:
        """Places the parameters of a teacher on the devices.

        Raises:
            UserError: they do not fit this stage.
        """
        (abstract,) = self.teacher
        lines = shape_differences(abstract, params)
        if lines:
            raise UserError(
                f"the teacher's parameters do not fit the stage: {lines[0]}. Give the teacher's "
                "export and config."
            )
        return place.put(params, jax.tree.map(lambda x: x.sharding, abstract))

    def create_from(self, params: Params) -> TrainState:
        """Creates the state before the first step from `params` (not boxed).

        Raises:
            UserError: they do not fit this stage.
        """
        lines = shape_differences(self.abstract.params, params)
        if lines:
            raise UserError(
                f"the initial parameters do not fit the stage: {lines[0]}. Use the size of the "
                "export that they come from."
            )
        placed = place.put(params, self.shardings.params)
        return jax.jit(lambda p: states.create(p, self.optimizer.tx), out_shardings=self.shardings)(
            placed
        )

    def with_fitted(self, state: TrainState, fitted: Params) -> TrainState:
        """Replaces the top-level groups of `fitted` in a new state, including its average.

        Raises:
            UserError: they do not fit this stage.
        """
        lines = shape_differences({name: self.abstract.params.get(name) for name in fitted}, fitted)
        if lines:
            raise UserError(
                f"the fitted parameters do not fit the stage: {lines[0]}. Use the config with "
                "which they were fitted."
            )
        where = {name: self.shardings.params[name] for name in fitted}
        twice = jax.jit(lambda p: (p, jax.tree.map(jnp.copy, p)), out_shardings=(where, where))
        params, average = twice(place.put(fitted, where))
        return dataclasses.replace(
            state,
            params={**state.params, **params},
            ema_params={**state.ema_params, **average},
        )


def make_train_program(
    stage: Stage,
    *,
    optim: OptimConfig,
    mesh: Mesh,
    rules: str,
    steps: int,
    ema_decay: float,
    accumulate: int = 1,
) -> TrainProgram:
    """Creates the training program of `stage` on `mesh`.

    Args:
        stage: the stage to train.
        optim: settings of the optimiser.
        mesh: the devices.
        rules: "dp", "fsdp" or "fsdp_tp".
        steps: length of the run, for the learning-rate schedule.
        ema_decay: largest decay of the parameter average.
        accumulate: microbatches per step.

    Raises:
        UserError: the rules do not match the mesh; see also `make_optimizer` and
            `differentiation.choose`.
    """
    boxed = jax.eval_shape(stage.init, jax.random.key(0))
    optimizer = make_optimizer(optim, boxed, steps=steps)
    boxed_state = jax.eval_shape(lambda p: states.create(p, optimizer.tx), boxed)
    shardings = place.shardings(boxed_state, mesh, rules=rules)
    selected = differentiation.choose(
        stage, optim=optim, mesh=mesh, accumulate=accumulate, shardings=shardings.params
    )
    step = make_train_step(
        selected.loss,
        optimizer.tx,
        ema_decay=ema_decay,
        accumulate=selected.accumulate,
        shardings=shardings.params,
        gradient=selected.gradient,
        annealed=stage.annealed,
    )
    whole, teacher = replicated(mesh), ()
    if stage.teacher is not None:
        boxed_teacher = jax.eval_shape(stage.teacher, jax.random.key(0))
        places = place.shardings(boxed_teacher, mesh, rules=rules)
        teacher = (place.abstract(boxed_teacher, places),)
    of_teacher = jax.tree.map(lambda x: x.sharding, teacher)
    return TrainProgram(
        mesh=mesh,
        optimizer=optimizer,
        shardings=shardings,
        abstract=place.abstract(boxed_state, shardings),
        create=jax.jit(
            lambda key: states.create(place.unbox(stage.init(key)), optimizer.tx),
            out_shardings=shardings,
            compiler_options=_run_once(mesh),
        ),
        step=jax.jit(
            traced_on(mesh, step),
            donate_argnums=0,
            in_shardings=(shardings, batch_sharding(mesh), whole, *of_teacher),
            out_shardings=(shardings, whole),
        ),
        teacher=teacher,
    )


def _run_once(mesh: Mesh) -> dict[str, Any] | None:
    """Returns options that minimise the compile time on the CPU, for a program that runs once."""
    cpu = mesh.devices.flat[0].platform == "cpu"
    return {"xla_backend_optimization_level": 0} if cpu else None
