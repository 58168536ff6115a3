"""The frozen CLIP's features of captions, for stages that are trained on them.

The features follow from the tokens and are hundreds of times larger, so they are not stored but
computed for each batch, on this process's first device. So is the raw z_txt, which such stages read
when they sample, and which is right for dropped captions too.
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
from unclip_jax.models.application import apply
from unclip_jax.models.clip import Clip, TextOutput


@functools.cache
def reader(directory: pathlib.Path, *, context: int, width: int) -> Finish:
    """Returns a function that adds "text_seq" and the raw "z_txt" to a batch that has tokens.

    Args:
        directory: export of the CLIP.
        context: length of the captions that the stage reads.
        width: of the features that it takes.

    Raises:
        UserError: there is no export of a CLIP, or it has other sizes.
    """
    cfg, params, _ = load_clip(directory)
    for name, value in (("context", context), ("text_width", width)):
        expected = getattr(cfg.model, name)
        if value != expected:
            key = {"context": "context", "text_width": "clip_text_width"}[name]
            raise UserError(
                f"config.model.model.{key} is {value}, but the CLIP in {directory} has {name} "
                f"{expected}; a stage that reads its token features must have the same."
            )

    @jax.jit
    def features(params, tokens, token_mask):
        out: TextOutput = apply(
            Clip(cfg.model), params, tokens, token_mask, method=Clip.encode_text
        )
        return out.sequence, out.pooled

    def add(batch: HostBatch) -> HostBatch:
        outputs = features(params, batch["tokens"], batch["token_mask"])
        text_seq, z_txt = (np.asarray(output, np.float32) for output in outputs)
        return {**batch, "text_seq": text_seq, "z_txt": z_txt}

    return add


def check(directory: pathlib.Path, *, clip_id: str | None) -> None:
    """Rejects a CLIP other than the one whose embeddings the stage is trained on.

    Raises:
        UserError: it is another one, or none.
    """
    identity = handoff.read_manifest(directory).clip_id
    if identity != clip_id:
        raise UserError(
            f"the CLIP in {directory} is {str(identity)[:12]}, but the embeddings were computed by "
            f"{str(clip_id)[:12]}; give the export that computed them."
        )
