"""The baselines: run folders with one stage of their own each, and links to the other stages.

They are trained by `python -m unclip_jax.train` with the flags of launch/env.sh, so interrupted
training continues. A baseline is compared only with a stage of equal training length; if the
models' own stage has another length, a copy of it is trained to that length too.
"""

import dataclasses
import pathlib

from studies import training_runs
from studies.findings.config import FindingsConfig
from studies.training_runs import minutes
from unclip_jax.handoff import load
from unclip_jax.stages import registry

MAIN = "main"  # the models themselves


@dataclasses.dataclass(frozen=True)
class Baseline:
    """A stage for comparison.

    Attributes:
        name: name of its run folder.
        stage: the stage of the cascade that it replaces.
        experiment: its file.
        about: how it differs, for the page.
        overrides: overrides of the config.
    """

    name: str
    stage: str
    experiment: str
    about: str
    overrides: tuple[str, ...] = ()


BASELINES = (
    Baseline("unclip", "decoder", "decoder", "unCLIP's decoder, trained as long as its baselines"),
    Baseline("glide", "decoder", "glide", "GLIDE: the decoder conditioned on captions only"),
    Baseline(
        "z_txt",
        "decoder",
        "decoder",
        "the decoder trained on z_txt in place of z_img",
        ("--config.model.condition=z_txt",),
    ),
    Baseline("x_0", "prior", "prior", "the diffusion prior, trained as long as its baselines"),
    Baseline(
        "eps",
        "prior",
        "prior",
        "the diffusion prior, predicting eps",
        ("--config.model.diffusion.target=eps",),
    ),
    Baseline("autoregressive", "prior_ar", "prior_ar", "the autoregressive prior"),
)


def by_name(name: str) -> Baseline:
    """Returns the baseline with this name."""
    return next(baseline for baseline in BASELINES if baseline.name == name)


def steps_of(baseline: Baseline, config: FindingsConfig) -> int:
    """Returns the number of training steps of a baseline."""
    return getattr(config, f"{baseline.stage}_steps")


def prepare(baseline: Baseline, config: FindingsConfig) -> pathlib.Path:
    """Links or trains the stages of a baseline; returns its run folder.

    Raises:
        UserError: training failed, or an existing export has another length.
    """
    folder = config.work / "runs" / baseline.name
    folder.mkdir(parents=True, exist_ok=True)
    for stage in registry.default_chain():
        if stage != baseline.stage and (config.models / stage).is_dir():
            training_runs.link(folder / stage, config.models / stage)
    steps, own = steps_of(baseline, config), config.models / baseline.stage
    unchanged = not baseline.overrides and baseline.experiment == baseline.stage
    if unchanged and training_runs.length(own / "export") == steps:
        training_runs.link(folder / baseline.stage, own)
        return folder
    workdir = folder / baseline.stage
    if not training_runs.check_length(workdir / "export", steps):
        words = command(baseline, config, workdir=workdir)
        training_runs.run(words, name=baseline.name, work=config.work)
    return folder


def facts(config: FindingsConfig) -> list[dict[str, object]]:
    """Returns name, difference, steps and minutes of every existing baseline, for the page."""
    costs, rows = minutes(config.work), []
    for baseline in BASELINES:
        export = config.work / "runs" / baseline.name / baseline.stage / "export"
        if (length := training_runs.length(export)) is not None:
            row = {"name": baseline.name, "about": baseline.about, "steps": length}
            rows.append({**row, "minutes": costs.get(baseline.name)})
    return rows


def command(baseline: Baseline, config: FindingsConfig, *, workdir: pathlib.Path) -> list[str]:
    """Returns the training command, within the flags of launch/env.sh."""
    size = load.read_manifest(config.models / "clip" / "export").size
    return training_runs.command(
        "train",
        f"--config=experiments/{baseline.experiment}.py:{size}",
        f"--workdir={workdir.absolute()}",
        f"--config.data.path={config.data.absolute()}",
        f"--config.data.embeddings={config.embeddings.absolute()}",
        f"--config.train.steps={steps_of(baseline, config)}",
        "--config.train.sample_every=0",
        *baseline.overrides,
        *config.overrides,
    )
