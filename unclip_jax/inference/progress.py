"""Looking on while a studio works: which stage, how far, what the pictures look like by now.

A watcher may also end the work by raising; nothing is kept of what was half done.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

LOOKS = 12  # at most so many previews of one chain
FEWEST = 6


class Progress(NamedTuple):
    """How far the work is.

    Attributes:
        stage: "prior", "invert", "decode", "upsample", or what else is done in batches.
        done: images finished by this stage.
        total: images that it will do.
        step: of the chain of the batch in work.
        steps: of that chain; 1 where the chain is not looked into.
        images: the clean pictures predicted at this step; None where there are none.
    """

    stage: str
    done: int
    total: int
    step: int = 0
    steps: int = 1
    images: UInt8[np.ndarray, " b h w 3"] | None = None

    @property
    def share(self) -> float:
        """How much of this stage is done, 0 to 1."""
        batch = 0 if self.images is None else len(self.images)
        return min(1.0, (self.done + batch * self.step / self.steps) / max(self.total, 1))


ProgressCallback = Callable[[Progress], None]


def looks(steps: int) -> int:
    """Into how many parts a chain is cut: so that they are equal, which compiles one program."""
    even = [count for count in range(FEWEST, LOOKS + 1) if steps % count == 0]
    return even[-1] if even else min(LOOKS, steps)
