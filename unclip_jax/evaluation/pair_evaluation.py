"""Evaluates trained priors between embedding spaces on held-out pairs."""

import dataclasses
import itertools
import json
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from unclip_jax.core.arrays import unit
from unclip_jax.core.checks import UserError, positive
from unclip_jax.core.files import write_atomically
from unclip_jax.data.pairs import PairSource, open_pairs
from unclip_jax.data.pairs_config import SUBJECT, TARGET, PairsConfig
from unclip_jax.evaluation import pair_report
from unclip_jax.evaluation.pair_report import PairReport
from unclip_jax.inference.embedding_prior import EmbeddingPriorModel
from unclip_jax.stages.embedding_prior_config import batch_spec

REPORT, PLOT = "pairs.json", "pairs.png"


@dataclasses.dataclass(frozen=True)
class PairEvaluation:
    """Settings of an evaluation.

    Attributes:
        runs: workdirs or exports.
        x: conditions, as in `PairsConfig`.
        y: targets, likewise.
        groups: likewise.
        subjects: likewise.
        splits: likewise.
        eval_share: share of the pairs that training held out; 1 = none of them was trained on.
        bad_rows: as in `PairsConfig`.
        repeats: likewise.
        num: samples per pair.
        most: pairs that are judged, evenly over the held-out ones.
        pool: candidates of retrieval.
        guidance: scale; None = the exported default.
        steps: of sampling; None = the exported default.
        seed: of the noise.
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


def evaluate_pairs(config: PairEvaluation, *, out: pathlib.Path) -> PairReport:
    """Judges priors, the ridge regressions in them and the mean; writes JSON and a plot to `out`.

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
    true = np.zeros(0)
    for run, model in zip(config.runs, models, strict=True):
        rows = _held_out(config, model, run)
        true = unit(rows[TARGET]) if model.cfg.scaling == "unit" else rows[TARGET]
        for name, blocks in _sampled(config, model, rows).items():
            samples.setdefault(name if name in ("ridge", "mean") else _name(run, samples), blocks)
    report = pair_report.judge(true, samples, pool=config.pool)
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_atomically(out / REPORT, json.dumps(report.plain(), indent=2) + "\n")
        pair_report.plot(report, out / PLOT)
    except OSError as error:
        raise UserError(f"cannot write to {out}: {error}.") from None
    return report


def _name(run: pathlib.Path, taken: dict[str, Any]) -> str:
    """Returns the name of a run in the report: its folder's, numbered if there are two."""
    run = run.resolve()
    name = run.parent.name if run.name == "export" else run.name
    return name if name not in taken else f"{name} ({len(taken)})"


def _held_out(
    config: PairEvaluation, model: EmbeddingPriorModel, run: pathlib.Path
) -> dict[str, np.ndarray]:
    """Returns the held-out pairs as batch fields of a model.

    Raises:
        UserError: pairs that do not fit, or of which training held out others.
    """
    everything = config.eval_share >= 1.0
    share = 0.0 if everything else config.eval_share
    where = (config.groups, config.subjects, config.splits)
    data = PairsConfig(config.x, config.y, *where, share, config.bad_rows, config.repeats)
    pairs, fields = open_pairs(data), batch_spec(model.cfg)
    trained = (model.manifest.inputs or {}).get("data")
    if not everything and trained not in (None, pairs.open_split("train", fields).digest):
        raise UserError(
            f"{run} was trained on other pairs than those that this division leaves for training; "
            "give --x, --y, --groups, --subjects, --splits, --eval-share, --bad-rows and --repeats "
            "as in training, or --eval-share=1 for pairs of which none was trained on."
        )
    source: PairSource = pairs.open_split("train" if everything else "validation", fields)
    blocks = list(source.blocks(config.most))
    return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}


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
    real = rows[f"{TARGET}_mask"][:, None, :, None]  # padding is no part of a target
    return {name: _masked(blocks, real) for name, blocks in result.items()}


def _masked(blocks: Iterable[np.ndarray], real: np.ndarray) -> Iterator[np.ndarray]:
    """Yields blocks of consecutive rows times their part of `real`."""
    start = 0
    for block in blocks:
        yield block * real[start : start + len(block)]
        start += len(block)
