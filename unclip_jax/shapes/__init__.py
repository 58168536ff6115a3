"""shapes: the procedural captioned world, as pure functions of words and numbers.

What lives here: the vocabulary (palette, shapes, relations, held-out pairs), the scene and request
records, the grammar of captions (both directions), the layout that places objects, and the NumPy
renderer. Everything depends on (split, seed, index) only and nothing touches a file or JAX, so
that `data` may store scenes and `metrics` may judge pictures of them without knowing each other.
What doesn't: PNG encoding and data sets (`data.shapes`), the checker (`metrics.shapes_checker`).
Start at vocabulary.py, then scene.py, then world.py.
"""

MAY_IMPORT: tuple[str, ...] = ("core",)
