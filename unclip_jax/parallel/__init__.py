"""parallel: which device holds which part of an array.

Logical axis names, meshes, the table from names to mesh axes, placement. Nothing here knows what a
network computes; `models` imports axes.py alone. Start at axes.py (names), then rules.py.
"""

MAY_IMPORT: tuple[str, ...] = ("core",)
