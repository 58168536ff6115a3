"""Flags that name a data set, for every command that reads one."""

import argparse

from unclip_jax.data import sources
from unclip_jax.data.dataset import FeatureKeys


def add(parser: argparse.ArgumentParser) -> None:
    """Adds --data, and the names of image and caption in a data set of another format."""
    schemes = ", ".join(f"{scheme}:..." for scheme in sources.SOURCES)
    parser.add_argument("--data", required=True, help=f"prepared data set, or {schemes}")
    add_keys(parser)


def add_keys(parser: argparse.ArgumentParser) -> None:
    """Adds the names of image and caption in a data set of another format."""
    keys = FeatureKeys()
    text = "of a data set that `prepare` did not write"
    parser.add_argument("--image-key", default=keys.image, help=f"feature with the image {text}")
    parser.add_argument("--caption-key", default=keys.caption, help="feature with the caption")


def keys(args: argparse.Namespace) -> FeatureKeys:
    """Returns the names that `add_keys` parsed."""
    return FeatureKeys(args.image_key, args.caption_key)
