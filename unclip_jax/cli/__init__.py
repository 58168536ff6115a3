"""cli: from command lines to requests, and from results to files.

Holds the argument parser (parser.py) and flags that several commands share, the subcommands of
`sample`, output files, and the exit of a command (entry.py). Sampling itself is in `inference`,
which knows no flags. Start at subcommands.py.
"""

MAY_IMPORT: tuple[str, ...] = (
    "core",
    "data",
    "diffusion",
    "experiment",
    "handoff",
    "inference",
    "metrics",
    "parallel",
    "stages",
)
