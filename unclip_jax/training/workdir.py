"""The places of the files of a run."""

import dataclasses
import pathlib
from collections.abc import Callable

from unclip_jax.core.checks import UserError
from unclip_jax.core.storage import Location


class TakenOver(UserError):
    """Another trainer has taken over the workdir; trying again is of no use."""


@dataclasses.dataclass(frozen=True)
class Workdir:
    """The places of the files of one run.

    Attributes:
        folder: local; metrics, sample grids and all small files.
        checkpoints: holds `checkpoints/` and `damaged/`: the same folder, or a URL.
        before_save: called before every checkpoint is written.
    """

    folder: pathlib.Path
    checkpoints: Location
    before_save: Callable[[], None] = lambda: None

    def __str__(self) -> str:
        return str(self.checkpoints)


def as_workdir(place: "str | pathlib.Path | Workdir") -> Workdir:
    """Returns the workdir in one local folder; a `Workdir` as it is."""
    if isinstance(place, Workdir):
        return place
    return Workdir(pathlib.Path(place), checkpoints=pathlib.Path(place))
