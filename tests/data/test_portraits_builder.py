"""The portraits world as records and as a TFDS data set, without TensorFlow."""

import io
import itertools
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from unclip_jax.core.checks import UserError
from unclip_jax.data.portraits import generator
from unclip_jax.data.portraits.builder import Portraits
from unclip_jax.data.world_builder import WorldConfig
from unclip_jax.portraits import grammar, render, scene, world

SIZES = {"train": 12, "validation": 3, "compositional": 4}


@pytest.fixture(scope="module")
def builder(tmp_path_factory):
    config = WorldConfig(name="test", image_size=32, seed=5, **SIZES)
    folder = tmp_path_factory.mktemp("tfds")
    builder = Portraits(data_dir=folder, config=config, file_format="array_record")
    builder.download_and_prepare()
    return builder


@pytest.mark.parametrize("split", SIZES)
def test_data_set_is_written_and_read(builder, split):
    source = builder.as_data_source(split)
    assert len(source) == SIZES[split]
    for index, example in enumerate(source):
        portrait, captions = world.example(split, seed=5, index=index)
        assert example["caption"].decode() == captions[0]
        assert example["key"].decode() == f"{split}-5-{index:08d}"
        assert scene.from_json(example["scene"].decode()) == portrait
        np.testing.assert_array_equal(example["image"], render.render([portrait], size=32)[0])
    assert "tensorflow" not in sys.modules


def test_registered_by_name(tmp_path):
    builder = tfds.builder("portraits/tiny", data_dir=tmp_path, file_format="array_record")
    assert builder.info.features["image"].shape == (64, 64, 3)
    assert {config.name for config in Portraits.BUILDER_CONFIGS} == {"64px", "128px", "tiny"}


def test_any_range_is_a_slice_of_the_whole():
    whole = list(generator.scenes("train", seed=0, start=0, count=70, image_size=16))
    for start, count in ((0, 1), (60, 10), (69, 1), (5, 0)):
        part = list(generator.scenes("train", seed=0, start=start, count=count, image_size=16))
        assert part == whole[start : start + count]
    with Image.open(io.BytesIO(whole[0]["image"])) as image:
        assert image.format == "PNG" and image.mode == "RGB" and image.size == (16, 16)
    assert all(grammar.parse(record["caption"]) for record in whole)


def test_keys_never_collide():
    keys = [
        record["key"]
        for split, seed in itertools.product(SIZES, (0, 1))
        for record in generator.scenes(split, seed=seed, start=0, count=3, image_size=16)
    ]
    assert len(set(keys)) == len(keys)


def test_bad_ranges():
    with pytest.raises(UserError, match="scene count is -1"):
        list(generator.scenes("train", seed=0, start=0, count=-1))
    with pytest.raises(UserError, match="unknown split 'trian'"):
        list(generator.scenes("trian", seed=0, start=0, count=1))
    with pytest.raises(UserError, match="image size is 8"):
        list(generator.scenes("train", seed=0, start=0, count=1, image_size=8))
