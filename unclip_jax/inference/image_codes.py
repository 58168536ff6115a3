"""Writes the codes of a frozen discrete VAE for all images of a data set."""

import pathlib
from collections.abc import Iterator, Sequence

import jax
import numpy as np
from tqdm import tqdm

from unclip_jax.core.picture import to_float
from unclip_jax.data import loader, sources
from unclip_jax.data.dataset import FeatureKeys, Source, content_digest
from unclip_jax.data.examples import ExampleConfig
from unclip_jax.data.image_codes import CodeWriter
from unclip_jax.data.loader import LoaderConfig
from unclip_jax.data.records import Record
from unclip_jax.inference.load import load_dvae
from unclip_jax.stages import dvae


class _LastRecords:
    """The records of a source from index `first` on."""

    def __init__(self, source: Source, first: int):
        self._source, self._first = source, first

    def __len__(self) -> int:
        return len(self._source) - self._first

    def __getitem__(self, index: int) -> Record:
        return self._source[self._first + index]


def encode_dataset(
    data: str,
    *,
    export: pathlib.Path,
    out: pathlib.Path,
    keys: FeatureKeys,
    splits: Sequence[str] = (),
    batch_size: int = 64,
    workers: int = 8,
) -> dict[str, int]:
    """Writes OUT/SPLIT with the codes of all images, centre-cropped as training reads them.

    An interrupted run continues after its last file.

    Args:
        data: path of the data set (`sources.open_dataset`).
        export: export of a discrete VAE.
        out: folder to write, or to continue.
        keys: names of image and caption in data sets of other formats.
        splits: names; () = all.
        batch_size: images per batch.
        workers: threads that read records.

    Returns:
        The number of images of every split.

    Raises:
        UserError: no such data set, split or export; or `out` holds other codes.
    """
    cfg, params, manifest = load_dvae(export)
    sizes = {
        "grid": manifest.grid,
        "code_count": manifest.code_count,
        "image_size": manifest.image_size,
    }
    encode = jax.jit(lambda params, images: dvae.encode(cfg, params, to_float(images)))
    dataset, counts = sources.open_dataset(data, keys=keys), {}
    for split in splits or dataset.splits:
        source = dataset.open_split(split)
        info = {"dvae_id": manifest.dvae_id, **sizes, "data_digest": content_digest(source)}
        writer = CodeWriter(out / split, info=info)
        options = {"side": cfg.model.image_size, "size": batch_size, "workers": workers}
        batches = _batches(source, first=writer.written, **options)
        for images in tqdm(batches, desc=f"encode {split}", unit="batch"):
            padded = np.zeros((batch_size, *images.shape[1:]), np.uint8)
            padded[: len(images)] = images
            codes = np.asarray(encode(params, padded))[: len(images)]
            writer.add(codes.reshape(len(codes), -1))
        writer.finish()
        counts[split] = len(source)
    return counts


def _batches(
    source: Source, *, first: int, side: int, size: int, workers: int
) -> Iterator[np.ndarray]:
    """Yields uint8 images in order, from record `first` on."""
    if first >= len(source):
        return
    config = LoaderConfig(
        batch_size=size, shuffle=False, num_epochs=1, seed=0, remainder="keep", workers=workers
    )
    example = ExampleConfig(fields=("image",), image_size=side)
    for batch in loader.make_loader(_LastRecords(source, first), example=example, config=config):
        yield batch["image"]
