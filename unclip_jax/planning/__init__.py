"""planning: estimates of memory, FLOPs, traffic and time on devices that need not be present.

Compiles the real train step or sampling function ahead of time, reads the compiled text, and
compares its work with the published peaks of a chip. Nothing here runs a program, so every time is
an estimate and is labelled as one. Start at plan_report.py, then hlo.py.
"""

MAY_IMPORT: tuple[str, ...] = (
    "conditioning",
    "core",
    "experiment",
    "parallel",
    "stages",
    "training",
)
