"""Data sets in tars that stay where they are: `tars:LOCATION` names an index, or the tars."""

import hashlib
import os
import pathlib
import shlex

from unclip_jax.core.checks import UserError
from unclip_jax.data import dataset_manifest, prepared
from unclip_jax.data.dataset import Dataset, FeatureKeys


def open_dataset(location: str, keys: FeatureKeys) -> Dataset:
    """Opens an index of tars that `unclip_jax.prepare --index` wrote.

    Args:
        location: its folder, or the tars as they were given to `prepare`, whose index then lies in
            `index_folder(location)`.
        keys: not used; the index knows the names.

    Raises:
        UserError: there is no index.
    """
    del keys
    if (pathlib.Path(location) / dataset_manifest.FILE).is_file():
        return prepared.open_dataset(location)
    folder = index_folder(location)
    if not (folder / dataset_manifest.FILE).is_file():
        command = f"python -m unclip_jax.prepare {shlex.quote(location)} --index"
        raise UserError(
            f"tars:{location} has no index yet; make it once with `{command} --out={folder}`, or "
            "in another folder DIR, which tars:DIR then names."
        )
    return prepared.open_dataset(str(folder))


def index_folder(pattern: str) -> pathlib.Path:
    """Returns the folder in which the index of tars is looked for that are named by a pattern."""
    cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache")
    digest = hashlib.sha256(os.path.abspath(pattern).encode()).hexdigest()
    return cache / "unclip_jax" / "tars" / digest[:16]
