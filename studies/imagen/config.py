"""The configuration of the study of Imagen."""

import dataclasses
import pathlib

from studies.study_config import StudyConfig
from unclip_jax.core.checks import in_range, positive


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImagenStudyConfig(StudyConfig):
    """Models and sizes of the study.

    Attributes:
        models: run directory of Imagen: text encoder, base model and any upsampler.
        unclip: run directory of unCLIP, whose CLIP embeds all images.
        size: size of the experiments, equal to that of the base model.
        steps: training steps of each upsampler; None = as in its experiment.
        only: names of findings; () = all.
    """

    models: pathlib.Path
    unclip: pathlib.Path
    size: str
    steps: int | None = None
    only: tuple[str, ...] = ()

    def __post_init__(self):
        super().__post_init__()
        in_range("--images", self.images, 2, 64)  # diversity compares them
        if self.steps is not None:
            positive("--steps", self.steps)
