"""Trains missing stages, measures missing systems, writes the page; see the package."""

import json
import pathlib
import shlex
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks import markdown_page
from studies import (
    evaluation_set,
    provenance,
    scoring,
    statistics,
    study_config,
    training_runs,
)
from studies.evaluation_set import BATCH, EvaluationSet
from studies.history import history_page, measurement, training
from studies.history.config import HistoryConfig
from studies.history.systems import BUDGET, SYSTEMS, System
from unclip_jax.cli import compilation_cache, entry
from unclip_jax.cli.parser import Parser
from unclip_jax.engine.inference_engine import InferenceEngine
from unclip_jax.evaluation import protocol_folder
from unclip_jax.handoff import load as exports
from unclip_jax.inference import chain_selection, load

REQUIRED = ("clip", *BUDGET)


def main(argv: Sequence[str]) -> None:
    """Trains, measures and writes, system by system; the same command continues."""
    config = parse(argv)
    compilation_cache.use()
    scorer = InferenceEngine(load.load_cascade(config.models, prior_name="dalle"), batch=BATCH)
    examples, true = evaluation_set.select(
        scorer, str(config.data), split=config.split, num=config.num, images=config.images
    )
    protocol_folder.claim(config.work, protocol_of(config), first=True)
    rows = [statistics.as_json(measurement.true_images(true, examples, scorer))]
    step = examples.images_per_caption
    captions = list(examples.captions[::step][: config.rows])
    columns = {"true image": scoring.reduce(true[::step], side=scorer.cascade.image_size)}
    for system in SYSTEMS:
        training.prepare(system, config)
        row, images = measured(system, config, scorer=scorer, examples=examples)
        rows.append(row)
        columns[system.name] = images[::step]
        history_page.write_grid(config.out, columns, captions)
        history_page.write(config.out, report(config, argv, rows, side=images.shape[1]))
    sys.stdout.write(f"wrote {config.out}\n")


def measured(
    system: System, config: HistoryConfig, *, scorer: InferenceEngine, examples: EvaluationSet
) -> tuple[dict[str, Any], np.ndarray]:
    """Returns the row and images of a system, from disk if it was measured before."""
    name = system.name.lower().replace(",", "").replace(" ", "_")
    path, arrays = config.result_file(name), config.result_file(name).with_suffix(".npy")
    if path.is_file() and arrays.is_file():
        sys.stderr.write(f"{system.name}: measured already\n")
        return json.loads(path.read_text()), np.load(arrays)
    row, images = measurement.measure(system, config, scorer=scorer, examples=examples)
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(arrays, images)
    row = statistics.as_json(row)
    protocol_folder.write(path, json.dumps(row, indent=1) + "\n")
    return row, images


def parse(argv: Sequence[str]) -> HistoryConfig:
    """Parses and checks the command line before anything is trained.

    Raises:
        UserError: an argument is invalid, or a stage is missing.
    """
    args, overrides = parser().parse_with_overrides(argv)
    stages = chain_selection.find_stages(args.models, required=REQUIRED)
    work = args.work or args.models.with_name(f"{args.models.resolve().name}_history")
    config = HistoryConfig(
        models=args.models,
        data=args.data or args.models / "data",
        work=work,
        out=args.out or work / "history.md",
        size=exports.read_manifest(stages["dalle"]).size,
        overrides=tuple(overrides),
        rows=args.rows,
        **study_config.flag_values(args),
    )
    config.work.mkdir(parents=True, exist_ok=True)
    markdown_page.check_path(config.out)
    markdown_page.split(config.out, title=history_page.TITLE)
    return config


def parser() -> Parser:
    """Returns the parser of the command line; other arguments are overrides."""
    parser = Parser(
        "history",
        prog="python -m studies.history",
        description="Train and compare DALL-E, GLIDE, unCLIP and Imagen with equal data and "
        "compute; the same command continues.",
        epilog="Overrides such as --config.optim.warmup_steps=10 go to every training run.",
    )
    add = parser.add_argument
    add("--models", type=pathlib.Path, required=True, help="run with a clip, a dvae and a dalle")
    add("--data", type=pathlib.Path, help="prepared shapes [MODELS/data]")
    add("--work", type=pathlib.Path, help="folder of other stages and results [MODELS_history]")
    add("--out", type=pathlib.Path, help="page [WORK/history.md]")
    add("--rows", type=int, default=8, help="number of captions whose images the page shows")
    study_config.add_flags(parser)
    return parser


def protocol_of(config: HistoryConfig) -> dict[str, Any]:
    """Returns the settings that rows of one page must share; JSON-ready."""
    names = ("split", "num", "images", "seed")
    return {
        **{name: getattr(config, name) for name in names},
        **{name: exports.content_digest(config.models / name / "export")[:16] for name in REQUIRED},
        "data": config.data_digests(),
        "changes": list(config.overrides),
    }


def report(
    config: HistoryConfig, argv: Sequence[str], rows: list[dict[str, Any]], *, side: int
) -> dict[str, Any]:
    """Returns all results so far; JSON-ready."""
    facts = {
        "command": f"python -m studies.history {shlex.join(argv)}",
        **provenance.environment(),
        **config.facts(),
        "side": side,
        "missing": [s.name for s in SYSTEMS if s.name not in [row["name"] for row in rows]],
    }
    costs, stages = training_runs.minutes(config.work), training.plan(config)
    for name, stage in stages.items():
        stage["minutes"] = costs.get(name)
        stage["systems"] = list(users(name))
    return {"facts": facts, "rows": rows, "stages": stages}


def users(stage: str) -> dict[str, None]:
    """Returns the runs that have a stage, in order."""
    return {
        system.run: None
        for system in SYSTEMS
        if stage in (*system.linked, *(own.name for own in system.stages))
    }


if __name__ == "__main__":
    entry.run(lambda: main(sys.argv[1:]))
