"""The .npz files of guided-diffusion's evaluator, for exchanging samples and references.

A batch of images is `arr_0`, uint8 [n h w 3]. Statistics are `mu` and `sigma` of the pooled
features and `mu_s`, `sigma_s` of the spatial ones; a reference file may contain both. Files of this
package also contain their protocol under `protocol`, which other readers ignore. Images are read
and written in batches, because 50,000 images of 256 pixels are 10 GB.
"""

import dataclasses
import itertools
import json
import pathlib
import zipfile
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8

from unclip_jax.core.checks import UserError
from unclip_jax.core.files import atomic_path
from unclip_jax.metrics.frechet import Moments

Images = UInt8[np.ndarray, "_ _ _ 3"]
IMAGES, PROTOCOL = "arr_0", "protocol"
_DAMAGED = (OSError, ValueError, EOFError, zipfile.BadZipFile, KeyError)


class ImagesShape(NamedTuple):
    """Number and size of a batch of images."""

    num: int
    height: int
    width: int


@dataclasses.dataclass(frozen=True)
class Statistics:
    """The contents of a reference file.

    Attributes:
        pool: moments of the pooled features.
        spatial: moments of the spatial features, if stored.
        protocol: protocol of the features; empty if not stored.
    """

    pool: Moments
    spatial: Moments | None
    protocol: dict[str, Any]


def array_names(path: pathlib.Path) -> set[str]:
    """Returns the names of the arrays of a file.

    Raises:
        UserError: there is no such file, or it is not an .npz file.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return {name.removesuffix(".npy") for name in archive.namelist()}
    except FileNotFoundError:
        raise UserError(f"there is no file {path}; check the path.") from None
    except _DAMAGED as error:
        raise UserError(f"{path} is not an .npz file ({error}); write or copy it again.") from None


def shape(path: pathlib.Path) -> ImagesShape:
    """Reads number and size of the images of a file.

    Raises:
        UserError: the file has no images, or they are not uint8 RGB.
    """
    return next(_open(path))  # pyright: ignore[reportReturnType]


def read(path: pathlib.Path, *, batch_size: int) -> Iterator[Images]:
    """Reads the images of a file in order, `batch_size` at a time.

    Raises:
        UserError: see `shape`; or the file ends early.
    """
    pieces = _open(path, batch_size=batch_size)
    next(pieces)
    yield from pieces  # pyright: ignore[reportReturnType]


def write(path: pathlib.Path, batches: Iterable[Images], *, count: int) -> None:
    """Writes `count` images under `arr_0`.

    Raises:
        UserError: there are no images, or their sizes differ.
    """
    batches = iter(batches)
    first = next(batches, None)
    if first is None:
        raise UserError(f"there is no image to write to {path}; give at least one.")
    size, written = first.shape[1:], 0
    with (
        atomic_path(path) as temporary,
        zipfile.ZipFile(temporary, "w") as archive,
        archive.open(f"{IMAGES}.npy", "w", force_zip64=True) as file,
    ):
        header = {"descr": "|u1", "fortran_order": False, "shape": (count, *size)}
        np.lib.format.write_array_header_1_0(file, header)
        for batch in itertools.chain([first], batches):
            if batch.shape[1:] != size:
                other = batch.shape[1:]
                raise UserError(
                    f"images are {size} and {other}; one file holds one size. Resize them, or "
                    "write a file per size."
                )
            file.write(np.ascontiguousarray(batch).tobytes())
            written += len(batch)
        assert written == count, (written, count)


def read_statistics(path: pathlib.Path) -> Statistics:
    """Reads the moments of a reference.

    Raises:
        UserError: moments are missing or inconsistent, or the file is damaged.
    """
    names = array_names(path)
    if not {"mu", "sigma"} <= names:
        raise UserError(
            f"{path} holds {sorted(names)}; statistics are mu and sigma. Give another file."
        )
    try:
        with np.load(path, allow_pickle=False) as file:
            pool = _moments(path, file["mu"], file["sigma"])
            both = {"mu_s", "sigma_s"} <= names
            spatial = _moments(path, file["mu_s"], file["sigma_s"]) if both else None
            protocol = json.loads(str(file[PROTOCOL])) if PROTOCOL in names else {}
    except UserError:
        raise
    except _DAMAGED as error:
        raise UserError(f"{path} cannot be read ({error}); write or copy it again.") from None
    return Statistics(pool, spatial, protocol)


def write_statistics(path: pathlib.Path, statistics: Statistics) -> None:
    """Writes moments in the format that `read_statistics` reads."""
    arrays: dict[str, Any] = {"mu": statistics.pool.mean, "sigma": statistics.pool.covariance}
    if statistics.spatial is not None:
        spatial = statistics.spatial
        arrays |= {"mu_s": spatial.mean, "sigma_s": spatial.covariance}
    with path.open("wb") as file:
        np.savez(file, **arrays, protocol=np.array(json.dumps(statistics.protocol)))


def _open(path: pathlib.Path, *, batch_size: int = 1) -> Iterator[ImagesShape | Images]:
    """Yields the shape, then batches of images, read lazily."""
    names = array_names(path)
    if IMAGES not in names:
        raise UserError(
            f"{path} holds {sorted(names)}; images are {IMAGES}, uint8 [n h w 3]. Give another "
            "file."
        )
    try:
        with zipfile.ZipFile(path) as archive, archive.open(f"{IMAGES}.npy") as file:
            version = np.lib.format.read_magic(file)
            header = np.lib.format.read_array_header_1_0
            if version != (1, 0):
                header = np.lib.format.read_array_header_2_0
            dims, fortran, dtype = header(file)
            if dtype != np.uint8 or len(dims) != 4 or dims[3] != 3 or fortran or not dims[0]:
                raise UserError(
                    f"{path} holds {dtype} {list(dims)} under {IMAGES}; expected uint8 images "
                    "[n h w 3]."
                )
            yield ImagesShape(*dims[:3])
            for start in range(0, dims[0], batch_size):
                count = min(batch_size, dims[0] - start)
                data = file.read(count * int(np.prod(dims[1:])))
                yield np.frombuffer(data, np.uint8).reshape(count, *dims[1:])
    except UserError:
        raise
    except _DAMAGED as error:
        raise UserError(f"{path} is damaged ({error}); write or copy it again.") from None


def _moments(path: pathlib.Path, mean: np.ndarray, covariance: np.ndarray) -> Moments:
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
        raise UserError(
            f"{path} holds a mean {list(mean.shape)} and a covariance {list(covariance.shape)}, "
            "which do not match; write it again."
        )
    return Moments(mean.astype(np.float64), covariance.astype(np.float64))
