"""The configuration of the history page."""

import dataclasses
import pathlib

from studies.study_config import StudyConfig
from unclip_jax.core.checks import in_range


@dataclasses.dataclass(frozen=True, kw_only=True)
class HistoryConfig(StudyConfig):
    """Models and sizes of the study.

    Attributes:
        models: run directory with the stages clip, dvae and dalle.
        size: size of the experiments, equal to that of the models.
        rows: number of captions whose images the page shows.
    """

    models: pathlib.Path
    size: str
    rows: int = 8

    def __post_init__(self):
        super().__post_init__()
        in_range("--images", self.images, 2, 64)  # diversity compares them
        in_range("--rows", self.rows, 1, self.num)

    def stage(self, name: str) -> pathlib.Path:
        """Returns the workdir of a stage."""
        return self.work / "stages" / name

    def run(self, name: str) -> pathlib.Path:
        """Returns the run directory of a system."""
        return self.work / "runs" / name
