"""Trains the stages of all systems with equal compute, and links them to runs.

Compute is counted as for utilisation: three times the matrix FLOPs of the forward pass per step.
"""

import functools
import pathlib
from typing import Any

import jax

from studies import training_runs
from studies.history.config import HistoryConfig
from studies.history.systems import BUDGET, EMBEDDED, System, TrainedStage, trained_stages
from unclip_jax.core import batch as batches
from unclip_jax.experiment import loading
from unclip_jax.experiment.config import Experiment
from unclip_jax.inference.load import abstract_params
from unclip_jax.planning import flops
from unclip_jax.stages import registry


def prepare(system: System, config: HistoryConfig) -> None:
    """Trains the missing stages of a system, and links its run.

    Raises:
        UserError: training failed, or an existing export has another length.
    """
    for name in ("clip", *BUDGET):
        _link(config.stage(name), config.models / name)
    needed = plan(config)
    for stage in system.stages:
        name = stage.name
        if training_runs.check_length(config.stage(name) / "export", needed[name]["steps"]):
            continue
        if name in EMBEDDED and not (config.work / "embeddings").is_dir():
            training_runs.run(embedding_command(config), name="embeddings", work=config.work)
        words = command(stage, config, steps=needed[name]["steps"])
        training_runs.run(words, name=name, work=config.work)
    link(system, config)


def link(system: System, config: HistoryConfig) -> None:
    """Links the stages of a system to its run."""
    folder = config.run(system.run)
    folder.mkdir(parents=True, exist_ok=True)
    for name in system.linked:
        _link(folder / name, config.stage(name))
    for stage in system.stages:
        _link(folder / stage.folder, config.stage(stage.name))


def plan(config: HistoryConfig) -> dict[str, dict[str, Any]]:
    """Returns steps, batch size and training FLOPs of every stage by name; JSON-ready."""
    rows = {}
    for name in BUDGET:
        steps = training_runs.length(config.models / name / "export")
        assert steps is not None
        rows[name] = _row(experiment(name, config), steps)
    budget = sum(row["flops"] for row in rows.values())
    for name, stage in trained_stages().items():
        own = experiment(stage.experiment, config, stage.overrides)
        each = flops_per_step(own)
        steps = max(1, round(stage.share * budget / each)) if stage.share else own.train.steps
        rows[name] = _row(own, steps)
    return rows


def _row(own: Experiment, steps: int) -> dict[str, Any]:
    return {
        "steps": steps,
        "batch": own.train.batch_size,
        "flops": steps * flops_per_step(own),
    }


def experiment(name: str, config: HistoryConfig, overrides: tuple[str, ...] = ()) -> Experiment:
    """Returns an experiment of the size of the models."""
    spec = f"{training_runs.ROOT}/experiments/{name}.py:{config.size}"
    return loading.read(spec, overrides=(*overrides, *config.overrides))


def flops_per_step(own: Experiment) -> float:
    """Returns the matrix FLOPs of a training step: forward, and twice as many backward."""
    return 3 * _forward_flops(own.stage, own.model, own.train.batch_size)


@functools.cache
def _forward_flops(name: str, model: Any, batch_size: int) -> float:
    """Returns the matrix FLOPs of a stage's loss; each stage is traced once."""
    stage = registry.stage_entry(name).make(model)
    batch = batches.abstract(stage.batch_spec, batch_size)
    key = jax.eval_shape(lambda: jax.random.key(0))
    loss = lambda params, batch, key: stage.loss(params, batch, key)[0]  # noqa: E731
    count = flops.count(loss, abstract_params(stage), batch, key)
    assert not count.unknown, count.unknown
    return count.flops


def command(stage: TrainedStage, config: HistoryConfig, *, steps: int) -> list[str]:
    """Returns the training command of a stage."""
    settings = {"path": config.data}
    if stage.name in EMBEDDED:
        settings["embeddings"] = config.work / "embeddings"
    if stage.experiment.startswith("imagen"):
        settings["text_encoder"] = config.stage("text_encoder") / "export"
    paths = [f"--config.data.{k}={path.absolute()}" for k, path in settings.items()]
    return training_runs.command(
        "train",
        f"--config=experiments/{stage.experiment}.py:{config.size}",
        f"--workdir={config.stage(stage.name).absolute()}",
        *paths,
        f"--config.train.steps={steps}",
        "--config.train.sample_every=0",
        *stage.overrides,
        *config.overrides,
    )


def embedding_command(config: HistoryConfig) -> list[str]:
    """Returns the command that embeds the data."""
    return training_runs.command(
        "embed",
        f"--clip={(config.stage('clip') / 'export').absolute()}",
        f"--data={config.data.absolute()}",
        f"--out={(config.work / 'embeddings').absolute()}",
    )


def _link(path: pathlib.Path, target: pathlib.Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    training_runs.link(path, target)
