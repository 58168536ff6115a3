"""Generation of records of procedural worlds, for any range of any split."""

import io
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from unclip_jax.core.checks import in_range

CHUNK = 64  # scenes per call of the renderer, on which the images do not depend
PNG_LEVEL = 3  # zlib's level; as fast as level 1 on flat colours, and smaller


class World(NamedTuple):
    """The functions of one procedural world.

    Attributes:
        example: (split, seed=, index=) -> a scene and its captions, the default one first.
        render: (scenes, size=) -> uint8 [b size size 3].
        to_json: (scene, captions) -> JSON in one line.
    """

    example: Callable[..., tuple[Any, tuple[str, ...]]]
    render: Callable[..., np.ndarray]
    to_json: Callable[[Any, Sequence[str]], str]


def records(
    world: World, split: str, *, seed: int, start: int, count: int, image_size: int
) -> Iterator[dict[str, bytes | str]]:
    """Generates records `start` to `start + count` of `split`, in order.

    Record i depends only on (world, split, seed, i, image_size), so the work can be split into
    shards and resumed anywhere.

    Args:
        world: functions of the world.
        split: one of the world's splits.
        seed: seed of the whole data set.
        start: index of the first record.
        count: number of records.
        image_size: side of the square images in pixels.

    Yields:
        Records with "image" (PNG bytes), "caption", "key" (unique across splits and seeds) and
        "scene" (JSON of the scene with all of its captions).

    Raises:
        UserError: the split is unknown, start or count is negative, or the world does not support
            the image size.
    """
    in_range("scene count", count, 0, float("inf"))
    for first in range(start, start + count, CHUNK):
        indices = range(first, min(first + CHUNK, start + count))
        examples = [world.example(split, seed=seed, index=index) for index in indices]
        images = world.render([scene for scene, _ in examples], size=image_size)
        for index, (scene, captions), image in zip(indices, examples, images, strict=True):
            file = io.BytesIO()
            Image.fromarray(image).save(file, "png", compress_level=PNG_LEVEL)
            yield {
                "image": file.getvalue(),
                "caption": captions[0],
                "key": f"{split}-{seed}-{index:08d}",
                "scene": world.to_json(scene, captions),
            }
