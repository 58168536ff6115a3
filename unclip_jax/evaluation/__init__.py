"""evaluation: scores of image sets and of cascades.

Opens sets of images, extracts features, compares two sets, sweeps the sampling of a cascade, and
runs COCO's protocol and prompt files. Formulas are in `metrics`, sampling is in `inference`. Start
at sets.py, then cascade.py.
"""

MAY_IMPORT: tuple[str, ...] = (
    "cli",
    "convert",
    "core",
    "data",
    "handoff",
    "inference",
    "metrics",
    "parallel",
    "stages",
)
