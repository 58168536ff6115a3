"""The page that `benchmarks.priors` fills in: two Markdown tables, and all figures as JSON."""

import json
import pathlib
from collections.abc import Sequence
from typing import Any

from unclip_jax.core.checks import UserError
from unclip_jax.evaluate import SHOWN

TITLE = "# Where z_img comes from\n\nMade by `python -m benchmarks.priors`: see docs/priors.md.\n\n"
BEGIN, END = "<!-- tables: begin -->", "<!-- tables: end -->"


def tables(result: dict[str, Any]) -> str:
    """Both tables as Markdown, and a line that says what they hold."""
    rows = result["rows"]
    text = (
        f"{result['embeddings']} captions of `{result['split']}` ({result['date']}, "
        f"{result['device']}, {result['batch']} captions at once); 95 % intervals.\n\n"
    )
    heads = ("z_img from", "cosine to the true z_img", f"finds its image among {result['group']}")
    heads += ("finds its caption", "Fréchet distance", "ms", "GFLOPs")
    text += table(heads, [embedding_cells(row) for row in rows])
    if "checker" in rows[0]:
        names = [name for name in SHOWN if all(name in row["checker"] for row in rows)]
        cells = [[row["name"], *(rate(row["checker"][name]) for name in names)] for row in rows]
        text += f"\nPictures of the first {result['num']}, by the exact checker:\n\n"
        text += table(("z_img from", *names), cells)
    return text


def embedding_cells(row: dict[str, Any]) -> list[str]:
    """One row of the first table."""
    found = row["embeddings"]
    shown = ("cosine_image", "finds_image", "finds_caption")
    cost = ["", ""]
    if "seconds" in row:
        cost = [f"{1e3 * row['seconds']:.3g}", f"{row['flops'] / 1e9:.3g}"]
    rates = [rate(found[name]) for name in shown]
    return [row["name"], *rates, f"{found['frechet']:.4f}", *cost]


def rate(found: dict[str, float]) -> str:
    """A value with its interval."""
    return f"{found['value']:.2f} [{found['low']:.2f}, {found['high']:.2f}]"


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def around(out: pathlib.Path, *, title: str = TITLE) -> tuple[str, str]:
    """What stands before and after the tables in `out`; `title`, if it is not there yet.

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


def write(out: pathlib.Path, page: str, result: dict[str, Any], *, title: str = TITLE) -> None:
    """Write the tables between the marks of `out`, or all of it, and the JSON beside it.

    Raises:
        UserError: the place cannot be written, or see `around`.
    """
    before, after = around(out, title=title)
    try:
        out.write_text(f"{before}{BEGIN}\n\n{page}\n{END}{after}", encoding="utf-8")
        out.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror}; give another --out.") from None
