"""Records of procedural worlds, for any range of any split."""

import io
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from unclip_jax.core.checks import in_range

CHUNK = 64  # scenes rendered together; the images do not depend on it
PNG_LEVEL = 3  # of zlib; as fast as level 1 on flat colours, and smaller


class World(NamedTuple):
    """The functions of one procedural world.

    Attributes:
        example: (split, seed=, index=) -> a scene and captions of it, its own first.
        render: (scenes, size=) -> uint8 [b size size 3].
        to_json: (scene, captions) -> one line.
    """

    example: Callable[..., tuple[Any, tuple[str, ...]]]
    render: Callable[..., np.ndarray]
    to_json: Callable[[Any, Sequence[str]], str]


def records(
    world: World, split: str, *, seed: int, start: int, count: int, image_size: int
) -> Iterator[dict[str, bytes | str]]:
    """Generates records `start` to `start + count` of `split`, in order.

    Record i depends on (world, split, seed, i, image_size) alone, so work can be split into shards
    and taken up again anywhere.

    Args:
        world: the functions that make it.
        split: one of the world's.
        seed: of the whole data set.
        start: index of the first record.
        count: number of records.
        image_size: side of the square image in pixels.

    Yields:
        "image" (PNG bytes), "caption", "key" (unique across splits and seeds) and "scene" (JSON of
        the scene with all of its captions).

    Raises:
        UserError: unknown split, negative start or count, an image size that the world rejects.
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
