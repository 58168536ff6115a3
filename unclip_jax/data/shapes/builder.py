"""The shapes world as a TensorFlow Datasets builder that needs no TensorFlow.

    from unclip_jax.data.shapes.builder import Shapes

    builder = Shapes(data_dir=..., config="64px", file_format="array_record")
    builder.download_and_prepare()
    source = builder.as_data_source("train")   # random access; images as uint8 arrays

Importing this module also registers the name, so that `tfds.builder("shapes/64px", ...)` and
`tfds.data_source("shapes/64px", ...)` work. To read the PNG bytes themselves pass
`decoders={"image": tfds.decode.SkipDecoding()}`; texts come back as UTF-8 bytes, as always in TFDS.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import tensorflow_datasets as tfds
from etils import epath

from unclip_jax.data.shapes import generator
from unclip_jax.shapes.vocabulary import WORLD_VERSION


@dataclasses.dataclass(kw_only=True)
class ShapesConfig(tfds.core.BuilderConfig):
    """One size of the data set.

    Attributes:
        image_size: side of the images in pixels.
        train: number of training scenes, of seen colour-shape pairs.
        validation: number of validation scenes, of seen pairs.
        compositional: number of scenes with at least one pair that training never shows.
        seed: of every scene.
    """

    image_size: int = 64
    train: int = 50_000
    validation: int = 2_000
    compositional: int = 2_000
    seed: int = 0


class Shapes(tfds.core.GeneratorBasedBuilder):
    """Captioned scenes of coloured shapes on plain backgrounds, with their exact structure."""

    VERSION = tfds.core.Version(WORLD_VERSION)
    # Given by hand: 4.9.10 infers it with a package that it does not require (datasets#11212).
    code_path = epath.Path(__file__)
    BUILDER_CONFIGS = [  # noqa: RUF012 - the name and type are TFDS's
        ShapesConfig(name="64px", description="64 px; the default"),
        ShapesConfig(name="128px", description="128 px, for upsamplers", image_size=128),
        ShapesConfig(
            name="tiny",
            description="a few hundred scenes of 64 px, for tests",
            train=256,
            validation=64,
            compositional=64,
        ),
    ]

    def _info(self) -> tfds.core.DatasetInfo:
        size = self._config.image_size
        features = {
            "image": tfds.features.Image(shape=(size, size, 3), encoding_format="png"),
            "caption": tfds.features.Text(),
            "key": tfds.features.Text(),
            "scene": tfds.features.Text(doc="JSON: background, items, relation, captions"),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description="Procedural captioned scenes; see unclip_jax.shapes.",
            features=tfds.features.FeaturesDict(features),
            disable_shuffling=True,  # scenes are independent already; keep index order
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
        del dl_manager
        return {
            split: self._generate_examples(split, getattr(self._config, split))
            for split in ("train", "validation", "compositional")
        }

    def _generate_examples(self, split: str, count: int) -> Iterator[tuple[int, dict[str, Any]]]:
        config = self._config
        records = generator.scenes(
            split, seed=config.seed, start=0, count=count, image_size=config.image_size
        )
        for index, record in enumerate(records):
            yield index, dict(record)  # PNG bytes are stored as they are; no TensorFlow needed

    @property
    def _config(self) -> ShapesConfig:
        config = self.builder_config
        assert isinstance(config, ShapesConfig)
        return config
