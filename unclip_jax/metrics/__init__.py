"""metrics: image quality; every score comes with its protocol and uncertainty.

Contains confidence intervals, the exact checkers of the worlds, feature extractors with FID's
Inception, distances and scores of features, PSNR, and guided-diffusion's .npz files. Sets of images
and commands are in `evaluation`. Start at report.py, then extractors.py; for the checkers at
worlds.py.
"""

MAY_IMPORT: tuple[str, ...] = ("core", "models", "portraits", "shapes", "weight_files")
