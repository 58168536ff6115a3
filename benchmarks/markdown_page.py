"""Pages of which a program writes a part: tables between two marks, all figures as JSON."""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from unclip_jax.core.checks import UserError

BEGIN, END = "<!-- tables: begin -->", "<!-- tables: end -->"


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Formats a Markdown table."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def interval(estimate: Mapping[str, float | None], *, digits: int = 2) -> str:
    """Formats a value with its interval; a dash where it is not defined (None, after JSON)."""
    if estimate["value"] is None:
        return "–"
    value, low, high = (number(estimate[name], digits) for name in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def number(value: float | None, digits: int = 2) -> str:
    """Formats a number with a fixed number of digits, zero without a sign; None as a dash."""
    return "–" if value is None else f"{round(value, digits) + 0.0:.{digits}f}"


def cell(value: Mapping[str, float | None] | float | None) -> str:
    """Formats a value with its interval, or a number without one by three digits."""
    return interval(value) if isinstance(value, Mapping) else number(value, 3)


def check_path(out: pathlib.Path) -> None:
    """Checks that `out` can be the path of a page.

    Raises:
        UserError: it does not end in .md, or its folder does not exist.
    """
    if out.suffix != ".md":
        raise UserError(f"--out is {str(out)!r}; give a name that ends in .md.")
    if not out.absolute().parent.is_dir():
        raise UserError(f"--out is {str(out)!r}, but there is no such folder; make it first.")


def split(out: pathlib.Path, *, title: str) -> tuple[str, str]:
    """Returns the text before and after the tables of a page; the title, if there is no page.

    Raises:
        UserError: it cannot be read, or has no marks between which the tables go.
    """
    if not out.exists():
        return title, "\n"
    try:
        text = out.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {out}: {error}; give another --out.") from None
    if BEGIN not in text or END not in text:
        raise UserError(f"{out} has no lines {BEGIN} and {END}; add them, or name a new file.")
    return text.split(BEGIN)[0], text.split(END)[1]


def write(out: pathlib.Path, tables: str, result: Any, *, title: str) -> None:
    """Writes the tables between the marks of `out`, or a new page, and the JSON beside it.

    Raises:
        UserError: a file cannot be written, or see `split`.
    """
    before, after = split(out, title=title)
    save(out, f"{before}{BEGIN}\n\n{tables}\n{END}{after}")
    save(out.with_suffix(".json"), json.dumps(result, indent=1) + "\n")


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """Reads the results beside a page; {} if there is no file.

    Raises:
        UserError: it is not JSON.
    """
    if not path.exists():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}); move it away.") from None


def save(path: pathlib.Path, text: str) -> None:
    """Writes a file.

    Raises:
        UserError: it cannot be written.
    """
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; give another place.") from None
