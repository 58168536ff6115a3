"""training: one loop for every stage.

The loop receives a stage as a dataclass of pure functions and depends on none in particular. The
step (step.py) and the state (state.py) are pure; loop.py, checkpoint.py, hooks.py and prefetch.py
do the I/O. Start at step.py, then loop.py. Networks, data and exports are in other packages.
"""

MAY_IMPORT: tuple[str, ...] = ("core", "parallel")
