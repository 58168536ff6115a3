"""The gradient of a run: plain, of parts that share one loss, or sharpness-aware."""

from typing import Any, NamedTuple

from jax.sharding import Mesh

from unclip_jax.core.checks import UserError
from unclip_jax.core.stage import Stage
from unclip_jax.training import embedding_cache, sam
from unclip_jax.training.optimizer import OptimConfig
from unclip_jax.training.step import Gradient, Loss, gradients


class Differentiation(NamedTuple):
    """The loss and gradient that `make_train_step` uses, and the number of microbatches."""

    loss: Loss
    gradient: Gradient
    accumulate: int = 1


def check_split(stage: Stage, *, accumulate: int, optim: OptimConfig) -> None:
    """Checks that a batch may be processed in parts.

    Raises:
        UserError: the loss is one of the whole batch without embeddings to share, or its replicas
            already are the parts.
    """
    if accumulate == 1 or stage.splittable:
        return
    text = f"config.train.accumulate is {accumulate}, but the loss of stage {stage.name!r} is a "
    if stage.pairwise is None:
        raise UserError(f"{text}function of the whole batch; use 1 and more devices.")
    if optim.sam and optim.sam_batch:
        raise UserError(
            f"config.train.accumulate is {accumulate}, but the replicas of config.optim.sam_batch "
            "already split the batch; use 1, and config.optim.sam_cached=True to process one "
            "replica at a time."
        )


def choose(
    stage: Stage, *, optim: OptimConfig, mesh: Mesh, accumulate: int = 1, shardings: Any = None
) -> Differentiation:
    """Selects the gradient of a run by its settings.

    Args:
        stage: the stage with the loss.
        optim: settings of SAM.
        mesh: the devices of the run.
        accumulate: microbatches per step.
        shardings: shardings of the parameters; None = XLA's choice.

    Raises:
        UserError: see `check_split`; or the stage's loss does not support replicas.
    """
    check_split(stage, accumulate=accumulate, optim=optim)
    if optim.sam and optim.sam_batch:
        return _per_replica(stage, optim=optim, mesh=mesh, accumulate=accumulate)
    plain = gradients
    if accumulate > 1 and stage.pairwise is not None:
        plain = embedding_cache.accumulated(stage.pairwise, parts=accumulate, shardings=shardings)
        accumulate = 1
    gradient = sam.whole_batch(optim.sam, plain=plain) if optim.sam else plain
    return Differentiation(stage.loss, gradient, accumulate)


def _per_replica(
    stage: Stage, *, optim: OptimConfig, mesh: Mesh, accumulate: int
) -> Differentiation:
    sizes: dict[str, Any] = {"examples": optim.sam_batch, "mesh": mesh}
    if stage.pairwise is not None and optim.sam_cached:
        gradient = embedding_cache.sam_per_replica(stage.pairwise, optim.sam, **sizes)
        return Differentiation(stage.loss, gradient)
    gradient = sam.per_replica(optim.sam, **sizes)
    if stage.pairwise is not None:
        return Differentiation(stage.pairwise.replica_loss(sam.AXES), gradient)
    if not stage.splittable or optim.sam_cached:
        setting = "sam_cached" if stage.splittable else "sam_batch"
        raise UserError(
            f"config.optim.{setting} is {getattr(optim, setting)}, but the loss of stage "
            f"{stage.name!r} has no embeddings that replicas could share; use "
            f"{'False' if stage.splittable else 0}."
        )
    return Differentiation(stage.loss, gradient, accumulate)
