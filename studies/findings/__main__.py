"""Train what is missing, measure what is missing, write the report: see the package."""

import argparse
import datetime
import json
import os
import pathlib
import shlex
import sys
import time
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import jax

from studies import statistics
from studies.findings import (
    baseline_runs,
    binding,
    conditioning,
    guidance,
    prior_types,
    probing,
    report_page,
    steps,
    target,
)
from studies.findings.harness import Workshop
from unclip_jax.cli import entry
from unclip_jax.core.checks import one_of, positive
from unclip_jax.evaluation import protocol_folder
from unclip_jax.experiment import loading, training_run
from unclip_jax.handoff import load
from unclip_jax.handoff.export import params_id
from unclip_jax.inference.load import find_stages
from unclip_jax.version import __version__

FINDINGS: dict[str, ModuleType] = {
    "priors": prior_types,
    "guidance": guidance,
    "conditioning": conditioning,
    "probing": probing,
    "binding": binding,
    "target": target,
    "steps": steps,
}
ORDER = ("probing", "target", "guidance", "binding", "priors", "conditioning", "steps")


def main(argv: Sequence[str]) -> None:
    """Do what is missing and write the report after every finding."""
    args, rest = parse(argv)
    check(args)
    training_run.use_compilation_cache()
    shop = Workshop(args, rest)
    protocol_folder.claim(baseline_runs.folder_of(args), protocol(shop), first=True)
    names = args.only or ORDER  # what needs least training first
    for number, name in enumerate(names, 1):
        where = baseline_runs.folder_of(args) / "points" / f"{name}.json"
        if where.is_file():
            sys.stderr.write(f"{name}: there already\n")
            continue
        sys.stderr.write(f"\n{name} ({number} of {len(names)})\n")
        protocol_folder.write(where, json.dumps(measured(FINDINGS[name], shop), indent=1) + "\n")
        report_page.write(args.out, report(args, argv), FINDINGS)
    made = report(args, argv)
    report_page.write(args.out, made, FINDINGS)
    for name, each in made["findings"].items():
        sys.stdout.write(f"{FINDINGS[name].TITLE}: {statistics.read(each)}\n")
    sys.stdout.write(f"wrote {args.out}\n")


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Command-line arguments, and overrides for every training run.

    Raises:
        UserError: an argument that is neither.
    """
    parser = argparse.ArgumentParser(
        prog="python -m studies.findings",
        description="Put the paper's claims to the test; the same command continues.",
        epilog="Overrides such as --config.optim.warmup_steps=10 go to every training run.",
        allow_abbrev=False,
    )
    path = {"type": pathlib.Path}
    parser.add_argument("--models", **path, required=True, help="run directory")
    parser.add_argument("--data", **path, help="prepared shapes [MODELS/data]")
    parser.add_argument("--embeddings", **path, help="what `embed` wrote [MODELS/embeddings]")
    parser.add_argument("--work", **path, help="baselines and numbers [MODELS_findings]")
    parser.add_argument("--out", **path, help="report [WORK/findings.md]")
    parser.add_argument("--only", help=f"comma-separated: {', '.join(FINDINGS)}")
    parser.add_argument("--split", default="validation")
    parser.add_argument("--num", type=int, default=100, help="captions")
    parser.add_argument("--images", type=int, default=2, help="pictures per caption")
    parser.add_argument("--decoder_steps", type=int, help="of decoders to train [the models']")
    parser.add_argument("--prior_steps", type=int, help="of priors to train [the models']")
    parser.add_argument(
        "--prior_ar_steps", type=int, help="of the autoregressive one [the models', or as above]"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--note", default="", help="for the report, as on what the minutes mean")
    args, rest = loading.parse_known(parser, argv)
    args.only = args.only.split(",") if args.only else []
    models = args.models
    args.data, args.embeddings = (
        args.data or models / "data",
        args.embeddings or models / "embeddings",
    )
    args.work = args.work or models.with_name(f"{models.resolve().name}_findings")
    args.out = args.out or args.work / "findings.md"
    return args, rest


def check(args: argparse.Namespace) -> None:
    """Refuse what cannot be done before anything is trained, and settle on lengths.

    Raises:
        UserError: naming the argument, or the stage that is not there.
    """
    for name in args.only:
        one_of("--only", name, FINDINGS)
    for name in ("num", "images"):
        positive(f"--{name}", getattr(args, name))
    found = find_stages(args.models, required=("clip", "prior", "decoder"))
    for part in ("decoder", "prior", "prior_ar"):
        own = load.read_manifest(found[part]).step if part in found else args.prior_steps
        asked = getattr(args, f"{part}_steps")
        setattr(args, f"{part}_steps", own if asked is None else asked)
        positive(f"--{part}_steps", getattr(args, f"{part}_steps"))
    args.work.mkdir(parents=True, exist_ok=True)
    report_page.check(args.out)


def protocol(shop: Workshop) -> dict[str, Any]:
    """What must be equal for findings to share a report."""
    names = ("split", "num", "images", "seed")
    lengths = ("decoder_steps", "prior_steps", "prior_ar_steps")
    parts = ("clip", "prior", "decoder")
    return {
        **{name: getattr(shop.args, name) for name in (*names, *lengths)},
        **{part: params_id(shop.main.params[part])[:16] for part in parts},
        "data": str(shop.args.data),
        "changes": list(shop.rest),
    }


def measured(module: ModuleType, shop: Workshop) -> dict[str, Any]:
    """A finding's numbers, JSON-ready, with what they cost but for training."""
    known = sum(baseline_runs.minutes(shop.args.work).values())
    began = time.monotonic()
    made = module.measure(shop)
    trained = sum(baseline_runs.minutes(shop.args.work).values()) - known
    made["minutes"] = (time.monotonic() - began) / 60 - trained
    made["date"] = datetime.date.today().isoformat()
    return statistics.plain(made)


def report(args: argparse.Namespace, argv: Sequence[str]) -> dict[str, Any]:
    """All that is known so far."""
    places = {name: baseline_runs.folder_of(args) / "points" / f"{name}.json" for name in FINDINGS}
    cards = find_stages(args.models, required=("clip", "prior", "decoder"))
    facts = {
        "command": f"python -m studies.findings {shlex.join(argv)}",
        "date": datetime.date.today().isoformat(),
        "device": f"{jax.devices()[0].device_kind}, {os.cpu_count()} cores",
        "jax": jax.__version__,
        "code_version": __version__,
        **{name: getattr(args, name) for name in ("split", "num", "images", "seed", "note")},
        "lengths": {part: load.read_manifest(cards[part]).step for part in ("decoder", "prior")},
    }
    found = {n: json.loads(path.read_text()) for n, path in places.items() if path.is_file()}
    for each in found.values():
        each["verdict"] = statistics.read(each)
    return {"facts": facts, "baselines": baseline_runs.facts(args), "findings": found}


if __name__ == "__main__":
    entry.run(lambda: main(sys.argv[1:]))
