"""The report: one row per finding with its verdict, then a table and a figure for each."""

import json
import pathlib
import textwrap
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

from benchmarks.markdown_page import table
from studies import statistics
from studies.findings import charts
from unclip_jax.core.checks import UserError

WIDTH = 100  # columns of the page
WORDS = {
    statistics.AGREE: "agrees",
    statistics.NOT: "**does not**",
    statistics.UNDECIDED: "undecided",
}
FACTS = ("name", "line", "note", "guidance", "components", "steps")  # entries of rows, not columns
INTRODUCTION = """# Tests of the paper's claims in miniature

This page tests claims of *Hierarchical Text-Conditional Image Generation with CLIP Latents* in a
procedural world, whose exact checker evaluates every image. The paper makes these claims for models
that are some thousand times as large and trained on photographs. A claim that does not hold here
may well hold there.
"""
RULES = """Each claim is about one or several differences. It

- *agrees* if the 95 % interval of every difference lies on the claimed side of zero (or of the
  stated margin),
- *does not* if one interval lies entirely on the other side, and
- is *undecided* otherwise.

Intervals are bootstrapped over captions. All systems sample the same captions from the same noise.
Every stage was trained once, so the intervals do not include the variation between training seeds.
"""


def markdown(
    report: Mapping[str, Any],
    findings: Mapping[str, ModuleType],
    *,
    plots: str,
    introduction: str = INTRODUCTION,
    describe: Callable[[Mapping[str, Any]], str] | None = None,
) -> str:
    """Formats the whole page.

    Args:
        report: facts, baselines and results, by name.
        findings: all modules, by name.
        plots: folder of the figures, relative to the page.
        introduction: title and first paragraphs, before the `RULES` of verdicts.
        describe: formats models and sizes from the report; None = as for this study.
    """
    measured = report["findings"]
    protocol = _protocol(report, (describe or models_and_sizes)(report))
    parts = [introduction, RULES, protocol, "## Verdicts\n", _verdicts(measured, findings)]
    missing = [f"{module.TITLE} (`{n}`)" for n, module in findings.items() if n not in measured]
    if missing:
        parts.append(f"Not measured yet: {', '.join(missing)}. The same command adds them.\n")
    for name, module in findings.items():
        if name in measured:
            parts.append(_finding(measured[name], module, figure=f"{plots}/{name}.png"))
    return "\n".join(parts)


def write(
    out: pathlib.Path,
    report: dict[str, Any],
    findings: Mapping[str, ModuleType],
    **options: Any,
) -> None:
    """Writes the page, its JSON beside it, and a folder of figures.

    `options` are keyword arguments of `markdown`.

    Raises:
        UserError: a file cannot be written.
    """
    folder = out.with_suffix("")
    try:
        folder.mkdir(exist_ok=True)
        for name, finding in report["findings"].items():
            if finding["rows"]:
                charts.plot(findings[name].CHART, finding["rows"], folder / f"{name}.png")
        page = markdown(report, findings, plots=folder.name, **options)
        out.write_text(page, encoding="utf-8")
        text = json.dumps(report, indent=1, ensure_ascii=False) + "\n"
        out.with_suffix(".json").write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror}; give another --out.") from None


def models_and_sizes(report: Mapping[str, Any]) -> str:
    """Formats the training lengths of the compared stages."""
    lengths = report["facts"]["lengths"]
    return (
        f"The models' own decoder has {lengths['decoder']} steps, their prior {lengths['prior']}. "
        "Compared stages are trained for equally many steps, except the autoregressive prior, "
        "whose steps are in the table: where a baseline is shorter than the models' own stage, it "
        "is compared with another one of its own length."
    )


def _protocol(report: Mapping[str, Any], models: str) -> str:
    """Formats command, date, cost and protocol."""
    facts, baselines = report["facts"], report["baselines"]
    training = sum(entry["minutes"] or 0.0 for entry in baselines)
    measuring = sum(entry["minutes"] for entry in report["findings"].values())
    text = (
        f"{facts['date']}, {facts['device']}, JAX {facts['jax']}: {training:.0f} minutes of "
        f"training, {measuring:.0f} of sampling and scoring. {facts['num']} captions of "
        f"`{facts['split']}`, {facts['images']} images of each, seed {facts['seed']}. {models}"
    )
    rows = [
        [entry["name"], entry["about"], str(entry["steps"]), _minutes(entry["minutes"])]
        for entry in baselines
    ]
    command = f"```bash\n{facts['command']}\n```\n"
    note = f"\n{_fill(facts['note'])}\n" if facts["note"] else ""
    baseline_table = table(("baseline", "what it is", "steps", "minutes"), rows) if rows else ""
    return f"{command}\n{_fill(text)}\n{note}\n{baseline_table}"


def _verdicts(measured: Mapping[str, Any], findings: Mapping[str, ModuleType]) -> str:
    rows = []
    for name, module in findings.items():
        if name not in measured:
            continue
        result = "; ".join(map(_test, measured[name]["tests"])) or measured[name].get("note", "")
        claim = f"{module.CLAIM} ({module.SOURCE})"
        rows.append([module.TITLE, claim, result, WORDS[statistics.verdict_of(measured[name])]])
    return table(("finding", "the paper's claim", "ours, with 95 % intervals", "verdict"), rows)


def _test(test: Mapping[str, Any]) -> str:
    margin = f" (agrees above −{test['margin']:g})" if test["margin"] else ""
    few = "" if test["captions"] >= statistics.FEWEST else f", too few: {test['captions']}"
    return f"{test['name']}: {_cell(test)}{margin}{few}"


def _finding(finding: Mapping[str, Any], module: ModuleType, *, figure: str) -> str:
    lines = [f"## {module.TITLE}\n"]
    about = f"{module.ABOUT} It took {finding['minutes']:.1f} minutes."
    lines.append(f"{_fill(about)}\n")
    if finding.get("note"):
        lines.append(f"{_fill(finding['note'])}\n")
    rows = finding["rows"]
    if rows:
        lines.append(f"![{module.TITLE}]({figure})\n")
        names = dict.fromkeys(n for row in rows for n in row if n not in FACTS)
        cells = [[row["name"], *(_cell(row.get(n)) for n in names)] for row in rows]
        lines.append(table(("", *names), cells))
    return "\n".join(lines)


def _cell(value: Any) -> str:
    if isinstance(value, Mapping):
        if value["value"] is None:
            return "–"
        small = max(abs(value[n]) for n in ("value", "low", "high")) < 0.1
        form = "{:.4f}" if small else "{:.2f}"
        return f"{form} [{form}, {form}]".format(value["value"], value["low"], value["high"])
    if isinstance(value, float):
        return f"{value:.4f}" if abs(value) < 0.1 else f"{value:.2f}"
    return "" if value is None else str(value)


def _minutes(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def _fill(text: str) -> str:
    """Wraps a paragraph."""
    return textwrap.fill(text, WIDTH, break_long_words=False, break_on_hyphens=False)
