"""inference: trained stages composed to sample and edit images; a library without flags.

Everything that one can ask for is a dataclass (requests.py, whose fields fields.py describes); the
engine (engine.py, batch_runner.py) loads a cascade and runs it (runs/) to a result (result.py).
Below lie loading (load.py), the cascade as one pure function (text_to_image.py) in batches
(batched.py) or one stage at a time (offload.py), latents and their edits (latents.py, edits.py),
and single-file exports of the sampler (export.py, exported.py). Start at requests.py, then
text_to_image.py and engine.py.
"""

MAY_IMPORT: tuple[str, ...] = (
    "convert",
    "core",
    "data",
    "diffusion",
    "handoff",
    "metrics",
    "models",
    "parallel",
    "stages",
)
