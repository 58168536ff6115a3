"""Evaluates trained priors between embedding spaces on held-out pairs."""

import dataclasses
import itertools
import json
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from unclip_jax.core.arrays import unit
from unclip_jax.core.batch import BatchSpec
from unclip_jax.core.checks import UserError, in_range, one_of, positive
from unclip_jax.core.files import write_atomically
from unclip_jax.evaluation import pair_report
from unclip_jax.evaluation.pair_report import PairReport
from unclip_jax.inference.embedding_prior import EmbeddingPriorModel
from unclip_jax.pairs.config import BAD_ROWS, REPEATS, SUBJECT, TARGET, PairsConfig
from unclip_jax.pairs.matching import Pairs, open_pairs
from unclip_jax.stages.embedding_prior_config import batch_spec

REPORT, PLOT = "pairs.json", "pairs.png"
SHARES = (0.1, 0.0, 0.05, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5)  # eval_share of training


@dataclasses.dataclass(frozen=True)
class PairEvaluation:
    """Settings of an evaluation.

    Attributes:
        runs: workdirs or exports.
        x: conditions, as in `PairsConfig`.
        y: targets, as in `PairsConfig`.
        groups: as in `PairsConfig`.
        subjects: as in `PairsConfig`.
        splits: as in `PairsConfig`.
        eval_share: fraction of the groups or keys that training held out; 1 = score all pairs.
        bad_rows: as in `PairsConfig`.
        repeats: as in `PairsConfig`.
        num: samples per pair.
        most: greatest number of pairs to score, evenly spaced over the held-out ones.
        pool: candidates of retrieval.
        guidance: scale; None = the exported default.
        steps: sampling steps; None = the exported default.
        seed: seed of the noise.
    """

    runs: tuple[pathlib.Path, ...]
    x: str
    y: str
    groups: str = ""
    subjects: str = ""
    splits: str = ""
    eval_share: float = 0.1
    bad_rows: str = "reject"
    repeats: str = "each"
    num: int = 16
    most: int = 2000
    pool: int = pair_report.POOL
    guidance: float | None = None
    steps: str | None = None
    seed: int = 0

    def __post_init__(self):
        for name in ("num", "most", "pool"):
            positive(f"--{name}", getattr(self, name))
        one_of("--bad-rows", self.bad_rows, BAD_ROWS)
        one_of("--repeats", self.repeats, REPEATS)
        in_range("--eval-share", self.eval_share, 0.0, 1.0)


def evaluate_pairs(config: PairEvaluation, *, out: pathlib.Path) -> PairReport:
    """Scores priors, their ridge regressions and the mean; writes JSON and a plot to `out`.

    Raises:
        UserError: exports or pairs that do not fit, or priors of targets in different forms.
    """
    models = [EmbeddingPriorModel.open(run) for run in config.runs]
    forms = {model.cfg.scaling == "unit" for model in models}
    if len(forms) > 1:
        raise UserError(
            "some of these priors have targets of norm 1 and some have not "
            "(config.model.scaling), so their distances do not compare; evaluate them separately."
        )
    if config.steps is not None and all(model.cfg.method != "diffusion" for model in models):
        raise UserError("--steps is for diffusion, and none of these priors is one; leave it out.")
    samples: dict[str, Iterable[np.ndarray]] = {}
    true, subjects, trained = np.zeros(0), None, {}
    for run, model in zip(config.runs, models, strict=True):
        rows, subjects, count = _open(config, model, run)
        own = _name(run, samples)
        trained[own] = count
        true = unit(rows[TARGET]) if model.cfg.scaling == "unit" else rows[TARGET]
        for name, blocks in _sampled(config, model, rows).items():
            samples.setdefault(name if name in ("ridge", "mean") else own, blocks)
    report = pair_report.score_priors(
        true, samples, pool=config.pool, subjects=subjects, trained=trained
    )
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_atomically(out / REPORT, json.dumps(report.plain(), indent=2) + "\n")
        pair_report.plot(report, out / PLOT)
    except OSError as error:
        raise UserError(f"cannot write to {out}: {error}; give another --out.") from None
    return report


def _name(run: pathlib.Path, taken: dict[str, Any]) -> str:
    """Returns the name of a run in the report: its folder's, numbered if there are two."""
    run = run.resolve()
    name = run.parent.name if run.name == "export" else run.name
    return name if name not in taken else f"{name} ({len(taken)})"


