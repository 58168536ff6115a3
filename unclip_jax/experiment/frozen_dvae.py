"""Codes of the frozen discrete VAE, for the stage that is trained to predict them.

They are computed for each batch, on this process's first device, from the images as they are
augmented, so that the codes of an image differ from epoch to epoch as in the paper.
"""

import functools
import pathlib

import jax
import numpy as np

from unclip_jax.core.checks import UserError
from unclip_jax.core.types import HostBatch
from unclip_jax.data.loader import Finish
from unclip_jax.handoff import load as handoff
from unclip_jax.inference.load import load_dvae
from unclip_jax.stages import dvae


@functools.cache
def reader(directory: pathlib.Path, *, load_size: int) -> Finish:
    """Returns a function that replaces the images of a batch by their codes.

    Args:
        directory: export of the discrete VAE.
        load_size: side of the images.

    Raises:
        UserError: there is no export of a discrete VAE, or it reads images of another size.
    """
    cfg, params, _ = load_dvae(directory)
    if load_size != cfg.model.image_size:
        raise UserError(
            f"config.data.load_size is {load_size}, but the discrete VAE in {directory} reads "
            f"images of {cfg.model.image_size} pixels; set it to that."
        )

    @jax.jit
    def encode(params, images):
        codes = dvae.encode(cfg, params, images)
        return codes.reshape(len(codes), -1)

    def replace(batch: HostBatch) -> HostBatch:
        images = batch["image"]
        others = {name: value for name, value in batch.items() if name != "image"}
        return {**others, "codes": np.asarray(encode(params, images), np.int32)}

    return replace


def facts(directory: pathlib.Path, *, grid: int, code_count: int) -> dict[str, str | None]:
    """Returns the identity of the discrete VAE, whose codes must be those of the model.

    Raises:
        UserError: it has another grid or number of codes.
    """
    card = handoff.read_manifest(directory)
    for name, value in (("grid", grid), ("code_count", code_count)):
        if getattr(card, name) != value:
            raise UserError(
                f"config.model.model.{name} is {value}, but the discrete VAE in {directory} has "
                f"{name} {getattr(card, name)}; set it to that, or give another config.data.dvae."
            )
    return {"dvae_id": card.dvae_id}
