"""The configuration of the study of Imagen."""

import dataclasses
import pathlib

from unclip_jax.core.checks import in_range, positive


@dataclasses.dataclass(frozen=True)
class ImagenStudyConfig:
    """Models, data and sizes of the study.

    Attributes:
        models: run directory of Imagen: text encoder, base model and any upsampler.
        unclip: run directory of unCLIP, whose CLIP judges all images.
        data: prepared data set of the shapes world.
        work: folder of the upsamplers that the study trains, and of results.
        out: page to write.
        size: of the experiments, that of the base model.
        steps: training steps of each upsampler; None = as their experiment says.
        only: names of findings; () = all.
        split: of the data set.
        num: captions.
        images: images per caption.
        seed: image i depends on (seed, i) alone.
        note: remark for the page.
        overrides: --config.KEY=VALUE, for every training run.
    """

    models: pathlib.Path
    unclip: pathlib.Path
    data: pathlib.Path
    work: pathlib.Path
    out: pathlib.Path
    size: str
    steps: int | None = None
    only: tuple[str, ...] = ()
    split: str = "validation"
    num: int = 100
    images: int = 2
    seed: int = 0
    note: str = ""
    overrides: tuple[str, ...] = ()

    def __post_init__(self):
        positive("--num", self.num)
        in_range("--images", self.images, 2, 64)  # diversity is between them
        if self.steps is not None:
            positive("--steps", self.steps)

    def result_file(self, name: str) -> pathlib.Path:
        """Returns the file of one finding's result."""
        return self.work / "points" / f"{name}.json"
