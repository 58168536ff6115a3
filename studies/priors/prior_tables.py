"""The tables of the comparison of priors, as Markdown."""

from typing import Any

from benchmarks.markdown_page import interval, table
from unclip_jax.metrics.worlds import SUMMARY

TITLE = (
    "# Comparison of the priors\n\nWritten by `python -m studies.priors`: see docs/priors.md.\n\n"
)


def tables(result: dict[str, Any]) -> str:
    """Formats both tables, after a line about the protocol."""
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
        cells = [[row["name"], *(interval(row["checker"][name]) for name in names)] for row in rows]
        text += f"\nImages of the first {result['num']}, by the exact checker:\n\n"
        text += table(("z_img from", *names), cells)
    return text


def embedding_cells(row: dict[str, Any]) -> list[str]:
    """Formats one row of the first table."""
    scores = row["embeddings"]
    rates = [interval(scores[name]) for name in ("cosine_image", "finds_image", "finds_caption")]
    cost = ["", ""]
    if "seconds" in row:
        cost = [f"{1e3 * row['seconds']:.3g}", f"{row['flops'] / 1e9:.3g}"]
    return [row["name"], *rates, f"{scores['frechet']:.4f}", *cost]
