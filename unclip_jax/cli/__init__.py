"""cli: from command lines to requests, and from results to files.

Holds the argument parser (parser.py), flags that several commands share, the flags of requests,
which are derived from their fields (request_flags.py, request_command.py), and the exit of a
command (entry.py). Sampling itself is in `engine`, which knows no flags. Start at
request_command.py.
"""

MAY_IMPORT: tuple[str, ...] = (
    "convert",
    "core",
    "data",
    "engine",
    "experiment",
    "handoff",
    "inference",
    "parallel",
)
