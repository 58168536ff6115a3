"""Settings shared by all studies that train and sample: captions, folders, and their flags."""

import argparse
import dataclasses
import pathlib
from typing import Any

from unclip_jax.cli.parser import Parser
from unclip_jax.core.checks import positive
from unclip_jax.data import sources
from unclip_jax.data.dataset import content_digest

NAMES = ("split", "num", "images", "seed", "note")  # fields with a flag of the same name


@dataclasses.dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """Data and sizes of a study.

    Attributes:
        data: prepared data set of a procedural world.
        work: folder of the stages that the study trains, and of results.
        out: page to write.
        split: split of the data set.
        num: number of captions.
        images: images per caption.
        seed: image i depends only on (seed, i).
        note: remark for the page.
        overrides: --config.KEY=VALUE, for every training run.
    """

    data: pathlib.Path
    work: pathlib.Path
    out: pathlib.Path
    split: str = "validation"
    num: int = 100
    images: int = 2
    seed: int = 0
    note: str = ""
    overrides: tuple[str, ...] = ()

    def __post_init__(self):
        positive("--num", self.num)
        positive("--images", self.images)

    @property
    def results(self) -> pathlib.Path:
        """Folder of the results."""
        return self.work

    def result_file(self, name: str) -> pathlib.Path:
        """Returns the file of one result."""
        return self.results / "points" / f"{name}.json"

    def data_digests(self) -> dict[str, str]:
        """Returns the digests of the records of the splits that the study reads."""
        splits = dict.fromkeys(("train", self.split))
        sources_of = {name: sources.open_source(str(self.data), split=name) for name in splits}
        return {name: content_digest(source)[:16] for name, source in sources_of.items()}

    def facts(self) -> dict[str, Any]:
        """Returns captions and seed, for the page; JSON-ready."""
        return {name: getattr(self, name) for name in NAMES}


def add_flags(parser: Parser) -> None:
    """Adds the flags of `NAMES`."""
    add = parser.add_argument
    add("--split", default="validation", help="split of the data set")
    add("--num", type=int, default=100, help="number of captions")
    add("--images", type=int, default=2, help="number of images per caption")
    add("--seed", type=int, default=0, help="seed of all random numbers")
    add("--note", default="", help="remark for the page, such as how the minutes were measured")


def flag_values(args: argparse.Namespace) -> dict[str, Any]:
    """Returns the values of the flags of `NAMES`."""
    return {name: getattr(args, name) for name in NAMES}
