"""The portraits world as a TensorFlow Datasets builder that needs no TensorFlow.

    from unclip_jax.data.portraits.builder import Portraits

    builder = Portraits(data_dir=..., config="64px", file_format="array_record")
    builder.download_and_prepare()
    source = builder.as_data_source("train")   # random access; images as uint8 arrays

Importing this module also registers the name, so that `tfds.builder("portraits/64px", ...)` and
`tfds.data_source("portraits/64px", ...)` work. To read the PNG bytes themselves pass
`decoders={"image": tfds.decode.SkipDecoding()}`; texts come back as UTF-8 bytes, as always in TFDS.
"""

import tensorflow_datasets as tfds
from etils import epath

from unclip_jax.data.portraits import generator
from unclip_jax.data.world_builder import WorldBuilder, builder_configs
from unclip_jax.portraits.vocabulary import WORLD_VERSION


class Portraits(WorldBuilder):
    """Captioned flat cartoon portraits, with their exact attributes."""

    VERSION = tfds.core.Version(WORLD_VERSION)
    # Set here because 4.9.10 infers it with a package that it does not require (datasets#11212).
    code_path = epath.Path(__file__)
    BUILDER_CONFIGS = builder_configs()
    WORLD = generator.WORLD
    SUMMARY = "Procedural captioned portraits; see unclip_jax.portraits."
