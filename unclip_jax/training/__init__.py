"""training: one loop for every stage.

The loop receives a stage as a record of pure functions and never names one. The step (step.py) and
the state (state.py) are pure; loop.py, checkpoint.py, hooks.py and prefetch.py do the I/O. Start at
step.py, then loop.py. Networks, data and exports are the subject of other packages.
"""

MAY_IMPORT: tuple[str, ...] = ("core", "parallel")
