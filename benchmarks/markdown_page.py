"""Pages of which a benchmark writes a part: tables between two marks, all figures as JSON."""

import argparse
import json
import pathlib
from collections.abc import Sequence
from typing import Any

from unclip_jax.core.checks import UserError

BEGIN, END = "<!-- tables: begin -->", "<!-- tables: end -->"


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def rate(found: dict[str, float]) -> str:
    """A value with its interval."""
    return f"{found['value']:.2f} [{found['low']:.2f}, {found['high']:.2f}]"


def around(out: pathlib.Path, *, title: str) -> tuple[str, str]:
    """What stands before and after the tables in `out`; the title, if it is not there yet.

    Raises:
        UserError: it cannot be read, or has no marks between which the tables go.
    """
    if not out.exists():
        return title, "\n"
    try:
        known = out.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {out}: {error}; give another --out.") from None
    if BEGIN not in known or END not in known:
        raise UserError(f"{out} has no lines {BEGIN} and {END}; add them, or name a new file.")
    return known.split(BEGIN)[0], known.split(END)[1]


def write(out: pathlib.Path, page: str, result: Any, *, title: str) -> None:
    """Write the tables between the marks of `out`, or all of it, and the JSON beside it.

    Raises:
        UserError: the place cannot be written, or see `around`.
    """
    before, after = around(out, title=title)
    save(out, f"{before}{BEGIN}\n\n{page}\n{END}{after}")
    save(out.with_suffix(".json"), json.dumps(result, indent=1) + "\n")


def read(path: pathlib.Path) -> dict[str, Any]:
    """The rows that a JSON file holds; none if there is no file.

    Raises:
        UserError: it is no JSON.
    """
    if not path.exists():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}); move it away.") from None


def parse(
    argv: Sequence[str], *, prog: str, description: str, out: str, example: str
) -> argparse.Namespace:
    """Arguments of a page that is made row by row: --out, --only, --again.

    Raises:
        UserError: a page of another kind.
    """
    parser = argparse.ArgumentParser(prog=f"python -m {prog}", description=description)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path(out))
    parser.add_argument("--only", default="", help=f"part of a row's name, such as '{example}'")
    parser.add_argument("--again", action="store_true", help="make rows that are there already too")
    args = parser.parse_args(argv)
    if args.out.suffix != ".md":
        raise UserError(f"--out is {str(args.out)!r}; give a name that ends in .md.")
    return args


def chosen(rows: Sequence[Any], only: str) -> list[Any]:
    """The rows, each with a name, whose names hold `only`.

    Raises:
        UserError: there are none.
    """
    wanted = [row for row in rows if only in row.name]
    if not wanted:
        raise UserError(
            f"--only is {only!r}; it must be part of one of: {', '.join(row.name for row in rows)}."
        )
    return wanted


def save(path: pathlib.Path, text: str) -> None:
    """Write a file.

    Raises:
        UserError: it cannot be written.
    """
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; give another place.") from None
