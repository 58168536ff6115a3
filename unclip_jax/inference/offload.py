"""The cascade with one stage on the device at a time, for devices that cannot hold all of them.

Every stage is read, draws all batches and is forgotten before the next is read. Pictures are those
of `text_to_image.sample` but for rounding: they come from the same functions and keys.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import UInt8

from unclip_jax.core.picture import to_uint8
from unclip_jax.core.types import Embedding, Keys
from unclip_jax.inference import text_to_image
from unclip_jax.inference.load import CascadeFiles
from unclip_jax.inference.text_to_image import Captions, SampleOptions


class Batch(NamedTuple):
    """What to draw: captions, one key per image, and z_img where the options say it is given."""

    captions: Captions
    keys: Keys
    z_img: Embedding | None = None


def draw(
    found: CascadeFiles,
    batches: Sequence[Batch],
    *,
    options: SampleOptions,
    begin: Callable[[str], None] = lambda name: None,
) -> list[UInt8[np.ndarray, " b h w 3"]]:
    """Draw one image per caption; batches of one shape are compiled once.

    Args:
        found: the cascade, not yet loaded; it draws on this process's first device.
        batches: what to draw.
        options: overrides of the exported settings.
        begin: told the name of every stage before it is read.
    """
    cascade = found.cascade

    def each(name: str, run: Callable[..., Any], *inputs: Sequence[Any]) -> list[Any]:
        """`run` on every batch, with the parameters of stage `name`, which are then forgotten."""
        begin(name)
        params, compiled = found.readers[name](), jax.jit(run)
        return jax.block_until_ready([compiled(params, *b) for b in zip(*inputs, strict=True)])

    def clip(params, batch):
        told = {"clip": params}
        return text_to_image.read_captions(cascade, told, batch.captions, options=options)

    def prior(params, batch, read):
        return text_to_image.sample_z_img(
            cascade,
            {"prior": params},
            batch.captions,
            batch.keys,
            options=options,
            z_img=batch.z_img,
            read=read,
        )

    def base(params, batch, read, z_img):
        return text_to_image.sample_base(
            cascade, params, batch.captions, batch.keys, options=options, z_img=z_img, read=read
        )

    def enlarge(params, batch, images, *, at):
        return text_to_image.upsample_once(
            cascade, params, images, batch.keys, options=options, at=at
        )

    reads = each("clip", clip, batches)
    if options.condition == "prior":
        z_img = each("prior", prior, batches, reads)
    else:
        z_img = [prior(None, *both) for both in zip(batches, reads, strict=True)]
    images = each("decoder", base, batches, reads, z_img)
    for index, name in enumerate(list(found.readers)[3:]):
        images = each(name, functools.partial(enlarge, at=index), batches, images)
    return [np.asarray(to_uint8(drawn)) for drawn in images]
