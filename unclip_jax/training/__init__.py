"""training: the one loop that trains every stage.

It receives a stage as a record of pure functions and never names one. The step (step.py) and the
state (state.py) are pure; loop.py, checkpoint.py, hooks.py and prefetch.py do the I/O. Start at
step.py, then loop.py. What a network computes, where data come from and what becomes of the
result are other rooms' business.
"""

MAY_IMPORT: tuple[str, ...] = ("core", "parallel")
