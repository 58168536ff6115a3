"""Base class of TensorFlow Datasets builders of procedural worlds, without TensorFlow."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import tensorflow_datasets as tfds

from unclip_jax.data.procedural import World, records


@dataclasses.dataclass(kw_only=True)
class WorldConfig(tfds.core.BuilderConfig):
    """One size of a world's data set.

    Attributes:
        image_size: side of the images in pixels.
        train: number of training scenes, without held-out pairs.
        validation: number of validation scenes, without held-out pairs.
        compositional: number of scenes with at least one pair that is held out from training.
        seed: seed of all scenes.
    """

    image_size: int = 64
    train: int = 50_000
    validation: int = 2_000
    compositional: int = 2_000
    seed: int = 0


def builder_configs() -> list[WorldConfig]:
    """Returns the sizes in which every world is available."""
    return [
        WorldConfig(name="64px", description="64 px; the default"),
        WorldConfig(name="128px", description="128 px, for upsamplers", image_size=128),
        WorldConfig(
            name="tiny",
            description="a few hundred scenes of 64 px, for tests",
            train=256,
            validation=64,
            compositional=64,
        ),
    ]


class WorldBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A TFDS builder of a world; subclasses set `WORLD`, `SUMMARY` and TFDS's attributes."""

    WORLD: World
    SUMMARY: str

    def _info(self) -> tfds.core.DatasetInfo:
        size = self._config.image_size
        features = {
            "image": tfds.features.Image(shape=(size, size, 3), encoding_format="png"),
            "caption": tfds.features.Text(),
            "key": tfds.features.Text(),
            "scene": tfds.features.Text(doc="JSON: the scene and its captions"),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.SUMMARY,
            features=tfds.features.FeaturesDict(features),
            disable_shuffling=True,  # scenes are independent; keep index order
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
        del dl_manager
        return {
            split: self._generate_examples(split, getattr(self._config, split))
            for split in ("train", "validation", "compositional")
        }

    def _generate_examples(self, split: str, count: int) -> Iterator[tuple[int, dict[str, Any]]]:
        config = self._config
        examples = records(
            self.WORLD,
            split,
            seed=config.seed,
            start=0,
            count=count,
            image_size=config.image_size,
        )
        for index, record in enumerate(examples):
            yield index, dict(record)  # PNG bytes are stored unchanged, without TensorFlow

    @property
    def _config(self) -> WorldConfig:
        config = self.builder_config
        assert isinstance(config, WorldConfig)
        return config
