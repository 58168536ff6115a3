"""metrics: how good pictures are, with the protocol and the uncertainty beside every figure.

What lives here: intervals for proportions, exact checkers for the shapes world, and measures on
image features. What doesn't: sampling (`pipeline`) and the command that ties both together
(`evaluate.py`). Start at shapes_checker.py.
"""

MAY_IMPORT: tuple[str, ...] = ("core", "models", "shapes")
