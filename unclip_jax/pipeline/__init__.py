"""pipeline: trained stages composed at inference.

Pure functions from tokens and keys to images, so that one `jax.jit` covers a whole stage or the
whole chain; models.py loads them from a run directory. Nothing here trains. Start at
text_to_image.py.
"""

MAY_IMPORT: tuple[str, ...] = ("core", "diffusion", "models", "stages", "handoff")
