"""Scores priors between embedding spaces on held-out pairs: agreement, retrieval, calibration."""

import dataclasses
import hashlib
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from unclip_jax.core.arrays import unit
from unclip_jax.core.checks import UserError
from unclip_jax.core.files import atomic_path
from unclip_jax.metrics import calibration, embeddings
from unclip_jax.metrics.calibration import Coverage, EnergyTest
from unclip_jax.metrics.intervals import Mean, Rate, bootstrap

POOL = 300  # candidates of retrieval, as in MindEye (arXiv 2305.18274, section 3.2)

BLOCK = 1 << 25  # elements of an array that are scored together

Targets = Float[np.ndarray, "n *s"]
Rows = Int[np.ndarray, " m"]


@dataclasses.dataclass(frozen=True)
class PriorScores:
    """Scores of one prior, with intervals over held-out pairs.

    Attributes:
        cosine: cosine of the mean of the samples and the true target, both flattened.
        sample_cosine: cosine of single samples and the true target.
        forward: fraction of predictions whose own target is the nearest of the pool.
        backward: fraction of targets whose own prediction is the nearest of the pool.
        rank: mean rank of the own target in the pool, 1 = nearest.
        coverage: coverage of central intervals; None for one sample per pair.
        energy: distance of one sample per pair to the true targets.
        histogram: fraction of pairs by the rank of the true value among the samples.
    """

    cosine: Mean
    sample_cosine: Mean
    forward: Rate
    backward: Rate
    rank: Mean
    coverage: Coverage | None
    energy: EnergyTest
    histogram: tuple[float, ...] = ()


@dataclasses.dataclass(frozen=True)
class PairReport:
    """Scores of several priors on the same pairs.

    Attributes:
        pairs: number of pairs.
        pool: candidates of retrieval, at most as many as there are different targets.
        priors: scores by name of the prior.
        subjects: a report for each subject with two or more pairs, by label.
        trained: number of these pairs that a prior was trained on, by its name: 0 if all were held
            out, None if unknown.
    """

    pairs: int
    pool: int
    priors: dict[str, PriorScores]
    subjects: dict[str, "PairReport"] = dataclasses.field(default_factory=dict)
    trained: dict[str, int | None] = dataclasses.field(default_factory=dict)

    def plain(self) -> dict[str, Any]:
        """Converts to JSON-ready dicts."""
        priors = {name: _plain(judgement) for name, judgement in self.priors.items()}
        result = {"pairs": self.pairs, "pool": self.pool, "priors": priors}
        if self.trained:
            result["trained_on"] = self.trained
        if self.subjects:
            result["subjects"] = {label: one.plain() for label, one in self.subjects.items()}
        return result

    def __str__(self) -> str:
        """A table, one row per prior, with 95 % intervals."""
        heads = (
            "prior",
            "cosine",
            "of a sample",
            "top-1",
            "top-1 back",
            "rank",
            "coverage",
            "energy",
        )
        rows = [heads, *(_cells(name, judgement) for name, judgement in self.priors.items())]
        for label, one in self.subjects.items():
            rows += [_cells(f"{name}: {label}", own) for name, own in one.priors.items()]
        widths = [max(len(row[i]) for row in rows) for i in range(len(heads))]
        lines = [
            "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) for row in rows
        ]
        return "\n".join([*(line.rstrip() for line in lines), *self._notes()]) + "\n"

    def _notes(self) -> Iterator[str]:
        """Yields the lines below the table."""
        kind = "pairs" if any(count != 0 for count in self.trained.values()) else "held-out pairs"
        yield (
            f"{self.pairs} {kind}, {self._retrieval()}; 95 % intervals over pairs; p from "
            f"{calibration.PERMUTATIONS} random divisions"
        )
        for label, one in self.subjects.items():
            yield f"{label}: {one.pairs} pairs, {one._retrieval()}"
        for name, count in self.trained.items():
            if count is None:
                yield f"{name}: its export does not state whether it was trained on these pairs"
            elif count:
                yield (
                    f"warning: {name} was trained on {count} of these pairs, so its "
                    "figures are not those of new pairs; leave out --eval-share=1"
                )

    def _retrieval(self) -> str:
        """Returns the numbers of pairs and candidates as text; incomplete pools are left out."""
        counts = {judgement.forward.total for judgement in self.priors.values()}
        of = f" of {max(counts)} pairs" if counts - {self.pairs} else ""
        return f"retrieval{of} among {self.pool}"


