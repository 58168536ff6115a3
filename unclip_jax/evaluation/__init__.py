"""evaluation: sets of pictures scored against each other, and sweeps: subcommands of `evaluate`.

What lives here: opening sets of pictures, running a feature extractor over them, comparing two
sets, sweeping how a cascade samples, COCO's protocol, prompts by category, plots. What doesn't: the
formulas, which are in `metrics`, and drawing, which is handed in by `evaluate.py`. Start at
sets.py, then sweep.py.
"""

MAY_IMPORT: tuple[str, ...] = (
    "core",
    "commands",
    "convert",
    "data",
    "handoff",
    "metrics",
    "parallel",
    "pipeline",
    "stages",
)
