"""Captions as the frozen CLIP sees them, for stages that are trained on its token features.

The features follow from the tokens and are hundreds of times larger, so they are not stored: they
join a batch when it is taken, made by this process's first device. So does the raw z_txt, which is
what such stages see when they draw, and which is right for captions that were taken away too.
"""

import functools
import pathlib

import jax
import numpy as np

from unclip_jax.core.checks import UserError
from unclip_jax.core.types import HostBatch
from unclip_jax.data.loader import Finish
from unclip_jax.handoff import load as handoff
from unclip_jax.inference.load import load_clip
from unclip_jax.models.clip import Clip, TextOutput
from unclip_jax.stages.base import apply


@functools.cache
def reader(directory: pathlib.Path, *, context: int, width: int) -> Finish:
    """What adds "text_seq" and the raw "z_txt" to a batch that has tokens; one for all passes.

    Args:
        directory: export of the CLIP.
        context: length of the captions that the stage reads.
        width: of the features that it takes.

    Raises:
        UserError: no export of a CLIP, or one of other sizes.
    """
    cfg, params, _ = load_clip(directory)
    for name, ours in (("context", context), ("text_width", width)):
        theirs = getattr(cfg.model, name)
        if ours != theirs:
            key = {"context": "context", "text_width": "clip_text_width"}[name]
            raise UserError(
                f"config.model.model.{key} is {ours}, but the CLIP in {directory} has {name} "
                f"{theirs}; a stage that reads its token features must have the same."
            )

    @jax.jit
    def features(params, tokens, token_mask):
        out: TextOutput = apply(
            Clip(cfg.model), params, tokens, token_mask, method=Clip.encode_text
        )
        return out.sequence, out.pooled

    def add(batch: HostBatch) -> HostBatch:
        made = features(params, batch["tokens"], batch["token_mask"])
        text_seq, z_txt = (np.asarray(each, np.float32) for each in made)
        return {**batch, "text_seq": text_seq, "z_txt": z_txt}

    return add


def check(directory: pathlib.Path, *, clip_id: str | None) -> None:
    """Refuse a CLIP other than the one whose embeddings the stage is trained on.

    Raises:
        UserError: another one, or none.
    """
    theirs = handoff.read_manifest(directory).clip_id
    if theirs != clip_id:
        raise UserError(
            f"the CLIP in {directory} is {str(theirs)[:12]}, but the embeddings were made by "
            f"{str(clip_id)[:12]}; give the export with which they were made."
        )