def score_priors(
    true: Targets,
    samples: Mapping[str, np.ndarray | Iterable[np.ndarray]],
    *,
    pool: int = POOL,
    subjects: Sequence[str] | None = None,
    trained: Mapping[str, int | None] | None = None,
) -> PairReport:
    """Scores the samples of priors.

    Args:
        true: targets.
        samples: name of a prior -> [pairs samples *target], or blocks of consecutive pairs, which
            need not be in memory together; one sample for a regression.
        pool: number of candidates of retrieval; equal targets count as one.
        subjects: label of the subject of every pair; None = no scores by subject.
        trained: as in `PairReport`.

    Raises:
        UserError: fewer than two pairs, or samples that do not match them.
    """
    if len(true) < 2:
        raise UserError(f"{len(true)} held-out pairs are too few to score; hold out at least 2.")
    flat = true.reshape(len(true), -1)
    names = [hashlib.sha256(row.tobytes()).hexdigest() for row in flat]
    scored = {}
    for name, of_prior in samples.items():
        blocks = _split(of_prior) if isinstance(of_prior, np.ndarray) else of_prior
        scored[name] = _scored(flat, _checked(blocks, name, true))

    def report(rows: Rows) -> PairReport:
        distinct = embeddings.first_occurrences([names[row] for row in rows])
        most = min(pool, len(distinct))
        priors = {
            name: _prior_scores(each.of(rows), most, distinct=distinct)
            for name, each in scored.items()
        }
        return PairReport(len(rows), most, priors)

    every = report(np.arange(len(true)))
    rows_of = {label: np.flatnonzero(np.array(subjects) == label) for label in {*(subjects or ())}}
    parts = {label: report(rows) for label, rows in sorted(rows_of.items()) if len(rows) > 1}
    return dataclasses.replace(every, subjects=parts, trained=dict(trained or {}))


def mean_cosine(guess: Targets, true: Targets) -> Mean:
    """Computes the mean cosine of flattened rows with its interval."""
    return embeddings.cosine(*(unit(rows.reshape(len(rows), -1)) for rows in (guess, true)))


