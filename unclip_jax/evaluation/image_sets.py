"""Sets of pictures wherever they lie: a folder, a guided-diffusion batch, a prepared data set.

A set has one size and an exact count; it is read in order and in pieces. Nothing is skipped: a
picture that cannot be read ends the command, because a score of fewer pictures than it says is
wrong.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8

from unclip_jax.core.checks import UserError, positive
from unclip_jax.data import folders, image_codec, items, sources
from unclip_jax.data.dataset import FeatureKeys
from unclip_jax.metrics import npz

Pictures = UInt8[np.ndarray, "_ _ _ 3"]
LOSSY = (".jpg", ".jpeg", ".webp")


@dataclasses.dataclass(frozen=True)
class PictureSet:
    """Pictures of one size, in order.

    Attributes:
        where: path, for messages.
        count: how many there are.
        size: height and width as they are scored.
        facts: for the protocol: source, count, size, crop.
        captions: one per picture, or None where the set has none.
        batches: (batch size, rows of it) -> those rows of each batch in order; the last batch may
            be short, and then rows too.
        lossy: some of the files are compressed with loss.
    """

    where: str
    count: int
    size: tuple[int, int]
    facts: dict[str, Any]
    captions: tuple[str, ...] | None
    batches: Callable[[int, slice], Iterator[Pictures]]
    lossy: bool = False


def open_set(
    path: str | pathlib.Path,
    *,
    split: str = "validation",
    keys: FeatureKeys | None = None,
    size: int | None = None,
    num: int | None = None,
) -> PictureSet:
    """Open a set by what lies at `path`.

    Args:
        path: an .npz file, a data set (see `sources.open_dataset`), or any folder of pictures.
        split: of a data set.
        keys: names of image and caption in a data set of another format.
        size: pictures are resized and centre-cropped to this (ADM's procedure); None = as they
            are, which must then be equal.
        num: the first so many; None = all.

    Raises:
        UserError: there is nothing, no picture, fewer than `num`, or pictures of several sizes.
    """
    for name, value in (("--size", size), ("--num", num)):
        if value is not None:
            positive(name, value)
    if sources.is_dataset(path):
        return _from_dataset(str(path), split=split, keys=keys, size=size, num=num)
    path = pathlib.Path(path)
    if path.suffix == ".npz":
        return _from_npz(path, size=size, num=num)
    if not path.exists():
        raise UserError(f"there is no {path}; give a folder of pictures or an .npz file.")
    if not path.is_dir():
        raise UserError(f"{path} is neither a folder nor an .npz file; give one of them.")
    return _from_folder(path, size=size, num=num)


def _from_dataset(
    path: str, *, split: str, keys: FeatureKeys | None, size: int | None, num: int | None
) -> PictureSet:
    source, where = sources.open_source(path, split=split, keys=keys), f"{path} ({split})"
    count = _count(len(source), num, where=where)
    captions = tuple(str(source[i]["caption"]) for i in range(count))

    def read(index: int) -> tuple[bytes, str]:
        return source[index]["image"], f"picture {index} of {path}"

    return _from_files(where, read, count=count, size=size, captions=captions)


def in_memory(images: Pictures, *, where: str) -> PictureSet:
    """A set that is there already."""

    def batches(batch_size: int, rows: slice) -> Iterator[Pictures]:
        for start in range(0, len(images), batch_size):
            yield images[start : start + batch_size][rows]

    here = (images.shape[1], images.shape[2])
    facts = {"source": where, "count": len(images), "size": _times(here)}
    return PictureSet(where, len(images), here, facts, None, batches)


def from_parts(paths: Sequence[pathlib.Path]) -> PictureSet:
    """Several .npz batches as one set.

    Raises:
        UserError: one of them is missing or damaged, or their pictures differ in size.
    """
    shapes = [npz.shape(path) for path in paths]
    here = (shapes[0].height, shapes[0].width)
    for path, each in zip(paths, shapes, strict=True):
        if (each.height, each.width) != here:
            raise UserError(
                f"{path} holds pictures of {each.width} x {each.height}, {paths[0]} such of "
                f"{_times(here)}; draw them anew."
            )
    count, where = sum(each.num for each in shapes), str(paths[0].parent)

    def batches(batch_size: int, rows: slice) -> Iterator[Pictures]:
        waiting = np.zeros((0, *here, 3), np.uint8)
        for path in paths:
            for piece in npz.read(path, batch_size=batch_size):
                waiting = np.concatenate([waiting, piece])
                while len(waiting) >= batch_size:
                    yield waiting[:batch_size][rows]
                    waiting = waiting[batch_size:]
        if len(waiting):
            yield waiting[rows]

    return PictureSet(where, count, here, _facts(where, count, here, None), None, batches)


def resized(found: PictureSet, size: int) -> PictureSet:
    """The set resized and centre-cropped to `size` (ADM's procedure), if it is not so already."""
    if found.size == (size, size):
        return found

    def batches(batch_size: int, rows: slice) -> Iterator[Pictures]:
        for part in found.batches(batch_size, rows):
            yield _cropped(part, size)

    facts = _facts(found.where, found.count, (size, size), size)
    return dataclasses.replace(found, size=(size, size), facts=facts, batches=batches)


def pack(pictures: PictureSet, path: pathlib.Path, *, batch_size: int = 256) -> None:
    """Write a set as guided-diffusion's batch."""
    npz.write(path, pictures.batches(batch_size, slice(None)), count=pictures.count)


def _from_npz(path: pathlib.Path, *, size: int | None, num: int | None) -> PictureSet:
    shape = npz.shape(path)
    count = _count(shape.num, num, where=str(path))

    def batches(batch_size: int, rows: slice) -> Iterator[Pictures]:
        left = count
        for batch in npz.read(path, batch_size=batch_size):
            part = batch[:left][rows]
            yield part if size is None else _cropped(part, size)
            left -= len(batch)
            if left <= 0:
                return

    here = (shape.height, shape.width) if size is None else (size, size)
    return PictureSet(str(path), count, here, _facts(path, count, here, size), None, batches)


def _from_folder(path: pathlib.Path, *, size: int | None, num: int | None) -> PictureSet:
    found = [item for item in folders.list_folder(path) if item.image is not None]
    if not found:
        kinds = ", ".join(items.IMAGE_SUFFIXES)
        raise UserError(f"{path} holds no picture ({kinds}); give another folder.")
    found = found[: _count(len(found), num, where=str(path))]

    def read(index: int) -> tuple[bytes, str]:
        blob = found[index].image
        assert blob is not None
        try:
            return _bytes(blob, limit=items.MAX_IMAGE_BYTES), blob.path
        except items.Skip as error:
            raise UserError(f"{blob.path}: {error.reason}; copy it again or remove it.") from None

    captions = [_caption(item) for item in found]
    told = None if None in captions else tuple(str(caption) for caption in captions)
    suffixes = {pathlib.PurePath(item.image.path).suffix.lower() for item in found if item.image}
    made = _from_files(str(path), read, count=len(found), size=size, captions=told)
    return dataclasses.replace(made, lossy=bool(suffixes & set(LOSSY)))


def _from_files(
    where: str,
    read: Callable[[int], tuple[bytes, str]],
    *,
    count: int,
    size: int | None,
    captions: Sequence[str] | None,
) -> PictureSet:
    """A set of encoded pictures; `read` gives the bytes and the name of picture i."""

    def picture(index: int) -> UInt8[np.ndarray, "_ _ 3"]:
        data, name = read(index)
        try:
            decoded = image_codec.decode(data)
        except image_codec.BadImage as error:
            raise UserError(f"{name}: {error}; remove it or replace it.") from None
        return decoded if size is None else _square(decoded, size)

    first = picture(0)
    here, name = (first.shape[0], first.shape[1]), read(0)[1]

    def batches(batch_size: int, rows: slice) -> Iterator[Pictures]:
        for start in range(0, count, batch_size):
            wanted = range(start, min(start + batch_size, count))[rows]
            made = [picture(index) for index in wanted]
            for index, image in zip(wanted, made, strict=True):
                if image.shape[:2] != here:
                    raise UserError(
                        f"pictures of {where} differ in size: {name} has {_times(here)}, "
                        f"{read(index)[1]} has {_times(image.shape)}; give --size=N to resize and "
                        "centre-crop all to N x N."
                    )
            yield np.stack(made) if made else np.zeros((0, *here, 3), np.uint8)

    told = None if captions is None else tuple(captions)
    return PictureSet(where, count, here, _facts(where, count, here, size), told, batches)


def _bytes(blob: items.Blob, *, limit: int) -> bytes:
    reader = items.FileReader()
    try:
        return reader.read(blob, limit=limit)
    finally:
        reader.close()


def _caption(item: items.Item) -> str | None:
    if item.caption is None or item.field:
        return None
    if isinstance(item.caption, str):
        return item.caption
    try:
        data = _bytes(item.caption, limit=items.MAX_TEXT_BYTES)
    except items.Skip:
        return None
    return data.decode("utf-8-sig", errors="replace").strip()


def _count(there: int, num: int | None, *, where: str) -> int:
    if num is not None and num > there:
        raise UserError(f"{where} holds {there} pictures; --num={num} asks for more.")
    return there if num is None else num


def _facts(
    where: pathlib.Path | str, count: int, here: tuple[int, int], size: int | None
) -> dict[str, Any]:
    crop = "none" if size is None else f"shorter side to {size} (box, bicubic), centre crop"
    return {"source": str(where), "count": count, "size": _times(here), "crop": crop}


def _square(image: UInt8[np.ndarray, "_ _ 3"], size: int) -> UInt8[np.ndarray, " s s 3"]:
    return image_codec.center_crop(image_codec.resize_short(image, size), size)


def _cropped(images: Pictures, size: int) -> Pictures:
    squares = [_square(image, size) for image in images]
    return np.stack(squares) if squares else np.zeros((0, size, size, 3), np.uint8)


def _times(shape: Sequence[int]) -> str:
    return f"{shape[1]} x {shape[0]}"
