"""shapes: the procedural captioned world, as pure functions of words and numbers.

Holds the vocabulary (palette, shapes, relations, held-out pairs), the records of scenes and of what
captions say, the grammar of captions in both directions, the layout of objects and the NumPy
renderer. All of it depends on (split, seed, index) alone, without files and JAX. PNG encoding and
data sets are in `data.shapes`, the checker is `metrics.shapes_checker`.
Start at vocabulary.py, then scene.py, then world.py.
"""

MAY_IMPORT: tuple[str, ...] = ("core",)
