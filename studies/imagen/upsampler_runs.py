"""The upsamplers of the study: run folders with one of their own each, and links to other stages.

All are `experiments/imagen_sr256.py` with one change each, trained for equally many steps.
"""

import dataclasses
import pathlib

from studies import training_runs
from studies.imagen.config import ImagenStudyConfig
from unclip_jax.experiment import loading
from unclip_jax.handoff import load

STAGE = "upsampler_256"
EXPERIMENT = "imagen_sr256"
LINKED = ("text_encoder", "imagen_base")


@dataclasses.dataclass(frozen=True)
class UpsamplerRun:
    """An upsampler for comparison.

    Attributes:
        name: name of its run folder.
        about: how it differs, for the page.
        overrides: overrides of the config.
    """

    name: str
    about: str
    overrides: tuple[str, ...] = ()


def _augmented(most: float) -> tuple[str, ...]:
    return (f"--config.model.augment.most={most:g}",)


UNET = "--config.model.model.unet"
# ADM's topology with the attention and text of the Efficient U-Net, and about as many parameters.
ADM = (f"{UNET}.topology=adm", f"{UNET}.multiples=(1,1,2)", f"{UNET}.depth=(1,1,1)")
UPSAMPLERS = (
    UpsamplerRun("no_noise", "low-res images without noise", _augmented(0.0)),
    UpsamplerRun("noise", "noised up to a fifth of the chain"),
    UpsamplerRun("all_noise", "noised up to the end of the chain", _augmented(1.0)),
    UpsamplerRun("adm", "as `noise`, with ADM's U-Net", ADM),
)


def by_name(name: str) -> UpsamplerRun:
    """Returns the upsampler with this name."""
    return next(run for run in UPSAMPLERS if run.name == name)


def steps_of(config: ImagenStudyConfig) -> int:
    """Returns the training steps of every upsampler."""
    if config.steps is not None:
        return config.steps
    return loading.read(_experiment(config)).train.steps


def prepare(run: UpsamplerRun, config: ImagenStudyConfig) -> pathlib.Path:
    """Trains an upsampler unless its export exists; returns its run folder.

    Raises:
        UserError: training failed, or an existing export has another length.
    """
    folder = config.work / "runs" / run.name
    folder.mkdir(parents=True, exist_ok=True)
    for stage in LINKED:
        training_runs.link(folder / stage, config.models / stage)
    if not training_runs.check_length(folder / STAGE / "export", steps_of(config)):
        training_runs.run(command(run, config), name=run.name, work=config.work)
    return folder


def command(run: UpsamplerRun, config: ImagenStudyConfig) -> list[str]:
    """Returns the training command of an upsampler."""
    folder = config.work / "runs" / run.name
    encoder = (config.models / "text_encoder" / "export").absolute()
    return training_runs.command(
        "train",
        f"--config={_experiment(config)}",
        f"--workdir={(folder / STAGE).absolute()}",
        f"--config.data.path={config.data.absolute()}",
        f"--config.data.text_encoder={encoder}",
        f"--config.train.steps={steps_of(config)}",
        "--config.train.sample_every=0",
        *run.overrides,
        *config.overrides,
    )


def facts(config: ImagenStudyConfig) -> list[dict[str, object]]:
    """Returns name, difference, steps and minutes of every existing upsampler, for the page."""
    costs, rows = training_runs.minutes(config.work), []
    for run in UPSAMPLERS:
        export = config.work / "runs" / run.name / STAGE / "export"
        if export.is_dir():
            row = {"name": run.name, "about": run.about, "steps": load.read_manifest(export).step}
            rows.append({**row, "minutes": costs.get(run.name)})
    return rows


def _experiment(config: ImagenStudyConfig) -> str:
    return f"experiments/{EXPERIMENT}.py:{config.size}"
