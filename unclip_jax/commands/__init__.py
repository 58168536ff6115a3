"""commands: what `python -m unclip_jax.sample` can do besides drawing captions, one module each.

What lives here: reading pictures, running the pipeline in batches (studio.py), arguments, and
writing results so that they can be made again. What doesn't: mathematics, which is in `diffusion`
and `pipeline`. Start at menu.py, then studio.py.
"""

MAY_IMPORT: tuple[str, ...] = ("core", "data", "diffusion", "handoff", "pipeline", "stages")
