import io
import itertools
import json

import numpy as np
import pytest
from PIL import Image

from unclip_jax.core.checks import UserError
from unclip_jax.data.shapes import generator
from unclip_jax.shapes import render, scene, world


def _pixels(record):
    with Image.open(io.BytesIO(record["image"])) as image:
        assert image.format == "PNG" and image.mode == "RGB"
        return np.asarray(image)


def test_records_hold_image_caption_key_and_scene():
    records = list(generator.scenes("validation", seed=3, start=7, count=5))
    for index, record in zip(range(7, 12), records, strict=True):
        case = world.example("validation", seed=3, index=index)
        assert set(record) == {"image", "caption", "key", "scene"}
        assert record["key"] == f"validation-3-{index:08d}"
        assert record["caption"] == case.captions[0]
        assert scene.from_json(record["scene"]) == case.scene
        assert tuple(json.loads(record["scene"])["captions"]) == case.captions
        np.testing.assert_array_equal(_pixels(record), render.render([case.scene], size=64)[0])


def test_any_range_is_a_slice_of_the_whole():
    whole = list(generator.scenes("train", seed=0, start=0, count=150, image_size=16))
    for start, count in ((0, 1), (60, 10), (149, 1), (5, 140)):
        part = list(generator.scenes("train", seed=0, start=start, count=count, image_size=16))
        assert part == whole[start : start + count]


def test_keys_never_collide():
    ranges = itertools.product(("train", "validation", "compositional"), (0, 1))
    keys = [
        record["key"]
        for split, seed in ranges
        for record in generator.scenes(split, seed=seed, start=0, count=5, image_size=16)
    ]
    assert len(set(keys)) == len(keys)


def test_nothing_asked_nothing_made():
    assert list(generator.scenes("train", seed=0, start=3, count=0)) == []


def test_bad_ranges():
    with pytest.raises(UserError, match="scene count is -1"):
        list(generator.scenes("train", seed=0, start=0, count=-1))
    with pytest.raises(UserError, match="scene index is -2"):
        list(generator.scenes("train", seed=0, start=-2, count=1))
    with pytest.raises(UserError, match="unknown split 'trian'"):
        list(generator.scenes("trian", seed=0, start=0, count=1))
    with pytest.raises(UserError, match="image size is 7"):
        list(generator.scenes("train", seed=0, start=0, count=1, image_size=7))
