"""shapes: the procedural captioned world, as pure functions of words and numbers.

Contains the vocabulary (palette, shapes, relations, held-out pairs), the dataclasses of scenes and
of the content of captions, the grammar of captions in both directions, the layout of objects and
the NumPy renderer. Everything depends only on (split, seed, index), without files and JAX. PNG
encoding and data sets are in `data.shapes`, the checker is `metrics.shapes_checker`. Start at
vocabulary.py, then scene.py, then world.py.
"""

MAY_IMPORT: tuple[str, ...] = ("core",)
