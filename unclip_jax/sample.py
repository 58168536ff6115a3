"""Samples images for captions with a trained cascade, or edits images.

    python -m unclip_jax.sample --models=runs/shapes "a red circle above a blue square"
    python -m unclip_jax.sample interpolate --models=runs/shapes one.png other.png

Writes a labelled grid, the single images beside it, and a JSON with everything needed to repeat the
request (`python -m unclip_jax.sample repeat NAME.json`). Image i depends on (seed, i) alone. The
first form is the command `text`, which has to be named when the first caption is the name of a
command. Flags are the fields of the requests in `engine/requests.py`.
"""

import sys
from collections.abc import Sequence

from unclip_jax.cli import entry, process_flags, request_command
from unclip_jax.cli.parser import Parser


def parser() -> Parser:
    """Returns the parser of the command without a subcommand, which is that of `text`."""
    return request_command.parser()


def subparsers() -> dict[str, Parser]:
    """Returns the parsers of the subcommands."""
    return request_command.parsers()


def main(argv: Sequence[str]) -> None:
    """Parses, runs and saves one request."""
    command, arguments = request_command.choose(argv)
    args = request_command.parser(command).parse_args(arguments)
    request, setting = request_command.parse(command, args)
    process_flags.start_alike(args)
    request_command.run(request, setting)


if __name__ == "__main__":
    entry.run(lambda: main(sys.argv[1:]))
