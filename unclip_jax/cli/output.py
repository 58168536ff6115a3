"""Results on disk: a labelled grid, the single pictures, and what is needed to make them again."""

import json
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image as PILImage

from unclip_jax.core.checks import UserError
from unclip_jax.core.picture import labelled_grid

FRAME_MS = 120  # of an animation
HOLD_MS = 800  # its first and last frame

Pictures = UInt8[np.ndarray, " n h w 3"]


def write(
    out: pathlib.Path,
    images: Pictures,
    *,
    captions: Sequence[str],
    record: dict[str, Any],
    columns: int | None = None,
) -> None:
    """Write the grid, the single images in a folder of the same name, and the JSON.

    Args:
        out: OUT.png; OUT/0000.png and so on and OUT.json are written beside it.
        images: in reading order.
        captions: labels, one per image.
        record: JSON-ready facts; the names of the images are added.
        columns: pictures per row; None = as square as it gets.

    Raises:
        UserError: the place cannot be written.
    """
    try:
        singles = out.with_suffix("")
        singles.mkdir(parents=True, exist_ok=True)
        for index, image in enumerate(images):
            PILImage.fromarray(image).save(singles / f"{index:04d}.png")
        labelled_grid(images, labels=captions, columns=columns).save(out)
        named = {**record, "images": [f"{singles.name}/{i:04d}.png" for i in range(len(images))]}
        out.with_suffix(".json").write_text(json.dumps(named, indent=2) + "\n")
    except OSError as error:
        raise UserError(f"cannot write {out}: {error}; give another --out.") from None


def animate(path: pathlib.Path, images: Pictures) -> None:
    """Write pictures as an endless GIF or WebP, by the suffix of `path`; lossless where it can be.

    Raises:
        UserError: the place cannot be written.
    """
    frames = [PILImage.fromarray(image) for image in images]
    durations = [FRAME_MS] * len(frames)
    durations[0] = durations[-1] = HOLD_MS
    options: dict[str, Any] = {"save_all": True, "append_images": frames[1:], "loop": 0}
    if path.suffix == ".webp":
        options["lossless"] = True
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        frames[0].save(path, duration=durations, **options)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error}; give another --out.") from None
