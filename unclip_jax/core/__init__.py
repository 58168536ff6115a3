"""core: what all packages share.

Array aliases, errors, typed configs, named randomness, trees, batches and the interface of a stage.
Nothing here depends on diffusion, networks or devices. Start at checks.py and batch.py.
"""

MAY_IMPORT: tuple[str, ...] = ()
