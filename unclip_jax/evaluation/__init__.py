"""evaluation: scores of image sets and of cascades, as a library.

Opens sets of images, extracts features, compares two sets, samples large sets, sweeps the sampling
of a decoder, runs COCO's protocol and prompt files, and compares two models by the answers of
raters. Every evaluation is a function of a frozen config; flags are parsed in `evaluate.py`.
Formulas are in `metrics`; `inference` and `engine` sample; `serving` has the page for raters. Start
at cascade.py, then image_sets.py; for comparisons, at comparison.py.
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
