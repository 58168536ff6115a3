"""Rates of preference between two models, by category and overall, and their report as text.

Answers name sides, which are translated to models here. Intervals are bootstrapped over prompts,
because the answers of several raters to one prompt depend on each other.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from unclip_jax.evaluation.comparison_folder import SIDES, Comparison
from unclip_jax.evaluation.questionnaire import QUESTIONS, Answer
from unclip_jax.metrics.intervals import bootstrap_ratio

PEOPLE = ("A", "indifferent", "B")  # outcomes of answers, in the order of the paper
CHECKER = ("A", "equal", "B")


def outcome_of(answer: str, left: str) -> str:
    """Returns the model of the side that an answer prefers, or "indifferent".

    Args:
        answer: left, indifferent or right.
        left: the model on the left, A or B.
    """
    if answer not in SIDES:
        return "indifferent"
    right = "B" if left == "A" else "A"
    return left if answer == "left" else right


def by_people(
    comparison: Comparison, answers: Sequence[Answer], left: Sequence[str]
) -> dict[str, list[dict[str, Any]]]:
    """Computes the rate of each answer to each question; JSON-ready.

    Args:
        comparison: the prompts.
        answers: one per rater, prompt and question at most.
        left: model on the left of every prompt.

    Returns:
        For each question the rows of `_rows`, with the numbers of raters and answers.
    """
    rows = {prompt.id: row for row, prompt in enumerate(comparison.prompts)}
    categories = [prompt.category for prompt in comparison.prompts]
    results = {}
    for question in QUESTIONS:
        counts = np.zeros((len(rows), len(PEOPLE)))
        raters: list[set[str]] = [set() for _ in rows]
        for answer in answers:
            if answer.question == question:
                row = rows[answer.prompt]
                counts[row, PEOPLE.index(outcome_of(answer.answer, left[row]))] += 1
                raters[row].add(answer.rater)
        results[question] = [
            {
                "category": name,
                "raters": len(set().union(*(raters[member] for member in members))),
                "answers": int(counts[members].sum()),
                **shares(counts[members], PEOPLE),
            }
            for name, members in _members(categories)
        ]
    return results


def by_checker(
    categories: Sequence[str], criteria_a: np.ndarray, criteria_b: np.ndarray
) -> list[dict[str, Any]]:
    """Computes the fractions of prompts for which the images of one model meet more criteria.

    Args:
        categories: categories of the prompts.
        criteria_a: number of criteria that the images of A meet, for every prompt.
        criteria_b: the same for B.
    """
    difference = criteria_a - criteria_b
    counts = np.stack([difference > 0, difference == 0, difference < 0], axis=1).astype(float)
    return [
        {"category": name, "prompts": len(members), **shares(counts[members], CHECKER)}
        for name, members in _members(categories)
    ]


def by_clip(
    categories: Sequence[str], scores_a: np.ndarray, scores_b: np.ndarray
) -> list[dict[str, Any]]:
    """Computes the CLIP scores of both models and their difference, with intervals.

    Args:
        categories: categories of the prompts.
        scores_a: CLIP score of A for every prompt.
        scores_b: the same for B, by the same CLIP.
    """
    values = {"A": scores_a, "B": scores_b, "difference": scores_a - scores_b}
    rows = []
    for name, members in _members(categories):
        ones = np.ones(len(members))
        means = {key: _interval(each[members], ones) for key, each in values.items()}
        rows.append({"category": name, "prompts": len(members), **means})
    return rows


def shares(counts: np.ndarray, outcomes: Sequence[str]) -> dict[str, Any]:
    """Computes the rate of each outcome and the difference of A and B, with 95 % intervals.

    Args:
        counts: [prompts outcomes]; prompts without answers are left out.
        outcomes: names of the three columns, A first and B last.

    Returns:
        An interval by outcome, and one by "difference"; each None if there are no counts.
    """
    counts = counts[counts.sum(axis=1) > 0]
    totals = counts.sum(axis=1)
    parts = dict(zip(outcomes, counts.T, strict=True))
    parts["difference"] = parts["A"] - parts["B"]
    return {name: _interval(part, totals) for name, part in parts.items()}


def markdown(report: Mapping[str, Any]) -> str:
    """Formats a report of `comparison.compare`."""
    return "\n".join(_lines(report)) + "\n"


def _members(categories: Sequence[str]) -> Iterator[tuple[str | None, np.ndarray]]:
    """Yields each category (if several) with the rows of its prompts, then None with all rows."""
    names = dict.fromkeys(categories)
    for name in names if len(names) > 1 else ():
        yield name, np.flatnonzero([category == name for category in categories])
    yield None, np.arange(len(categories))


def _interval(parts: np.ndarray, wholes: np.ndarray) -> dict[str, float] | None:
    return bootstrap_ratio(parts, wholes)._asdict() if len(parts) else None


def _lines(report: Mapping[str, Any]) -> Iterator[str]:
    models, people = report["models"], report["people"]
    yield "# Two models compared\n"
    yield f"A is `{models['A']['folder']}`, B is `{models['B']['folder']}`.\n"
    yield "This report names the models: do not show it to raters who still answer.\n"
    yield f"Prompts: {report['prompts']}. Images of each model: {report['images']}. Raters:"
    yield f"{len(report['raters'])}. Answers: {report['answers']}.\n"
    yield "Intervals are 95 %, bootstrapped over prompts. Where all prompts agree, they have no"
    yield "width and do not apply to other prompts.\n"
    yield from (f"WARNING: {line}\n" for line in report["warnings"])
    for question, text in QUESTIONS.items():
        yield f"## People, {question}\n\n{text.format(caption='...')}\n"
        names = ("raters", "answers", *PEOPLE, "difference")
        yield from _table(people[question], names)
    yield "## Exact checker\n"
    if report["checker"] is None:
        yield "The prompts are not captions of a procedural world, which it could check.\n"
    else:
        yield "Share of prompts for which one model's images meet more criteria of the caption.\n"
        yield from _table(report["checker"], ("prompts", *CHECKER, "difference"))
    yield "## CLIP score\n"
    if report["clip_score"] is None:
        yield "Not compared: the models do not share one CLIP.\n"
    else:
        yield "100 x cosine of image and caption, mean over prompts, by the CLIP of both models.\n"
        yield from _table(report["clip_score"], ("prompts", "A", "B", "difference"))


def _table(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> Iterator[str]:
    titles = ["A - B" if name == "difference" else name for name in names]
    yield f"| category | {' | '.join(titles)} |"
    yield f"|---|{'---|' * len(names)}"
    for row in rows:
        name = "**all**" if row["category"] is None else row["category"].replace("|", "\\|")
        yield f"| {name} | {' | '.join(_cell(row[column]) for column in names)} |"
    yield ""


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, int):
        return str(value)
    middle, low, high = (f"{value[name]:.2f}" for name in ("value", "low", "high"))
    return f"{middle} [{low}, {high}]"
