"""The shapes world as a TensorFlow Datasets builder that needs no TensorFlow.

    from unclip_jax.data.shapes.builder import Shapes

    builder = Shapes(data_dir=..., config="64px", file_format="array_record")
    builder.download_and_prepare()
    source = builder.as_data_source("train")   # random access; images as uint8 arrays

Importing this module also registers the name, so that `tfds.builder("shapes/64px", ...)` and
`tfds.data_source("shapes/64px", ...)` work. To read the PNG bytes themselves pass
`decoders={"image": tfds.decode.SkipDecoding()}`; texts come back as UTF-8 bytes, as always in TFDS.
"""

import tensorflow_datasets as tfds
from etils import epath

from unclip_jax.data.shapes import generator
from unclip_jax.data.world_builder import WorldBuilder, builder_configs
from unclip_jax.shapes.vocabulary import WORLD_VERSION


class Shapes(WorldBuilder):
    """Captioned scenes of coloured shapes on plain backgrounds, with their exact structure."""

    VERSION = tfds.core.Version(WORLD_VERSION)
    # Set here because 4.9.10 infers it with a package that it does not require (datasets#11212).
    code_path = epath.Path(__file__)
    BUILDER_CONFIGS = builder_configs()
    WORLD = generator.WORLD
    SUMMARY = "Procedural captioned scenes; see unclip_jax.shapes."
