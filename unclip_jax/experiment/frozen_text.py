"""The frozen text encoder's features of captions, for stages that are trained on them.

A caption of 128 tokens of T5-XXL is a megabyte, so features are not stored but computed for each
batch, on this process's first device, as Imagen's authors could have (arXiv 2205.11487, section
2.1: the weights are frozen, so that it costs memory and time, and no gradient).
"""

import functools
import pathlib

import jax
import numpy as np

from unclip_jax.core.checks import UserError
from unclip_jax.core.types import HostBatch
from unclip_jax.data.loader import Finish
from unclip_jax.inference.load import load_text_encoder
from unclip_jax.stages import text_encoder
from unclip_jax.stages.captions import TokenIds


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
    for name, value in (("context", context), ("width", width)):
        expected = getattr(cfg.model, name)
        if value != expected:
            raise UserError(
                f"config.model.model.text.{name} is {value}, but the text encoder in {directory} "
                f"has {name} {expected}; a stage that reads its features must have the same."
            )

    @jax.jit
    def features(params, tokens, mask):
        return text_encoder.encode(cfg, params, TokenIds(tokens, mask)).sequence

    def add(batch: HostBatch) -> HostBatch:
        tokens, mask = batch["tokens"], batch["token_mask"]
        sequence = np.asarray(features(params, tokens, mask).astype("bfloat16"))
        others = {n: x for n, x in batch.items() if n not in ("tokens", "token_mask")}
        return {**others, "text_features": sequence, "text_mask": mask}

    return add
