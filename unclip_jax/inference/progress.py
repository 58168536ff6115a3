"""Progress of a request: the stage, the step of its chain, and the images predicted there.

A callback may stop the work by raising an exception; no results are kept then.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

MAX_PREVIEWS = 12  # of one chain
MIN_PREVIEWS = 6


class Progress(NamedTuple):
    """State of the work.

    Attributes:
        stage: "prior", "invert", "decode", "upsample", or another task that runs in batches.
        done: images finished by this stage.
        total: images that it will process.
        step: step of the chain of the current batch.
        steps: number of steps of that chain; 1 where it runs as a whole.
        images: the clean images predicted at this step, if any.
        compiling: True while a program is compiled, which takes seconds.
    """

    stage: str
    done: int
    total: int
    step: int = 0
    steps: int = 1
    images: UInt8[np.ndarray, " b h w 3"] | None = None
    compiling: bool = False

    @property
    def share(self) -> float:
        """Finished fraction of this stage, 0 to 1."""
        batch = 0 if self.images is None else len(self.images)
        return min(1.0, (self.done + batch * self.step / self.steps) / max(self.total, 1))


ProgressCallback = Callable[[Progress], None]


def preview_count(steps: int) -> int:
    """Returns the number of parts of a chain, of equal length if possible: one program for all."""
    even = [count for count in range(MIN_PREVIEWS, MAX_PREVIEWS + 1) if steps % count == 0]
    return even[-1] if even else min(MAX_PREVIEWS, steps)
