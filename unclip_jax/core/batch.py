"""Batch specifications: the contract between data and stages.

`data` produces batches that satisfy a `BatchSpec`, and a stage consumes them.
"""

import dataclasses
from collections.abc import Mapping

import jax
import numpy as np

from unclip_jax.core import picture
from unclip_jax.core.checks import UserError
from unclip_jax.core.types import Batch, HostBatch


@dataclasses.dataclass(frozen=True)
class Field:
    """One field of a batch.

    Attributes:
        shape: shape of one example, without the batch axis.
        dtype: NumPy dtype name.
        low: least allowed value, or None.
        high: greatest allowed value, or None.
        labels: what the values from 0 on stand for, if they have names.
        pixels: True for images, which may reach the device as uint8 (see `Stage`).
    """

    shape: tuple[int, ...]
    dtype: str
    low: int | float | None = None
    high: int | float | None = None
    labels: tuple[str, ...] = ()
    pixels: bool = False


BatchSpec = Mapping[str, Field]
_ADVICE = "check that the data and config.model belong together."


def image_field(size: int) -> Field:
    """A square NHWC RGB image in [-1, 1]."""
    return Field((size, size, 3), "float32", -1.0, 1.0, pixels=True)


def text_fields(length: int, vocab_size: int) -> dict[str, Field]:
    """Token ids and their mask (True = real token), both of fixed length."""
    return {
        "tokens": Field((length,), "int32", 0, vocab_size - 1),
        "token_mask": Field((length,), "bool"),
    }


def abstract(
    spec: BatchSpec, batch_size: int, *, transferred: bool = False
) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and dtypes of a batch, for tracing without data; images as uint8 if `transferred`."""
    return {
        name: jax.ShapeDtypeStruct(
            (batch_size, *field.shape),
            np.dtype("uint8" if transferred and field.pixels else field.dtype),
        )
        for name, field in spec.items()
    }


def with_float_images(batch: Batch) -> Batch:
    """Converts uint8 images of a batch on a device to [-1, 1], and leaves other fields alone.

    Loaders pass images on as uint8, which are a quarter of the bytes.
    """
    return {
        name: picture.to_float(value) if value.dtype == np.uint8 else value
        for name, value in batch.items()
    }


def zeros(spec: BatchSpec, batch_size: int) -> HostBatch:
    """Creates a batch of zeros that satisfies `spec` in shape and dtype."""
    return {
        name: np.zeros(leaf.shape, leaf.dtype) for name, leaf in abstract(spec, batch_size).items()
    }


def check(spec: BatchSpec, batch: HostBatch) -> None:
    """Checks a host batch against its spec: names, shapes, dtypes and value ranges.

    Raises:
        UserError: naming the first field that does not match.
    """
    missing = sorted(spec.keys() - batch.keys())
    if missing:
        raise UserError(
            f"batch lacks {missing}; the data source gives {sorted(batch)}. Check config.data."
        )
    for name, field in spec.items():
        value = batch[name]
        as_pixels = field.pixels and value.dtype == np.uint8
        if value.shape[1:] != field.shape or not (
            as_pixels or value.dtype == np.dtype(field.dtype)
        ):
            raise UserError(
                f"batch field {name!r} is {value.dtype}{list(value.shape[1:])} per example; the "
                f"stage expects {field.dtype}{list(field.shape)}. "
                "Check config.data and config.model."
            )
        if as_pixels:
            continue
        low, high = field.low, field.high
        if value.size and low is not None and value.min() < low:
            raise UserError(
                f"batch field {name!r} holds {value.min()}, below its least {low}; {_ADVICE}"
            )
        if value.size and high is not None and value.max() > high:
            raise UserError(
                f"batch field {name!r} holds {value.max()}, above its greatest {high}; {_ADVICE}"
            )
