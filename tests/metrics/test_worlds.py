import numpy as np
import pytest

from unclip_jax.core.checks import UserError
from unclip_jax.metrics import worlds
from unclip_jax.portraits import render as portraits_render
from unclip_jax.portraits import world as portraits_world
from unclip_jax.preparation.import_plans import WORLDS as GENERATORS
from unclip_jax.shapes import render as shapes_render
from unclip_jax.shapes import world as shapes_world

SHAPES = [shapes_world.example("validation", seed=0, index=i) for i in range(4)]
PORTRAITS = [portraits_world.example("validation", seed=0, index=i) for i in range(4)]


def _captions(examples):
    return [example.captions[0] for example in examples]


def test_every_world_that_can_be_prepared_can_be_checked():
    assert {world.name for world in worlds.WORLDS} == GENERATORS.keys()


@pytest.mark.parametrize("name", GENERATORS)
def test_a_world_knows_its_own_captions_and_scenes(name):
    records = list(GENERATORS[name]("validation", seed=1, start=0, count=6, image_size=32))
    for field in ("caption", "scene"):
        world = worlds.world_of([record[field] for record in records])
        assert world is not None and world.name == name


def test_other_captions_belong_to_no_world():
    for captions in ([], ["a dog"], [*_captions(SHAPES), *_captions(PORTRAITS)]):
        assert worlds.world_of(captions) is None
    images = np.zeros((1, 64, 64, 3), np.uint8)
    assert worlds.check(images, ["a dog"]) == {}


def test_images_are_checked_by_the_world_of_their_captions():
    shapes = shapes_render.render([example.scene for example in SHAPES])
    assert worlds.check(shapes, _captions(SHAPES))["joint"].value == 1
    portraits = portraits_render.render([example.portrait for example in PORTRAITS])
    rates = worlds.check(portraits, _captions(PORTRAITS))
    assert rates["joint"].value == 1 and "hair_colour" in rates
    assert worlds.check(shapes, _captions(PORTRAITS))["joint"].value == 0
    with pytest.raises(UserError, match="4 images but 1 captions"):
        worlds.check(portraits, ["a person"])


def test_columns_of_tables():
    assert len(set(worlds.SUMMARY)) == len(worlds.SUMMARY)
    assert worlds.SUMMARY[-2:] == ("binding", "joint")
    assert all(set(world.summary) <= set(worlds.SUMMARY) for world in worlds.WORLDS)
