"""Codes of the frozen discrete VAE, for the stage that is trained to predict them.

They are computed for each batch, on this process's first device, from the images as they are
augmented, so that the codes of an image may differ from epoch to epoch as in the paper; or they are
read from disk, where `embed codes` wrote them.
"""

import functools
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from unclip_jax.core.checks import UserError
from unclip_jax.core.picture import to_float
from unclip_jax.core.types import HostBatch
from unclip_jax.data.dataset import Source
from unclip_jax.data.image_codes import CodedSource, read_info
from unclip_jax.data.loader import Finish
from unclip_jax.experiment.config import DataConfig
from unclip_jax.handoff import load as handoff
from unclip_jax.inference.load import load_dvae
from unclip_jax.stages import dvae


def finish(data: DataConfig) -> Finish | None:
    """Returns a function that replaces the images of a batch by codes; None if codes are stored.

    Raises:
        UserError: as `reader`.
    """
    return None if data.codes else reader(pathlib.Path(data.dvae), load_size=data.load_size)


def with_codes(source: Source, data: DataConfig, split: str) -> Source:
    """Returns a split with its stored codes, if there are any.

    Raises:
        UserError: they are missing, incomplete or of other records.
    """
    return CodedSource(source, pathlib.Path(data.codes) / split) if data.codes else source


def origin(data: DataConfig, split: str) -> str:
    """Returns what identifies the discrete VAE: the digest of its export, or its identity.

    Raises:
        UserError: there is no such export, or there are no such codes.
    """
    if data.codes:
        return str(read_info(pathlib.Path(data.codes) / split)["dvae_id"])
    return handoff.content_digest(pathlib.Path(data.dvae))


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
        codes = dvae.encode(cfg, params, to_float(images))
        return codes.reshape(len(codes), -1)

    def replace(batch: HostBatch) -> HostBatch:
        images = batch["image"]
        others = {name: value for name, value in batch.items() if name != "image"}
        return {**others, "codes": np.asarray(encode(params, images), np.int32)}

    return replace


def facts(data: DataConfig, *, grid: int, code_count: int) -> dict[str, str | None]:
    """Returns the identity of the discrete VAE, whose codes must be those of the model.

    Raises:
        UserError: it has another grid or number of codes, or the stored codes are of another one.
    """
    sources: dict[str, Mapping[str, Any]] = {}
    if data.dvae:
        card = handoff.read_manifest(pathlib.Path(data.dvae))
        sources[f"the discrete VAE in {data.dvae}"] = vars(card)
    if data.codes:
        folder = pathlib.Path(data.codes) / data.train_split
        sources[f"the discrete VAE of the codes in {folder}"] = read_info(folder)
    for where, own in sources.items():
        for name, value in (("grid", grid), ("code_count", code_count)):
            if own[name] != value:
                raise UserError(
                    f"config.model.model.{name} is {value}, but {where} has {name} {own[name]}; "
                    "set it to that, or give another one."
                )
    ids = [own["dvae_id"] for own in sources.values()]
    if len(set(ids)) > 1:
        raise UserError(
            f"the codes in {data.codes} are of the discrete VAE {ids[1][:12]}, but that in "
            f"{data.dvae} is {ids[0][:12]}; compute them again with `python -m unclip_jax.embed "
            "codes`, or leave out one of the two."
        )
    return {"dvae_id": ids[0]}
