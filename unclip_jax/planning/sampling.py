"""The sampling function of any stage with one signature, and the shapes that it takes."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from unclip_jax.conditioning import captions
from unclip_jax.core import batch as batches
from unclip_jax.stages import registry

SampleFunction = Callable[[Any, Any], Any]


def function(stage: str, config: Any, *, batch_size: int) -> tuple[SampleFunction, dict[str, Any]]:
    """Returns a stage's (params, inputs) -> samples, and its inputs as ShapeDtypeStructs.

    Raises:
        UserError: a stage that generates nothing.
    """
    entry = registry.generator_entry(stage)

    def sample(params: Any, inputs: dict[str, Any]) -> Any:
        fields = {name: value for name, value in inputs.items() if name != "keys"}
        outputs = entry.sample(
            config,
            params,
            captions.conditions(fields),
            keys=inputs["keys"],
            sampling=_without_table(getattr(config, "sampling", None)),
        )
        return outputs[entry.yields[0]]

    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), batch_size))
    return sample, {**batches.abstract(entry.sample_spec(config), batch_size), "keys": keys}


def _without_table(sampling: Any) -> Any:
    """Returns sampling that costs the same without the table that is measured after training."""
    needs_table = getattr(sampling, "needs_table", False)
    return dataclasses.replace(sampling, variance="small") if needs_table else sampling
