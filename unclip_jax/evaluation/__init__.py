"""evaluation: scores of image sets and of cascades, as a library.

Opens sets of images, extracts features, compares two sets, samples large sets, sweeps the sampling
of a decoder, and runs COCO's protocol and prompt files. Every evaluation is a function of a frozen
config; flags are parsed in `evaluate.py`. Formulas are in `metrics`; `inference`
and `engine` sample. Start at cascade.py, then image_sets.py.
"""

MAY_IMPORT: tuple[str, ...] = (
    "core",
    "data",
    "discrete",
    "engine",
    "handoff",
    "inference",
    "metrics",
    "objectives",
    "pairs",
    "parallel",
    "preparation",
    "stages",
)
