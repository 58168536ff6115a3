"""Data sets in tars that are not copied: `tars:DIR` names the folder of their index."""

import pathlib
import shlex

from unclip_jax.core import storage
from unclip_jax.core.checks import UserError
from unclip_jax.data import dataset_manifest, prepared
from unclip_jax.data.dataset import Dataset, FeatureKeys


def open_dataset(location: str, keys: FeatureKeys) -> Dataset:
    """Opens an index of tars that `unclip_jax.prepare --index` wrote.

    Args:
        location: its folder or URL.
        keys: ignored, since the index contains the names.

    Raises:
        UserError: there is no index at `location`.
    """
    del keys
    place = storage.location(location)
    if isinstance(place, pathlib.Path) and not (place / dataset_manifest.FILE).is_file():
        raise UserError(
            f"tars:{location} is not an index of tars; write one with `python -m "
            f"unclip_jax.prepare {shlex.quote(location)} --index --out=DIR` and give tars:DIR."
        )
    return prepared.open_dataset(place)
