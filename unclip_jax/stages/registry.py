"""The only place where a name becomes a thing: stages and experiments.

To add a stage: one file in stages/ and one line in STAGES. To add an experiment: one file in
experiments/; the folder is the registry.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

from unclip_jax.core.checks import one_of
from unclip_jax.stages import clip, decoder, prior, prior_ar, upsampler
from unclip_jax.stages.base import Rows, Stage


@dataclasses.dataclass(frozen=True)
class StageEntry:
    """A stage by name.

    Attributes:
        config: the dataclass that types its config.
        make: builds it.
        settle: fills in what only the training data can say; None = the config says it all.
    """

    config: type
    make: Callable[[Any], Stage]
    settle: Callable[[Any, Rows], Any] | None = None


STAGES: dict[str, StageEntry] = {
    "clip": StageEntry(clip.ClipStageConfig, clip.make),
    "prior": StageEntry(prior.PriorStageConfig, prior.make, prior.settle),
    "prior_ar": StageEntry(prior_ar.PriorArStageConfig, prior_ar.make, prior_ar.settle),
    "decoder": StageEntry(decoder.DecoderStageConfig, decoder.make),
    "upsampler": StageEntry(upsampler.UpsamplerStageConfig, upsampler.make),
}


def stage_entry(name: str) -> StageEntry:
    """The stage called `name`.

    Raises:
        UserError: there is none.
    """
    return STAGES[one_of("stage", name, STAGES)]
