"""core: the vocabulary that every room shares.

Array aliases, errors, typed configs, named randomness, trees and batches. Nothing here knows
about diffusion, networks, files or devices. Start at checks.py and batch.py.
"""

MAY_IMPORT: tuple[str, ...] = ()
