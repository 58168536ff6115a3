"""Pages partly written by programs: tables between two marks, and all figures as JSON."""

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
    """Formats a value with its interval; a dash if it is undefined (None, after JSON)."""
    if estimate["value"] is None:
        return "–"
    value, low, high = (number(estimate[name], digits) for name in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def number(value: float | None, digits: int = 2) -> str:
    """Formats a number with a fixed number of digits, zero without a sign; None as a dash."""
    return "–" if value is None else f"{round(value, digits) + 0.0:.{digits}f}"


def cell(value: Mapping[str, float | None] | float | None) -> str:
    """Formats a value with its interval, or a single number with three digits."""
    return interval(value) if isinstance(value, Mapping) else number(value, 3)


def check_path(out: pathlib.Path) -> None:
    """Checks that `out` can be the path of a page.

    Raises:
        UserError: it does not end in .md, or its folder does not exist.
    """
    if out.suffix != ".md":
        raise UserError(f"--out is {str(out)!r}; give a name that ends in .md.")
    if not out.absolute().parent.is_dir():
        raise UserError(f"--out is {str(out)!r}, but there is no such folder; create it first.")


def split(out: pathlib.Path, *, title: str) -> tuple[str, str]:
    """Returns the text before and after the tables of a page; of a new page, the title.

    Raises:
        UserError: the page cannot be read, or lacks the marks around the tables.
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
        UserError: the file is not JSON.
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
        UserError: the file cannot be written.
    """
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; give another place.") from None
