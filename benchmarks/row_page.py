"""The command line of pages that are measured row by row: --out, --only, --again."""

import argparse
import pathlib
from collections.abc import Sequence
from typing import Any

from unclip_jax.cli.parser import Parser
from unclip_jax.core.checks import UserError


def parse(
    argv: Sequence[str], *, prog: str, description: str, out: str, example: str
) -> argparse.Namespace:
    """Parses the arguments of a page.

    Raises:
        UserError: the name of the page does not end in .md.
    """
    parser = Parser(prog, prog=f"python -m {prog}", description=description)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path(out))
    parser.add_argument("--only", default="", help=f"part of a row's name, such as '{example}'")
    parser.add_argument("--again", action="store_true", help="measure rows that exist again")
    args = parser.parse_args(argv)
    if args.out.suffix != ".md":
        raise UserError(f"--out is {str(args.out)!r}; give a name that ends in .md.")
    return args


def select(rows: Sequence[Any], only: str) -> list[Any]:
    """Returns the rows whose names contain `only`.

    Raises:
        UserError: no name contains it.
    """
    selected = [row for row in rows if only in row.name]
    if not selected:
        raise UserError(
            f"--only is {only!r}; it must be part of one of: {', '.join(row.name for row in rows)}."
        )
    return selected
