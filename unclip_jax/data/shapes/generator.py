"""Generator of records of the shapes world, for any range of any split."""

import io
from collections.abc import Iterator

from PIL import Image

from unclip_jax.core.checks import in_range
from unclip_jax.shapes import render, scene, world

CHUNK = 64  # scenes rendered together; the images do not depend on it
PNG_LEVEL = 3  # of zlib; as fast as level 1 on flat colours, and smaller


def scenes(
    split: str, *, seed: int, start: int, count: int, image_size: int = 64
) -> Iterator[dict[str, bytes | str]]:
    """Yields records `start` to `start + count` of `split`, in order.

    Record i depends on (split, seed, i, image_size) alone, so work can be split into shards and
    resumed anywhere.

    Args:
        split: a member of `unclip_jax.shapes.vocabulary.SPLITS`.
        seed: of the whole data set.
        start: index of the first record.
        count: number of records.
        image_size: side of the square image in pixels.

    Yields:
        "image" (PNG bytes), "caption", "key" (unique across splits and seeds) and "scene" (JSON of
        the scene with all of its captions; see `unclip_jax.shapes.scene.from_json`).

    Raises:
        UserError: unknown split, negative start or count, image size outside 8..1024.
    """
    in_range("scene count", count, 0, float("inf"))
    for first in range(start, start + count, CHUNK):
        indices = range(first, min(first + CHUNK, start + count))
        examples = [world.example(split, seed=seed, index=index) for index in indices]
        pictures = render.render([each.scene for each in examples], size=image_size)
        for index, each, picture in zip(indices, examples, pictures, strict=True):
            file = io.BytesIO()
            Image.fromarray(picture).save(file, "png", compress_level=PNG_LEVEL)
            yield {
                "image": file.getvalue(),
                "caption": each.captions[0],
                "key": f"{split}-{seed}-{index:08d}",
                "scene": scene.to_json(each.scene, each.captions),
            }