class _Pairs(NamedTuple):
    """Pairs on which a model is scored.

    Attributes:
        rows: batch fields.
        subjects: label of the subject of every pair; None without subjects.
        trained: number of all pairs of the files that training used; None = unknown.
    """

    rows: dict[str, np.ndarray]
    subjects: list[str] | None
    trained: int | None


def _open(config: PairEvaluation, model: EmbeddingPriorModel, run: pathlib.Path) -> _Pairs:
    """Opens the held-out pairs, or all pairs.

    Raises:
        UserError: pairs that do not fit, or whose split differs from that of training.
    """
    everything = config.eval_share >= 1.0
    share = 0.0 if everything else config.eval_share
    where = (config.groups, config.subjects, config.splits)
    data = PairsConfig(config.x, config.y, *where, share, config.bad_rows, config.repeats)
    pairs, fields = open_pairs(data), batch_spec(model.cfg)
    stated = (model.manifest.inputs or {}).get("data")
    if everything:
        trained = _trained_on(pairs, fields, stated)
        pairs = pairs.divided(1.0)
    else:
        trained = None if stated is None else 0
        if trained == 0 and stated != pairs.open_split("train", fields).digest:
            raise UserError(
                f"{run} was trained on other pairs than this split leaves for "
                "training; give --x, --y, --groups, --subjects, --splits, --eval-share, "
                "--bad-rows and --repeats as in training, or --eval-share=1 if training used "
                "none of these pairs."
            )
    source = pairs.open_split("validation", fields)
    blocks = list(source.blocks(config.most))
    rows = {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}
    return _Pairs(rows, source.subjects(config.most), trained)


def _trained_on(pairs: Pairs, fields: BatchSpec, stated: str | None) -> int | None:
    """Returns the number of pairs that a prior was trained on, for the usual splits.

    Args:
        pairs: the pairs and their split.
        fields: batch fields of the model.
        stated: digest of the training pairs; None = the export has none.
    """
    if stated is None:
        return None
    for one in (pairs, *map(pairs.divided, SHARES)):
        if not one.validation.all():
            source = one.open_split("train", fields)
            if source.digest == stated:
                return len(source)
    return None


def _sampled(
    config: PairEvaluation, model: EmbeddingPriorModel, rows: dict[str, np.ndarray]
) -> dict[str, Iterable[np.ndarray]]:
    """Returns the samples of a model, its ridge regression's prediction and the mean, in blocks.

    All samples together may be larger than memory.
    """
    conditions: dict[str, Any] = {}
    for one in model.cfg.model.conditions:
        conditions[one.name] = rows[one.name]
        if one.ragged:
            lengths = rows[f"{one.name}_mask"].sum(axis=1)
            pairs = zip(rows[one.name], lengths, strict=True)
            conditions[one.name] = [row[: int(length)] for row, length in pairs]
    if SUBJECT in rows:
        labels = model.cfg.encoder.labels
        conditions[SUBJECT] = [labels[n] for n in rows[SUBJECT]] if labels else rows[SUBJECT]
    num = config.num if model.cfg.generative else 1
    steps = config.steps if model.cfg.method == "diffusion" else None
    options = {"guidance": config.guidance, "steps": steps, "seed": config.seed}
    result: dict[str, Iterable[np.ndarray]] = {
        "prior": model.sample_blocks(conditions, num=num, **options)
    }
    if model.cfg.fits_ridge and model.cfg.method != "ridge":
        result["ridge"] = (block[:, None] for block in model.linear_blocks(conditions))
    mean = model.mean()
    if mean is not None:
        result["mean"] = itertools.repeat(mean[None, None], len(rows[TARGET]))
    if not model.cfg.model.ragged:
        return result
    real = rows[f"{TARGET}_mask"][:, None, :, None]  # padding is not part of a target
    return {name: _masked(blocks, real) for name, blocks in result.items()}


def _masked(blocks: Iterable[np.ndarray], real: np.ndarray) -> Iterator[np.ndarray]:
    """Yields blocks of consecutive rows, multiplied by the same rows of `real`."""
    start = 0
    for block in blocks:
        yield block * real[start : start + len(block)]
        start += len(block)
