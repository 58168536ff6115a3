"""The configuration of the study."""

import dataclasses
import pathlib

from unclip_jax.core.checks import in_range, positive


@dataclasses.dataclass(frozen=True)
class HistoryConfig:
    """Models, data and sizes of the study.

    Attributes:
        models: run directory with the CLIP, the dvae and the dalle.
        data: prepared data set of the shapes world.
        work: folder of the other stages and of results.
        out: page to write.
        size: of the experiments, that of the models.
        split: of the data set.
        num: captions.
        images: images per caption.
        rows: captions whose images the page shows.
        seed: image i depends on (seed, i) alone.
        note: remark for the page.
        overrides: --config.KEY=VALUE, for every training run.
    """

    models: pathlib.Path
    data: pathlib.Path
    work: pathlib.Path
    out: pathlib.Path
    size: str
    split: str = "validation"
    num: int = 100
    images: int = 2
    rows: int = 8
    seed: int = 0
    note: str = ""
    overrides: tuple[str, ...] = ()

    def __post_init__(self):
        """Checks the bounds."""
        positive("--num", self.num)
        in_range("--images", self.images, 2, 64)  # diversity is between them
        in_range("--rows", self.rows, 1, self.num)

    def stage(self, name: str) -> pathlib.Path:
        """Returns the workdir of a stage."""
        return self.work / "stages" / name

    def run(self, name: str) -> pathlib.Path:
        """Returns the run directory of a system."""
        return self.work / "runs" / name

    def result(self, name: str) -> pathlib.Path:
        """Returns the file of one system's row."""
        return self.work / "points" / f"{name}.json"
