"""Places of the files of a run."""

import dataclasses
import pathlib
from collections.abc import Callable

from unclip_jax.core.checks import UserError
from unclip_jax.core.storage import Location


class TakenOver(UserError):
    """Reports that another trainer has taken over the workdir; retrying is useless."""


@dataclasses.dataclass(frozen=True)
class Workdir:
    """Places of the files of a run.

    Attributes:
        folder: local folder of metrics, sample grids and all small files.
        checkpoints: parent of `checkpoints/` and `damaged/`: the same folder, or a URL.
        before_save: called before every checkpoint is written.
    """

    folder: pathlib.Path
    checkpoints: Location
    before_save: Callable[[], None] = lambda: None

    def __str__(self) -> str:
        return str(self.checkpoints)


def as_workdir(place: "str | pathlib.Path | Workdir") -> Workdir:
    """Returns the workdir in one local folder; returns a `Workdir` unchanged."""
    if isinstance(place, Workdir):
        return place
    return Workdir(pathlib.Path(place), checkpoints=pathlib.Path(place))