def _split(samples: np.ndarray) -> Iterator[np.ndarray]:
    """Yields blocks of about `BLOCK` elements."""
    rows = max(BLOCK // max(samples[:1].size, 1), 1)
    for start in range(0, len(samples), rows):
        yield samples[start : start + rows]


def _checked(blocks: Iterable[np.ndarray], name: str, true: Targets) -> Iterator[np.ndarray]:
    """Yields blocks of flattened samples.

    Raises:
        UserError: the samples do not match the targets.
    """
    count = 0
    for block in blocks:
        count += len(block)
        if block.shape[2:] != true.shape[1:] or block.ndim < 3 or count > len(true):
            shape = [count, *block.shape[1:]]
            raise UserError(
                f"{name} has samples {shape} for targets {list(true.shape)}; give "
                "[pairs, samples, ...]."
            )
        yield block.reshape(*block.shape[:2], -1)
    if count < len(true):
        raise UserError(f"{name} has samples of {count} pairs for {len(true)}; give all.")


@dataclasses.dataclass(frozen=True)
class _Scores:
    """Statistics of the samples of every pair, without the samples themselves.

    Attributes:
        true: targets.
        guess: mean of the samples, of norm 1.
        first: the first sample.
        cosine: mean cosine of the samples to the target.
        places: ranks of the target among the samples along directions; None for a single sample.
        num: samples per pair.
    """

    true: np.ndarray
    guess: np.ndarray
    first: np.ndarray
    cosine: np.ndarray
    places: np.ndarray | None
    num: int

    def of(self, rows: Rows) -> "_Scores":
        """Returns the statistics of some pairs."""
        return _Scores(
            true=self.true[rows],
            guess=self.guess[rows],
            first=self.first[rows],
            cosine=self.cosine[rows],
            places=None if self.places is None else self.places[rows],
            num=self.num,
        )


def _scored(true: np.ndarray, blocks: Iterable[np.ndarray]) -> _Scores:
    guess, first, single, places, num, start = [], [], [], [], 1, 0
    for samples in blocks:
        num, target = samples.shape[1], true[start : start + len(samples)]
        guess.append(unit(samples.mean(axis=1)))
        first.append(samples[:, 0].copy())
        single.append(np.sum(unit(samples) * unit(target)[:, None], axis=-1).mean(axis=1))
        if num > 1:
            places.append(calibration.ranks(samples, target))
        start += len(samples)
    return _Scores(
        true=true,
        guess=np.concatenate(guess),
        first=np.concatenate(first),
        cosine=np.concatenate(single),
        places=np.concatenate(places) if places else None,
        num=num,
    )


def _prior_scores(scores: _Scores, pool: int, *, distinct: Rows) -> PriorScores:
    guess, target = scores.guess, unit(scores.true)
    order = np.random.default_rng(0).permutation(distinct)
    shuffled = (guess[order], target[order])
    rank = embeddings.retrieval_ranks(*shuffled, group=pool)
    coverage, histogram = None, ()
    if scores.places is not None:
        coverage = calibration.coverage(scores.places, num=scores.num)
        counts = np.bincount(scores.places.reshape(-1), minlength=scores.num + 1)
        histogram = tuple((counts / counts.sum()).tolist())
    return PriorScores(
        cosine=embeddings.cosine(guess, target),
        sample_cosine=bootstrap(scores.cosine),
        forward=embeddings.retrieval_rate(*shuffled, group=pool),
        backward=embeddings.retrieval_rate(*shuffled[::-1], group=pool),
        rank=bootstrap(rank.astype(np.float64)),
        coverage=coverage,
        energy=calibration.energy_test(scores.first, scores.true),
        histogram=histogram,
    )


def _plain(record: Any) -> Any:
    if dataclasses.is_dataclass(record):
        return {f.name: _plain(getattr(record, f.name)) for f in dataclasses.fields(record)}
    if hasattr(record, "_asdict"):
        return {name: _plain(value) for name, value in record._asdict().items()}
    return list(record) if isinstance(record, tuple) else record


def _cells(name: str, one: PriorScores) -> tuple[str, ...]:
    covered = "none"
    if one.coverage is not None:
        covered = f"{_interval(one.coverage.measured)} of {one.coverage.expected:.3f}"
    return (
        name,
        _interval(one.cosine),
        _interval(one.sample_cosine),
        _interval(one.forward),
        _interval(one.backward),
        f"{one.rank.value:.1f}",
        covered,
        f"{one.energy.distance:.3g} (p {one.energy.p_value:.3f})",
    )


def _interval(one: Mean | Rate) -> str:
    return f"{one.value:.3f} [{one.low:.3f}, {one.high:.3f}]"


def plot(report: PairReport, out: pathlib.Path) -> None:
    """Plots cosine, retrieval and the ranks of true values among samples."""
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 3)
    names, places = list(report.priors), np.arange(len(report.priors))
    for axis, field, title in (
        (axes[0], "cosine", "mean cosine to the target"),
        (axes[1], "forward", f"top-1 retrieval of {report.pool}"),
    ):
        values = [getattr(one, field) for one in report.priors.values()]
        heights = [value.value for value in values]
        ends = [[value.value - value.low for value in values], [v.high - v.value for v in values]]
        axis.bar(places, heights, yerr=np.maximum(ends, 0.0), capsize=4, color="tab:blue")
        axis.set_xticks(places, names)
        axis.set_title(title)
    for name, one in report.priors.items():
        if one.histogram:
            count = len(one.histogram)
            positions = (np.arange(count) + 0.5) / count
            axes[2].plot(positions, np.array(one.histogram) * count, marker=".", label=name)
    axes[2].axhline(1.0, color="grey", linewidth=0.8)
    axes[2].set_title("rank of the true value among samples")
    axes[2].set_ylim(bottom=0.0)
    if axes[2].get_legend_handles_labels()[1]:  # regressions have no ranks
        axes[2].legend()
    with atomic_path(out) as draft:
        figure.savefig(draft, format="png")
