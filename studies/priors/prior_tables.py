"""The page that `studies.priors` fills in: two Markdown tables, and all figures as JSON."""

import pathlib
from typing import Any

from benchmarks import markdown_page
from benchmarks.markdown_page import rate, table
from unclip_jax.metrics.shapes_checker import SUMMARY

TITLE = "# Where z_img comes from\n\nMade by `python -m studies.priors`: see docs/priors.md.\n\n"


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
        names = [name for name in SUMMARY if all(name in row["checker"] for row in rows)]
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


def around(out: pathlib.Path) -> tuple[str, str]:
    """`page.around`, with this page's title."""
    return markdown_page.around(out, title=TITLE)


def write(out: pathlib.Path, text: str, result: dict[str, Any]) -> None:
    """`page.write`, with this page's title."""
    markdown_page.write(out, text, result, title=TITLE)
