"""The cascade with one stage on the device at a time, for devices that cannot hold all of them.

Every stage is read, run on all batches and released before the next is read. Images are those of
`text_to_image.sample` up to rounding: both run the same functions on the same keys.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import UInt8

from unclip_jax.core.checks import UserError
from unclip_jax.core.picture import to_uint8
from unclip_jax.core.types import Embedding, Keys, Params
from unclip_jax.inference import text_to_image
from unclip_jax.inference.cascade import Captions, PlannedStage, plan
from unclip_jax.inference.compiled_function import low_memory_options
from unclip_jax.inference.load import CascadeFiles
from unclip_jax.inference.text_to_image import SampleOptions


class SampleBatch(NamedTuple):
    """A batch to sample.

    Attributes:
        captions: token ids by name of the stage that reads them.
        keys: one key per image.
        z_img: image embeddings, for condition "z_img".
    """

    captions: Captions
    keys: Keys
    z_img: Embedding | None = None


def sample(
    files: CascadeFiles,
    batches: Sequence[SampleBatch],
    *,
    options: SampleOptions,
    begin: Callable[[str], None] = lambda name: None,
) -> list[UInt8[np.ndarray, " b h w 3"]]:
    """Samples one image per caption; batches of one shape are compiled once.

    Args:
        files: the cascade, not yet loaded; it runs on this process's first device.
        batches: captions and keys.
        options: overrides of the exported sampling settings.
        begin: called with the name of every stage before it is read.

    Raises:
        UserError: `best_of` is above 1, which needs CLIP in memory beside the other stages.
    """
    if options.best_of > 1:
        raise UserError(
            f"best_of is {options.best_of}, but one stage at a time samples one image per caption; "
            "use 1, or load the whole cascade."
        )
    steps = plan(files.cascade, condition=options.condition)
    values = [
        text_to_image.first_values(files.cascade, options, z_img=batch.z_img) for batch in batches
    ]
    for number, step in enumerate(steps):
        begin(step.stage.name)
        later = {value for other in steps[number:] for value in other.inputs.values()}
        outputs = _run(files, step, batches, values, options=options)
        values = [
            {name: value for name, value in {**old, **new}.items() if name in later | set(new)}
            for old, new in zip(values, outputs, strict=True)
        ]
    return [np.asarray(to_uint8(value["image"])) for value in values]


def _run(
    files: CascadeFiles,
    step: PlannedStage,
    batches: Sequence[SampleBatch],
    values: Sequence[dict[str, Any]],
    *,
    options: SampleOptions,
) -> list[dict[str, Any]]:
    """Runs one stage on all batches; its parameters are released on return."""

    def run(params: Params, inputs: dict[str, Any], captions: Captions, keys: Keys):
        return text_to_image.run(
            files.cascade, params, step, inputs, captions, keys, options=options
        )

    name = step.stage.name
    params, compiled = files.readers[name](), jax.jit(run, compiler_options=low_memory_options())
    outputs = []
    for batch, before in zip(batches, values, strict=True):
        inputs = {value: before[value] for value in step.inputs.values()}
        captions = {key: ids for key, ids in batch.captions.items() if key == name}
        outputs.append(compiled(params, inputs, captions, batch.keys))
    return jax.block_until_ready(outputs)
