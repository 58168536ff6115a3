"""metrics: how good pictures are, with the protocol and the uncertainty beside every figure.

What lives here: intervals for proportions, exact checkers for the shapes world, feature extractors
and the distances and scores on features, guided-diffusion's .npz files. What doesn't: sampling
(`pipeline`), and sets of pictures and commands (`evaluation`). Start at report.py, then
extractors.py; for the checkers at shapes_checker.py.
"""

MAY_IMPORT: tuple[str, ...] = ("core", "models", "shapes")
