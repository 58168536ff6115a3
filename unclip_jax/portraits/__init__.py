"""portraits: the second procedural world, flat cartoon portraits, as pure functions.

Contains the vocabulary (parts, palettes, held-out pairs), the dataclasses of portraits and of the
content of captions, the grammar of captions in both directions, the artwork, which is this
project's own and drawn by code, and the NumPy renderer. Everything depends only on (split, seed,
index), without files and JAX. PNG encoding and data sets are in `data.portraits`, the checker is
`metrics.portraits_checker`. Start at vocabulary.py, then scene.py, then world.py.
"""

MAY_IMPORT: tuple[str, ...] = ("core",)
