"""Judges priors between embedding spaces on held-out pairs: agreement, retrieval, calibration."""

import dataclasses
import hashlib
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from unclip_jax.core.arrays import unit
from unclip_jax.core.checks import UserError
from unclip_jax.core.files import atomic_path
from unclip_jax.metrics import calibration, embeddings
from unclip_jax.metrics.calibration import Coverage, EnergyTest
from unclip_jax.metrics.intervals import Mean, Rate, bootstrap

POOL = 300  # candidates of retrieval, as in MindEye (arXiv 2305.18274, section 3.2)

BLOCK = 1 << 25  # numbers of an array that are judged at once

Targets = Float[np.ndarray, "n *s"]


@dataclasses.dataclass(frozen=True)
class Judgement:
    """Figures of one prior, with intervals over held-out pairs.

    Attributes:
        cosine: of the mean of the samples to the true target, both flattened.
        sample_cosine: of single samples.
        forward: share of predictions whose own target is the nearest of the pool.
        backward: share of targets whose own prediction is the nearest of the pool.
        rank: mean rank of the own target in the pool, 1 = nearest.
        coverage: of central intervals; None of a prior that gives one sample.
        energy: distance of one sample per pair to the true targets.
        histogram: share of pairs by the rank of the true value among the samples.
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
    """Judgements of several priors on the same pairs.

    Attributes:
        pairs: number of held-out pairs.
        pool: candidates of retrieval.
        priors: by name.
    """

    pairs: int
    pool: int
    priors: dict[str, Judgement]

    def plain(self) -> dict[str, Any]:
        """Converts to JSON-ready dicts."""
        priors = {name: _plain(judgement) for name, judgement in self.priors.items()}
        return {"pairs": self.pairs, "pool": self.pool, "priors": priors}

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
        widths = [max(len(row[i]) for row in rows) for i in range(len(heads))]
        lines = [
            "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) for row in rows
        ]
        note = (
            f"{self.pairs} held-out pairs, retrieval among {self.pool}; 95 % intervals over pairs"
        )
        return "\n".join([*(line.rstrip() for line in lines), note]) + "\n"


def judge(
    true: Targets, samples: Mapping[str, np.ndarray | Iterable[np.ndarray]], *, pool: int = POOL
) -> PairReport:
    """Judges the samples of priors.

    Args:
        true: held-out targets.
        samples: name of a prior -> [pairs samples *target], or blocks of consecutive pairs, which
            need not be in memory together; one sample for a regression.
        pool: candidates of retrieval, all different: of equal targets the first is one.

    Raises:
        UserError: fewer than two pairs, or samples that do not match them.
    """
    if len(true) < 2:
        raise UserError(f"{len(true)} held-out pairs are too few to judge; hold out at least 2.")
    flat = true.reshape(len(true), -1)
    rows = [hashlib.sha256(row.tobytes()).hexdigest() for row in flat]
    distinct = embeddings.first_occurrences(rows)
    pool = min(pool, len(distinct))
    priors = {}
    for name, of_prior in samples.items():
        blocks = _split(of_prior) if isinstance(of_prior, np.ndarray) else of_prior
        priors[name] = _judged(flat, _checked(blocks, name, true), pool, distinct)
    return PairReport(len(true), pool, priors)


def mean_cosine(guess: Targets, true: Targets) -> Mean:
    """Computes the mean cosine of flattened rows with its interval."""
    return embeddings.cosine(*(unit(rows.reshape(len(rows), -1)) for rows in (guess, true)))


def _split(samples: np.ndarray) -> Iterator[np.ndarray]:
    """Yields blocks of about `BLOCK` numbers."""
    rows = max(BLOCK // max(samples[:1].size, 1), 1)
    for start in range(0, len(samples), rows):
        yield samples[start : start + rows]


def _checked(blocks: Iterable[np.ndarray], name: str, true: Targets) -> Iterator[np.ndarray]:
    """Yields blocks, each sample flat.

    Raises:
        UserError: they do not match the targets.
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


def _judged(
    true: np.ndarray, blocks: Iterable[np.ndarray], pool: int, distinct: np.ndarray
) -> Judgement:
    guess, first, single, places, num, start = [], [], [], [], 1, 0
    for samples in blocks:
        num, target = samples.shape[1], true[start : start + len(samples)]
        guess.append(unit(samples.mean(axis=1)))
        first.append(samples[:, 0].copy())
        single.append(np.sum(unit(samples) * unit(target)[:, None], axis=-1).mean(axis=1))
        if num > 1:
            places.append(calibration.ranks(samples, target))
        start += len(samples)
    guess, target = np.concatenate(guess), unit(true)
    order = np.random.default_rng(0).permutation(distinct)
    shuffled = (guess[order], target[order])
    rank = embeddings.retrieval_ranks(*shuffled, group=pool)
    coverage, histogram = None, ()
    if num > 1:
        place = np.concatenate(places)
        coverage = calibration.coverage(place, num=num)
        counts = np.bincount(place.reshape(-1), minlength=num + 1)
        histogram = tuple((counts / counts.sum()).tolist())
    return Judgement(
        cosine=embeddings.cosine(guess, target),
        sample_cosine=bootstrap(np.concatenate(single)),
        forward=embeddings.retrieval_rate(*shuffled, group=pool),
        backward=embeddings.retrieval_rate(*shuffled[::-1], group=pool),
        rank=bootstrap(rank.astype(np.float64)),
        coverage=coverage,
        energy=calibration.energy_test(np.concatenate(first), true),
        histogram=histogram,
    )


def _plain(record: Any) -> Any:
    if dataclasses.is_dataclass(record):
        return {f.name: _plain(getattr(record, f.name)) for f in dataclasses.fields(record)}
    if hasattr(record, "_asdict"):
        return {name: _plain(value) for name, value in record._asdict().items()}
    return list(record) if isinstance(record, tuple) else record


def _cells(name: str, one: Judgement) -> tuple[str, ...]:
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
        f"{one.energy.distance:.3g} (p {one.energy.p_value:.2f})",
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
