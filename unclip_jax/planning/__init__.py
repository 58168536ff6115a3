"""planning: what a program would need and cost on devices that need not be there.

Compiles the real train step or sampling function ahead of time, reads the compiled text, and sets
what it finds against the published peaks of a chip. Nothing here runs a program, so every time is a
model and says so. Start at plan_report.py, then hlo.py.
"""

MAY_IMPORT: tuple[str, ...] = ("core", "parallel", "stages", "training")
