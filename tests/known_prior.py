"""A prior between two embedding spaces whose samples are known, in place of a trained one."""

import dataclasses
from collections.abc import Callable

import jax
import numpy as np

from tests.stages import tiny
from unclip_jax.handoff.manifest import Manifest
from unclip_jax.inference.embedding_prior import EmbeddingPriorModel, conditions_of
from unclip_jax.pairs.config import PairsConfig
from unclip_jax.pairs.matching import open_pairs
from unclip_jax.stages import embedding_prior, pair_inputs
from unclip_jax.stages.embedding_prior_config import resolve_fields


@dataclasses.dataclass(frozen=True)
class KnownModel(EmbeddingPriorModel):
    """A model whose samples are a function of the conditions of a row.

    Attributes:
        function: (batch fields, num) -> samples.
    """

    function: Callable = lambda fields, num: None

    def sample_blocks(self, x, *, num=1, **_):
        fields, count = conditions_of(self.cfg, x)
        samples = np.asarray(self.function(fields, num), np.float32)
        yield from (samples[i : i + 4] for i in range(0, count, 4))


def model_of(data: PairsConfig, function: Callable, **changes) -> KnownModel:
    """A model with the ridge regression of the training pairs of `data`."""
    pairs = open_pairs(data)
    cfg = dataclasses.replace(tiny.experiment("embedding_prior").model, scaling="raw", **changes)
    cfg = resolve_fields(cfg, pairs.fields())
    if changes:
        cfg = dataclasses.replace(cfg, encoder=changes["encoder"])
    source = pairs.open_split("train", embedding_prior.batch_spec(cfg))
    params = jax.tree.map(np.asarray, pair_inputs.fit(cfg, source.blocks).params)
    card = Manifest(
        stage="embedding_prior",
        size="tiny",
        step=1,
        config={},
        inputs={"data": source.digest},
    )
    return KnownModel(cfg, params, card, function)
