"""Trains missing baselines, measures missing findings, writes the report; see the package."""

import pathlib
import shlex
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from benchmarks import markdown_page
from studies import claims, provenance, study_config
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
from studies.findings.config import FindingsConfig
from studies.findings.harness import Harness
from unclip_jax.cli import compilation_cache, entry
from unclip_jax.cli.parser import Parser
from unclip_jax.core.checks import one_of, positive
from unclip_jax.evaluation import protocol_folder
from unclip_jax.handoff import load
from unclip_jax.handoff.export import params_id
from unclip_jax.inference.chain_selection import find_stages

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
REQUIRED = ("clip", "prior", "decoder")


def main(argv: Sequence[str]) -> None:
    """Measures missing findings, and writes the report after each."""
    config = parse(argv)
    compilation_cache.use()
    harness = Harness(config)
    protocol_folder.claim(config.results, protocol_of(harness), first=True)
    names = config.only or ORDER  # in order of the training that they need
    write = lambda: report(config, argv)  # noqa: E731
    claims.measure_missing(FINDINGS, names, harness, write=write)


def parse(argv: Sequence[str]) -> FindingsConfig:
    """Parses and checks the command line before anything is trained.

    Raises:
        UserError: an argument is invalid, or a stage is missing.
    """
    args, overrides = parser().parse_with_overrides(argv)
    only = tuple(args.only.split(",")) if args.only else ()
    for name in only:
        one_of("--only", name, FINDINGS)
    models = args.models
    work = args.work or models.with_name(f"{models.resolve().name}_findings")
    config = FindingsConfig(
        models=models,
        data=args.data or models / "data",
        embeddings=args.embeddings or models / "embeddings",
        work=work,
        out=args.out or work / "findings.md",
        only=only,
        overrides=tuple(overrides),
        **training_steps(args),
        **study_config.flag_values(args),
    )
    for name in ("decoder_steps", "prior_steps", "prior_ar_steps"):
        positive(f"--{name.replace('_', '-')}", getattr(config, name))
    config.work.mkdir(parents=True, exist_ok=True)
    markdown_page.check_path(config.out)
    return config


def parser() -> Parser:
    """Returns the parser of the command line; other arguments are overrides."""
    parser = Parser(
        "findings",
        prog="python -m studies.findings",
        description="Put the paper's claims to the test; the same command continues.",
        epilog="Overrides such as --config.optim.warmup_steps=10 go to every training run.",
    )
    add = parser.add_argument
    add("--models", type=pathlib.Path, required=True, help="run directory")
    add("--data", type=pathlib.Path, help="prepared data of shapes or portraits [MODELS/data]")
    add("--embeddings", type=pathlib.Path, help="embeddings of `embed` [MODELS/embeddings]")
    add("--work", type=pathlib.Path, help="folder of baselines and results [MODELS_findings]")
    add("--out", type=pathlib.Path, help="report [WORK/findings.md]")
    add("--only", help=f"comma-separated: {', '.join(FINDINGS)}")
    add("--decoder-steps", type=int, help="steps of decoders to train [the models']")
    add("--prior-steps", type=int, help="steps of priors to train [the models']")
    add("--prior-ar-steps", type=int, help="steps of prior_ar [the models', or --prior-steps]")
    study_config.add_flags(parser)
    return parser


def training_steps(args: Any) -> dict[str, int]:
    """Returns the training steps of the baselines of each stage; default: those of the models.

    Raises:
        UserError: a stage of the models is missing.
    """
    stages = find_stages(args.models, required=REQUIRED)
    steps: dict[str, int] = {}
    for stage in ("decoder", "prior", "prior_ar"):
        value = getattr(args, f"{stage}_steps")
        if value is None and stage in stages:
            value = load.read_manifest(stages[stage]).step
        steps[f"{stage}_steps"] = steps["prior_steps"] if value is None else value
    return steps


def protocol_of(harness: Harness) -> dict[str, Any]:
    """Returns the settings that findings in one report must share; JSON-ready."""
    config, params = harness.config, harness.main.params
    names = ("split", "num", "images", "seed", "decoder_steps", "prior_steps", "prior_ar_steps")
    return {
        **{name: getattr(config, name) for name in names},
        **{stage: params_id(params[stage])[:16] for stage in ("clip", "prior", "decoder")},
        "data": config.data_digests(),
        "changes": list(config.overrides),
    }


def report(config: FindingsConfig, argv: Sequence[str]) -> dict[str, Any]:
    """Writes the page of all results so far; returns them, JSON-ready."""
    stages = find_stages(config.models, required=REQUIRED)
    facts = {
        "command": f"python -m studies.findings {shlex.join(argv)}",
        **provenance.environment(),
        **config.facts(),
        "lengths": {name: load.read_manifest(stages[name]).step for name in ("decoder", "prior")},
    }
    baselines, results = baseline_runs.facts(config), claims.read(FINDINGS, config)
    content = {"facts": facts, "baselines": baselines, "findings": results}
    report_page.write(config.out, content, FINDINGS)
    return content


if __name__ == "__main__":
    entry.run(lambda: main(sys.argv[1:]))
