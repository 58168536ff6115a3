"""The .npz files of guided-diffusion's evaluator, so that others can score us and we them.

A batch of pictures is `arr_0`, uint8 [n h w 3]. Statistics are `mu` and `sigma` of the pooled
features and `mu_s`, `sigma_s` of the spatial ones; a reference batch may hold both. Ours say in
addition under `protocol` how they were made, which other readers ignore. Pictures are read and
written in pieces: 50,000 of 256 pixels are 10 GB.
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
from unclip_jax.metrics.frechet import Moments

Pictures = UInt8[np.ndarray, "_ _ _ 3"]
IMAGES, PROTOCOL = "arr_0", "protocol"
_DAMAGED = (OSError, ValueError, EOFError, zipfile.BadZipFile, KeyError)


class Shape(NamedTuple):
    """Of a batch of pictures."""

    num: int
    height: int
    width: int


@dataclasses.dataclass(frozen=True)
class Statistics:
    """What a reference file knows of a set of pictures.

    Attributes:
        pool: moments of the pooled features.
        spatial: of the spatial ones, if they are there.
        protocol: how they were made; empty if the file does not say.
    """

    pool: Moments
    spatial: Moments | None
    protocol: dict[str, Any]


def names(path: pathlib.Path) -> set[str]:
    """What a file holds.

    Raises:
        UserError: there is no such file, or it is none of NumPy's.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return {name.removesuffix(".npy") for name in archive.namelist()}
    except FileNotFoundError:
        raise UserError(f"there is no file {path}; check the path.") from None
    except _DAMAGED as error:
        raise UserError(f"{path} is no .npz file ({error}); make or copy it again.") from None


def shape(path: pathlib.Path) -> Shape:
    """Number and size of the pictures in a file.

    Raises:
        UserError: there are none, or they are no uint8 RGB pictures.
    """
    return next(_open(path))  # pyright: ignore[reportReturnType]


def read(path: pathlib.Path, *, batch_size: int) -> Iterator[Pictures]:
    """The pictures of a file in order, `batch_size` at a time.

    Raises:
        UserError: as `shape`, or the file ends early.
    """
    pieces = _open(path, batch_size=batch_size)
    next(pieces)
    yield from pieces  # pyright: ignore[reportReturnType]


def write(path: pathlib.Path, batches: Iterable[Pictures], *, count: int) -> None:
    """Write pictures, `count` in all, under `arr_0`.

    Raises:
        UserError: their sizes differ, or there is no picture.
    """
    batches = iter(batches)
    first = next(batches, None)
    if first is None:
        raise UserError(f"there is no picture to write to {path}.")
    draft, written = path.with_name(f"{path.name}.part"), 0
    size = first.shape[1:]
    with (
        zipfile.ZipFile(draft, "w") as archive,
        archive.open(f"{IMAGES}.npy", "w", force_zip64=True) as file,
    ):
        header = {"descr": "|u1", "fortran_order": False, "shape": (count, *size)}
        np.lib.format.write_array_header_1_0(file, header)
        for batch in itertools.chain([first], batches):
            if batch.shape[1:] != size:
                raise UserError(f"pictures of {batch.shape[1:]} follow such of {size}.")
            file.write(np.ascontiguousarray(batch).tobytes())
            written += len(batch)
    assert written == count, (written, count)
    draft.replace(path)


def read_statistics(path: pathlib.Path) -> Statistics:
    """Moments of a reference.

    Raises:
        UserError: the file lacks them, is damaged, or they do not fit together.
    """
    there = names(path)
    if not {"mu", "sigma"} <= there:
        raise UserError(f"{path} holds {sorted(there)}; statistics are mu and sigma.")
    try:
        with np.load(path, allow_pickle=False) as file:
            pool = _moments(path, file["mu"], file["sigma"])
            both = {"mu_s", "sigma_s"} <= there
            spatial = _moments(path, file["mu_s"], file["sigma_s"]) if both else None
            protocol = json.loads(str(file[PROTOCOL])) if PROTOCOL in there else {}
    except UserError:
        raise
    except _DAMAGED as error:
        raise UserError(f"{path} cannot be read ({error}); make or copy it again.") from None
    return Statistics(pool, spatial, protocol)


def write_statistics(path: pathlib.Path, statistics: Statistics) -> None:
    """Write what `read_statistics` reads."""
    arrays: dict[str, Any] = {"mu": statistics.pool.mean, "sigma": statistics.pool.covariance}
    if statistics.spatial is not None:
        spatial = statistics.spatial
        arrays |= {"mu_s": spatial.mean, "sigma_s": spatial.covariance}
    with path.open("wb") as file:
        np.savez(file, **arrays, protocol=np.array(json.dumps(statistics.protocol)))


def _open(path: pathlib.Path, *, batch_size: int = 1) -> Iterator[Shape | Pictures]:
    """The shape, then the pictures; nothing is read before it is asked for."""
    there = names(path)
    if IMAGES not in there:
        raise UserError(f"{path} holds {sorted(there)}; pictures are {IMAGES}, uint8 [n h w 3].")
    try:
        with zipfile.ZipFile(path) as archive, archive.open(f"{IMAGES}.npy") as file:
            version = np.lib.format.read_magic(file)
            header = np.lib.format.read_array_header_1_0
            if version != (1, 0):
                header = np.lib.format.read_array_header_2_0
            dims, fortran, dtype = header(file)
            if dtype != np.uint8 or len(dims) != 4 or dims[3] != 3 or fortran or not dims[0]:
                raise UserError(
                    f"{path} holds {dtype} {list(dims)} under {IMAGES}; expected uint8 pictures "
                    "[n h w 3]."
                )
            yield Shape(*dims[:3])
            for start in range(0, dims[0], batch_size):
                count = min(batch_size, dims[0] - start)
                data = file.read(count * int(np.prod(dims[1:])))
                yield np.frombuffer(data, np.uint8).reshape(count, *dims[1:])
    except UserError:
        raise
    except _DAMAGED as error:
        raise UserError(f"{path} is damaged ({error}); make or copy it again.") from None


def _moments(path: pathlib.Path, mean: np.ndarray, covariance: np.ndarray) -> Moments:
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
        raise UserError(
            f"{path} holds a mean {list(mean.shape)} and a covariance {list(covariance.shape)}, "
            "which do not fit; make it again."
        )
    return Moments(mean.astype(np.float64), covariance.astype(np.float64))
