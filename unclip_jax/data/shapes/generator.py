"""Generator of records of the shapes world, for any range of any split."""

from collections.abc import Iterator

from unclip_jax.data import procedural
from unclip_jax.shapes import render, scene, world

WORLD = procedural.World(world.example, render.render, scene.to_json)


def scenes(
    split: str, *, seed: int, start: int, count: int, image_size: int = 64
) -> Iterator[dict[str, bytes | str]]:
    """Yields records of `unclip_jax.shapes.scene.Scene`; see `procedural.records`.

    Raises:
        UserError: unknown split, negative start or count, image size outside 8..1024.
    """
    return procedural.records(
        WORLD, split, seed=seed, start=start, count=count, image_size=image_size
    )
