"""Sets of images: a folder, a guided-diffusion batch, or a data set, read in order and in batches.

All images of a set have the same size. None is skipped: an unreadable image is an error, because
scores depend on the number of images.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8
from scipy import ndimage

from unclip_jax.core.checks import UserError, in_range, positive
from unclip_jax.core.files import printable
from unclip_jax.data import image_codec, sources
from unclip_jax.data.dataset import FeatureKeys
from unclip_jax.engine import output_files
from unclip_jax.metrics import npz
from unclip_jax.preparation import folders, items
from unclip_jax.preparation.captions import captions_of

Images = UInt8[np.ndarray, "_ _ _ 3"]
LOSSY = (".jpg", ".jpeg", ".jpe", ".jfif", ".pjpeg", ".webp", ".avif", ".jp2", ".j2k")


@dataclasses.dataclass(frozen=True)
class ImageSet:
    """Images of one size, in order.

    Attributes:
        where: path, for messages.
        count: number of images.
        size: height and width at which images are scored.
        facts: entries of the protocol: source, count, size, crop.
        captions: one per image, or None if the set has none.
        batches: (batch size, rows) -> these rows of each batch, in order; the last batch may be
            smaller.
        lossy: True if some of the files are compressed with loss.
    """

    where: str
    count: int
    size: tuple[int, int]
    facts: dict[str, Any]
    captions: tuple[str, ...] | None
    batches: Callable[[int, slice], Iterator[Images]]
    lossy: bool = False


@dataclasses.dataclass(frozen=True)
class ImageSetOptions:
    """Options of reading a set of images.

    Attributes:
        size: images are resized and centre-cropped to this (ADM's procedure); None = unchanged,
            which requires equal sizes.
        num: number of images, from the start; None = all.
        split: split of a data set.
        keys: names of image and caption in a data set of another format.
        blur: standard deviation in pixels of a Gaussian that blurs the images; 0 = none.
    """

    size: int | None = None
    num: int | None = None
    split: str = "validation"
    keys: FeatureKeys = dataclasses.field(default_factory=FeatureKeys)
    blur: float = 0.0

    def __post_init__(self):
        """Checks the bounds."""
        in_range("--blur", self.blur, 0.0, 100.0)
        for name, value in (("--size", self.size), ("--num", self.num)):
            if value is not None:
                positive(name, value)


AS_STORED = ImageSetOptions()


def open_set(path: str | pathlib.Path, options: ImageSetOptions = AS_STORED) -> ImageSet:
    """Opens the set at `path`: an .npz file, a data set, or any folder of images.

    Raises:
        UserError: nothing is there, or no image, fewer than `num`, or images of several sizes.
    """
    images = _open_set(path, options)
    return blurred(images, options.blur) if options.blur else images


def _open_set(path: str | pathlib.Path, options: ImageSetOptions) -> ImageSet:
    if sources.is_dataset(path):
        return _from_dataset(str(path), options)
    path = pathlib.Path(path)
    if path.suffix == ".npz":
        return _from_npz(path, size=options.size, num=options.num)
    if not path.exists():
        raise UserError(f"there is no {path}; give a folder of images or an .npz file.")
    if not path.is_dir():
        raise UserError(f"{path} is neither a folder nor an .npz file; give one of them.")
    return _from_folder(path, size=options.size, num=options.num)


def in_memory(images: Images, *, where: str) -> ImageSet:
    """Returns a set of images that are in memory."""

    def batches(batch_size: int, rows: slice) -> Iterator[Images]:
        for start in range(0, len(images), batch_size):
            yield images[start : start + batch_size][rows]

    shape = (images.shape[1], images.shape[2])
    facts = {"source": where, "count": len(images), "size": _times(shape)}
    return ImageSet(where, len(images), shape, facts, None, batches)


def from_parts(paths: Sequence[pathlib.Path]) -> ImageSet:
    """Returns several .npz batches as one set.

    Raises:
        UserError: one of them is missing or damaged, or their images differ in size.
    """
    shapes = [npz.shape(path) for path in paths]
    first = (shapes[0].height, shapes[0].width)
    for path, shape in zip(paths, shapes, strict=True):
        if (shape.height, shape.width) != first:
            raise UserError(
                f"{path} holds images of {shape.width} x {shape.height}, {paths[0]} images of "
                f"{_times(first)}; delete the folder and sample again."
            )
    count, where = sum(shape.num for shape in shapes), str(paths[0].parent)

    def batches(batch_size: int, rows: slice) -> Iterator[Images]:
        buffer = np.zeros((0, *first, 3), np.uint8)
        for path in paths:
            for batch in npz.read(path, batch_size=batch_size):
                buffer = np.concatenate([buffer, batch])
                while len(buffer) >= batch_size:
                    yield buffer[:batch_size][rows]
                    buffer = buffer[batch_size:]
        if len(buffer):
            yield buffer[rows]

    return ImageSet(where, count, first, _facts(where, count, first, None), None, batches)


def resized(images: ImageSet, size: int) -> ImageSet:
    """Returns the set resized and centre-cropped to `size` (ADM's procedure), if it differs."""
    if images.size == (size, size):
        return images

    def batches(batch_size: int, rows: slice) -> Iterator[Images]:
        for batch in images.batches(batch_size, rows):
            yield _cropped(batch, size)

    facts = _facts(images.where, images.count, (size, size), size)
    return dataclasses.replace(images, size=(size, size), facts=facts, batches=batches)


def blurred(images: ImageSet, sigma: float) -> ImageSet:
    """Returns the set blurred by a Gaussian, as FID was reported for DALL-E (its figure 9).

    The paper gives radii without a definition; here they are standard deviations in pixels.
    """

    def batches(batch_size: int, rows: slice) -> Iterator[Images]:
        for batch in images.batches(batch_size, rows):
            smooth = ndimage.gaussian_filter(batch.astype(np.float32), (0, sigma, sigma, 0))
            yield np.rint(smooth).astype(np.uint8)

    return dataclasses.replace(images, facts={**images.facts, "blur": sigma}, batches=batches)


def pack(images: ImageSet, path: pathlib.Path, *, batch_size: int = 256) -> None:
    """Writes a set as a guided-diffusion batch."""
    npz.write(path, images.batches(batch_size, slice(None)), count=images.count)


def _from_dataset(path: str, options: ImageSetOptions) -> ImageSet:
    source = sources.open_source(path, split=options.split, keys=options.keys)
    where = f"{path} ({options.split})"
    count = _count(len(source), options.num, where=where)
    captions = tuple(str(source[i]["caption"]) for i in range(count))

    def read(index: int) -> tuple[bytes, str]:
        return source[index]["image"], f"image {index} of {path}"

    return _from_files(where, read, count=count, size=options.size, captions=captions)


def _from_npz(path: pathlib.Path, *, size: int | None, num: int | None) -> ImageSet:
    stored = npz.shape(path)
    count = _count(stored.num, num, where=str(path))

    def batches(batch_size: int, rows: slice) -> Iterator[Images]:
        left = count
        for batch in npz.read(path, batch_size=batch_size):
            images = batch[:left][rows]
            yield images if size is None else _cropped(images, size)
            left -= len(batch)
            if left <= 0:
                return

    shape = (stored.height, stored.width) if size is None else (size, size)
    return ImageSet(str(path), count, shape, _facts(path, count, shape, size), None, batches)


def _from_folder(path: pathlib.Path, *, size: int | None, num: int | None) -> ImageSet:
    listing = folders.list_folder(path)
    for item in listing.items:
        if item.image is None:
            raise UserError(f"{path}: {printable(item.key)}: {item.skip}; repair or remove it.")
    entries = [item for item in listing.items if isinstance(item.image, items.Blob)]
    if (listed := output_files.listed(path)) is not None:
        entries = _of_result(entries, listed, path)
    if not entries:
        kinds = ", ".join(image_codec.FORMATS)
        raise UserError(f"{path} holds no image ({kinds}); give another folder.")
    entries = entries[: _count(len(entries), num, where=str(path))]

    def read(index: int) -> tuple[bytes, str]:
        blob = entries[index].image
        assert isinstance(blob, items.Blob)
        try:
            return _bytes(blob, limit=items.MAX_IMAGE_BYTES), blob.path
        except items.Skip as error:
            raise UserError(f"{blob.path}: {error.reason}; copy it again or remove it.") from None

    captions = [_caption(item) for item in entries]
    complete = None if None in captions else tuple(str(caption) for caption in captions)
    names = [item.image.path for item in entries if isinstance(item.image, items.Blob)]
    suffixes = {pathlib.PurePath(name).suffix.lower() for name in names}
    images = _from_files(str(path), read, count=len(entries), size=size, captions=complete)
    return dataclasses.replace(images, lossy=bool(suffixes & set(LOSSY)))


def _of_result(
    entries: list[items.Item], listed: list[str], path: pathlib.Path
) -> list[items.Item]:
    """Returns the images of a folder that the JSON beside it lists, in its order."""
    by_path = {
        pathlib.Path(item.image.path): item
        for item in entries
        if isinstance(item.image, items.Blob)
    }
    if missing := [name for name in listed if path / name not in by_path]:
        raise UserError(
            f"{path}.json lists {len(listed)} images, of which {path} lacks {len(missing)} "
            f"({missing[0]}); sample them again, or remove the JSON to take the folder as it is."
        )
    return [by_path[path / name] for name in listed]


def _from_files(
    where: str,
    read: Callable[[int], tuple[bytes, str]],
    *,
    count: int,
    size: int | None,
    captions: Sequence[str] | None,
) -> ImageSet:
    """Returns a set of encoded images; `read` returns the bytes and the name of image i."""

    def decode(index: int) -> UInt8[np.ndarray, "_ _ 3"]:
        data, name = read(index)
        try:
            decoded = image_codec.decode(data)
        except image_codec.BadImage as error:
            raise UserError(f"{name}: {error}; remove it or replace it.") from None
        return decoded if size is None else _square(decoded, size)

    first = decode(0)
    shape, name = (first.shape[0], first.shape[1]), read(0)[1]

    def batches(batch_size: int, rows: slice) -> Iterator[Images]:
        for start in range(0, count, batch_size):
            indices = range(start, min(start + batch_size, count))[rows]
            images = [decode(index) for index in indices]
            for index, image in zip(indices, images, strict=True):
                if image.shape[:2] != shape:
                    raise UserError(
                        f"images of {where} differ in size: {name} has {_times(shape)}, "
                        f"{read(index)[1]} has {_times(image.shape)}; give --size=N to resize and "
                        "centre-crop all to N x N."
                    )
            yield np.stack(images) if images else np.zeros((0, *shape, 3), np.uint8)

    texts = None if captions is None else tuple(captions)
    return ImageSet(where, count, shape, _facts(where, count, shape, size), texts, batches)


def _bytes(blob: items.Blob, *, limit: int) -> bytes:
    reader = items.FileReader()
    try:
        return reader.read(blob, limit=limit)
    finally:
        reader.close()


def _caption(item: items.Item) -> str | None:
    try:
        caption = item.caption
        if isinstance(caption, items.Blob):
            caption = _bytes(caption, limit=items.MAX_TEXT_BYTES)
        if caption is None or isinstance(caption, items.Cell):
            return None
        first, *_ = captions_of(items.RawExample(b"", caption, item.form, item.field))
    except items.Skip:
        return None
    return first


def _count(available: int, num: int | None, *, where: str) -> int:
    if num is not None and num > available:
        raise UserError(
            f"{where} holds {available} images; --num={num} asks for more. Give {available} or "
            "fewer."
        )
    return available if num is None else num


def _facts(
    where: pathlib.Path | str, count: int, shape: tuple[int, int], size: int | None
) -> dict[str, Any]:
    crop = "none" if size is None else f"shorter side to {size} (box, bicubic), centre crop"
    return {"source": str(where), "count": count, "size": _times(shape), "crop": crop}


def _square(image: UInt8[np.ndarray, "_ _ 3"], size: int) -> UInt8[np.ndarray, " s s 3"]:
    return image_codec.center_crop(image_codec.resize_short(image, size), size)


def _cropped(images: Images, size: int) -> Images:
    squares = [_square(image, size) for image in images]
    return np.stack(squares) if squares else np.zeros((0, size, size, 3), np.uint8)


def _times(shape: Sequence[int]) -> str:
    return f"{shape[1]} x {shape[0]}"
