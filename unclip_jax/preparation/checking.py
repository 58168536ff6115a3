"""Checks of raw examples: each becomes a record for training, or is skipped for a reason."""

import dataclasses

from unclip_jax.core.checks import positive
from unclip_jax.data import image_codec
from unclip_jax.data.records import Record
from unclip_jax.preparation.captions import captions_of
from unclip_jax.preparation.items import RawExample, Skip


@dataclasses.dataclass(frozen=True)
class CheckConfig:
    """Limits on images and the form in which they are stored.

    Attributes:
        limits: bounds on the size of usable images.
        max_side: larger images are reduced to this shorter side; None = all images are stored
            unchanged, byte for byte.
        image_size: every image is stored as a centre-cropped square of this side; None = no crop.
    """

    limits: image_codec.ImageLimits = dataclasses.field(default_factory=image_codec.ImageLimits)
    max_side: int | None = None
    image_size: int | None = None

    def __post_init__(self):
        for name in ("max_side", "image_size"):
            if getattr(self, name) is not None:
                positive(name, getattr(self, name))


def check(key: str, raw: RawExample, config: CheckConfig) -> Record:
    """Returns the record of one example, whose image is decoded once.

    Raises:
        Skip: the example cannot be used; carries the reason.
    """
    captions = captions_of(raw)
    try:
        image = _image(raw.image, config)
    except image_codec.BadImage as error:
        raise Skip(error.reason) from error
    record: Record = {"image": image, "caption": captions[0], "key": key, "scene": raw.scene}
    if len(captions) > 1:
        record["captions"] = list(captions)
    if raw.facts:
        record["facts"] = dict(raw.facts)
    return record


def _image(data: bytes, config: CheckConfig) -> bytes:
    """Returns the bytes to store: the original ones unless the image has to be reduced."""
    pixels = image_codec.decode(data, limits=config.limits)
    if config.image_size is not None:
        small = image_codec.resize_short(pixels, config.image_size)
        return image_codec.encode_png(image_codec.center_crop(small, config.image_size))
    if config.max_side is not None and min(pixels.shape[:2]) > config.max_side:
        small = image_codec.resize_short(pixels, config.max_side)
        return (
            image_codec.encode_png(small)
            if image_codec.is_lossless(data)
            else image_codec.encode_jpeg(small)
        )
    return data
