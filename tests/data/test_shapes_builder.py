"""The TFDS data set is written and read back, and TensorFlow never wakes up."""

import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds

from unclip_jax.core.checks import UserError
from unclip_jax.data.shapes import generator
from unclip_jax.data.shapes.builder import Shapes
from unclip_jax.data.world_builder import WorldConfig
from unclip_jax.shapes import render, scene

SIZES = {"train": 40, "validation": 7, "compositional": 9}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("tfds")


@pytest.fixture(scope="module")
def builder(data_dir):
    config = WorldConfig(name="test", image_size=32, seed=5, **SIZES)
    builder = Shapes(data_dir=data_dir, config=config, file_format="array_record")
    builder.download_and_prepare()
    return builder


@pytest.mark.parametrize("split", SIZES)
def test_round_trip(builder, split):
    data_source = builder.as_data_source(split)
    assert len(data_source) == SIZES[split]
    case = generator.scenes(split, seed=5, start=0, count=SIZES[split], image_size=32)
    for index, record in enumerate(case):
        example = data_source[index]
        assert example["caption"].decode() == record["caption"]
        assert example["key"].decode() == record["key"]
        parsed_scene = scene.from_json(example["scene"].decode())
        np.testing.assert_array_equal(example["image"], render.render([parsed_scene], size=32)[0])
    assert "tensorflow" not in sys.modules


def test_png_bytes_are_kept_as_they_are(builder):
    skip = {"image": tfds.decode.SkipDecoding()}
    data_source = builder.as_data_source("train", decoders=skip)
    (record,) = generator.scenes("train", seed=5, start=13, count=1, image_size=32)
    assert data_source[13]["image"] == record["image"]
    assert "tensorflow" not in sys.modules


def test_folder_is_readable_without_our_class(builder):
    folder = tfds.builder_from_directory(str(builder.data_path))
    data_source = folder.as_data_source("compositional")
    assert len(data_source) == SIZES["compositional"]
    assert data_source[0]["image"].shape == (32, 32, 3)


def test_registered_by_name(data_dir):
    builder = tfds.builder("shapes/tiny", data_dir=data_dir, file_format="array_record")
    assert builder.builder_config.image_size == 64
    assert builder.info.features["image"].shape == (64, 64, 3)
    assert {config.name for config in Shapes.BUILDER_CONFIGS} == {"64px", "128px", "tiny"}


@pytest.mark.parametrize(
    ("name", "side", "sizes"),
    [
        ("64px", 64, (50_000, 2_000, 2_000)),
        ("128px", 128, (50_000, 2_000, 2_000)),
        ("tiny", 64, (256, 64, 64)),
    ],
)
def test_a_data_set_of_a_name_has_always_the_same_scenes(name, side, sizes):
    """Data that others made under this name are these: their number, size and seed."""
    (config,) = (config for config in Shapes.BUILDER_CONFIGS if config.name == name)
    assert (config.train, config.validation, config.compositional) == sizes
    assert (config.image_size, config.seed) == (side, 0)
    assert Shapes.BUILDER_CONFIGS[0].name == "64px"  # the default


@pytest.mark.parametrize(("start", "count"), [(0, 0), (3, 1), (60, 70), (63, 1), (64, 64)])
def test_records_are_the_same_in_any_part(start, count):
    """Scenes are rendered in chunks of 64, on which nothing depends."""
    whole = list(generator.scenes("train", seed=1, start=0, count=130, image_size=16))
    part = list(generator.scenes("train", seed=1, start=start, count=count, image_size=16))
    assert part == whole[start : start + count]
    assert [record["key"] for record in part] == [
        f"train-1-{index:08d}" for index in range(start, start + count)
    ]


def test_a_negative_count_is_rejected():
    with pytest.raises(UserError, match="scene count is -1"):
        next(generator.scenes("train", seed=1, start=0, count=-1, image_size=16))
