"""cli: parses command lines to requests, and writes results to files.

Contains the argument parser (parser.py), flags that several commands share, the flags of requests,
which are derived from their fields (request_flags.py, request_command.py), and exit statuses
(entry.py). Sampling itself is in `engine`, which has no flags. Start at
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
