"""metrics: image quality, with the protocol and the uncertainty beside every figure.

Holds confidence intervals, the exact checker of the shapes world, feature extractors, distances and
scores on features, PSNR, and guided-diffusion's .npz files. Sets of images and commands are in
`evaluation`. Start at report.py, then extractors.py; for the checker at shapes_checker.py.
"""

MAY_IMPORT: tuple[str, ...] = ("core", "models", "shapes")
