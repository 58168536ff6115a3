"""The frozen text encoder's features of captions, for stages that are trained on them.

They are computed for each batch, on this process's first device, or read from disk where `embed
text` wrote them (Imagen, arXiv 2205.11487, section 2.1: the weights are frozen, so that features
may be computed once). A caption of 128 tokens of T5-XXL is a megabyte.
"""

import functools
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from unclip_jax.conditioning.captions import TokenIds
from unclip_jax.core.checks import UserError
from unclip_jax.core.types import HostBatch
from unclip_jax.data.loader import Finish
from unclip_jax.data.text_features import TextFeatureStore
from unclip_jax.experiment.config import DataConfig
from unclip_jax.handoff import load as handoff
from unclip_jax.handoff.manifest import Manifest, same_identity, short_identity
from unclip_jax.inference.load import load_text_encoder
from unclip_jax.stages import text_encoder


def finish(data: DataConfig, *, context: int, width: int) -> Finish:
    """Returns a function that replaces token ids in a batch by features, computed or stored.

    Raises:
        UserError: as `reader` or `stored`.
    """
    sizes = {"context": context, "width": width}
    if data.text_features:
        card = manifest(data)
        return stored(
            pathlib.Path(data.text_features),
            encoder_id=str(card.text_encoder_id),
            tokenizer_hash=str(card.tokenizer_hash),
            **sizes,
        )
    return reader(pathlib.Path(data.text_encoder), **sizes)


def manifest(data: DataConfig) -> Manifest:
    """Returns the manifest of the text encoder that the stage reads.

    Raises:
        UserError: its export is missing, or of another stage.
    """
    card = handoff.read_manifest(pathlib.Path(data.text_encoder))
    if card.text_encoder_id is None or card.stage != "text_encoder":
        raise UserError(
            f"config.data.text_encoder is {data.text_encoder!r}, the export of a {card.stage}; "
            "give that of a text_encoder."
        )
    return card


def identity(data: DataConfig) -> str:
    """Returns the identity of the text encoder that the stage reads.

    Raises:
        UserError: as `manifest`.
    """
    return str(manifest(data).text_encoder_id)


def check_initial(data: DataConfig, initial: pathlib.Path) -> None:
    """Rejects training on from an export that reads the features of another text encoder.

    Raises:
        UserError: it does.
    """
    theirs, ours = handoff.read_manifest(initial).text_encoder_id, identity(data)
    if theirs is not None and not same_identity(theirs, ours):
        raise UserError(
            f"config.init_from is {str(initial)!r}, which reads the text encoder "
            f"{short_identity(theirs)}, but config.data.text_encoder, {data.text_encoder!r}, is "
            f"{short_identity(ours)}; name the encoder that it was trained on, or leave init_from "
            "out to train from scratch."
        )


@functools.cache
def reader(directory: pathlib.Path, *, context: int, width: int) -> Finish:
    """Returns a function that replaces token ids in a batch by "text_features" and "text_mask".

    Args:
        directory: export of the text encoder.
        context: slots per caption that the stage reads.
        width: of the features that it takes.

    Raises:
        UserError: there is no export of a text encoder, or it has other sizes.
    """
    cfg, params, _ = load_text_encoder(directory)
    _check_sizes(
        directory, {"context": cfg.model.context, "width": cfg.model.width}, context, width
    )

    @jax.jit
    def features(params, tokens, mask):
        return text_encoder.encode(cfg, params, TokenIds(tokens, mask)).sequence

    return _replacing(
        lambda tokens, mask: np.asarray(features(params, tokens, mask).astype("bfloat16"))
    )


@functools.cache
def stored(
    directory: pathlib.Path, *, encoder_id: str, tokenizer_hash: str, context: int, width: int
) -> Finish:
    """Returns a function that does as `reader`, with features that `embed text` wrote.

    Args:
        directory: the folder.
        encoder_id: identity of the text encoder that they must be of.
        tokenizer_hash: of its tokenizer, by whose token ids they are found.
        context: slots per caption that the stage reads.
        width: of the features that it takes.

    Raises:
        UserError: there are none, or they are of another encoder or of other sizes.
    """
    store = TextFeatureStore(directory)
    theirs, tokenizer = (store.info.get(name) for name in ("text_encoder_id", "tokenizer_hash"))
    if not same_identity(theirs, encoder_id):
        raise UserError(
            f"{directory} holds features of the text encoder {short_identity(theirs)}, but "
            f"config.data.text_encoder is {short_identity(encoder_id)}; make them with that, or "
            "name the other."
        )
    if tokenizer != tokenizer_hash:
        raise UserError(
            f"{directory} holds features of captions in token ids of the tokenizer "
            f"{str(tokenizer)[:12]}, but that of config.data.text_encoder is "
            f"{tokenizer_hash[:12]}; make them again with `python -m unclip_jax.embed text`."
        )
    _check_sizes(directory, store.info, context, width)
    return _replacing(store.batch)


def _replacing(features: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Finish:
    """Returns a function that replaces token ids in a batch by their features."""

    def add(batch: HostBatch) -> HostBatch:
        tokens, mask = batch["tokens"], batch["token_mask"]
        others = {n: x for n, x in batch.items() if n not in ("tokens", "token_mask")}
        return {**others, "text_features": features(tokens, mask), "text_mask": mask}

    return add


def _check_sizes(
    directory: pathlib.Path, sizes: Mapping[str, Any], context: int, width: int
) -> None:
    for name, value in (("context", context), ("width", width)):
        if value != sizes.get(name):
            raise UserError(
                f"config.model.model.text.{name} is {value}, but the text encoder in {directory} "
                f"has {name} {sizes.get(name)}; a stage that reads its features must have the same."
            )
