"""inference: trained stages composed to sample and edit images; a library without flags.

Loads a cascade from a run directory (load.py), samples it as one pure function
(text_to_image.py) in batches (batched.py) or one stage at a time (offload.py), encodes images to
latents and edits them (latents.py, edits.py), and serves all of it from one object (engine.py).
Writes and runs single-file exports of the sampler (export.py, exported.py). Start at
text_to_image.py, then engine.py.
"""

MAY_IMPORT: tuple[str, ...] = (
    "core",
    "data",
    "diffusion",
    "handoff",
    "models",
    "parallel",
    "stages",
)
