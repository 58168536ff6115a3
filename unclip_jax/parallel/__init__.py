"""parallel: the placement of arrays on devices, and several processes as one program.

Holds logical axis names (axes.py), meshes, the table from names to mesh axes (rules.py), placement
of arrays, connection of processes (cluster.py) and agreement among them (multihost.py). Nothing
here knows a network; `models` imports axes.py alone. Start at axes.py, then rules.py.
"""

MAY_IMPORT: tuple[str, ...] = ("core",)
