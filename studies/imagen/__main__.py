"""Trains missing upsamplers, measures missing findings, writes the report; see the package."""

import pathlib
import shlex
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from benchmarks import markdown_page
from studies import claims, provenance, study_config
from studies.findings import report_page
from studies.imagen import (
    against_unclip,
    augmentation,
    thresholds,
    unet_topologies,
    upsampler_runs,
)
from studies.imagen.config import ImagenStudyConfig
from studies.imagen.harness import Harness
from unclip_jax.cli import compilation_cache, entry
from unclip_jax.cli.parser import Parser
from unclip_jax.core.checks import one_of
from unclip_jax.evaluation import protocol_folder
from unclip_jax.handoff import load as exports
from unclip_jax.inference import chain_selection

FINDINGS: dict[str, ModuleType] = {
    "unclip": against_unclip,
    "thresholds": thresholds,
    "augmentation": augmentation,
    "topologies": unet_topologies,
}
IMAGEN_STAGES = ("text_encoder", "imagen_base", upsampler_runs.STAGE)
UNCLIP_STAGES = ("clip", "prior", "decoder")
INTRODUCTION = """# Tests of Imagen's claims in miniature

This page tests claims of *Photorealistic Text-to-Image Diffusion Models with Deep Language
Understanding* (Imagen, arXiv 2205.11487) in the procedural world of `shapes`, where the exact
checker evaluates every image. The paper makes these claims for models that are some thousand times
as large, read a language model, and are trained on photographs. A claim that does not hold here may
well hold there.
"""


def main(argv: Sequence[str]) -> None:
    """Measures missing findings, and writes the report after each."""
    config = parse(argv)
    compilation_cache.use()
    harness = Harness(config)
    protocol_folder.claim(config.work, protocol_of(config), first=True)
    write = lambda: report(config, argv)  # noqa: E731
    claims.measure_missing(FINDINGS, config.only or tuple(FINDINGS), harness, write=write)


def parse(argv: Sequence[str]) -> ImagenStudyConfig:
    """Parses and checks the command line before anything is trained.

    Raises:
        UserError: an argument is invalid, or a stage is missing.
    """
    args, overrides = parser().parse_with_overrides(argv)
    only = tuple(args.only.split(",")) if args.only else ()
    for name in only:
        one_of("--only", name, FINDINGS)
    stages = chain_selection.find_stages(args.models, required=IMAGEN_STAGES)
    needed = UNCLIP_STAGES if not only or "unclip" in only else ("clip",)
    chain_selection.find_stages(args.unclip, required=needed)
    work = args.work or args.models.with_name(f"{args.models.resolve().name}_study")
    config = ImagenStudyConfig(
        models=args.models,
        unclip=args.unclip,
        data=args.data,
        work=work,
        out=args.out or work / "imagen_findings.md",
        size=exports.read_manifest(stages["imagen_base"]).size,
        only=only,
        overrides=tuple(overrides),
        steps=args.steps,
        **study_config.flag_values(args),
    )
    config.work.mkdir(parents=True, exist_ok=True)
    markdown_page.check_path(config.out)
    return config


def parser() -> Parser:
    """Returns the parser of the command line; other arguments are overrides."""
    parser = Parser(
        "imagen",
        prog="python -m studies.imagen",
        description="Put Imagen's claims to the test; the same command continues.",
        epilog="Overrides such as --config.optim.warmup_steps=10 go to every training run.",
    )
    add = parser.add_argument
    add("--models", type=pathlib.Path, required=True, help="run of Imagen's miniature")
    add(
        "--unclip",
        type=pathlib.Path,
        required=True,
        help="run of unCLIP, whose CLIP embeds all images",
    )
    add("--data", type=pathlib.Path, required=True, help="prepared shapes")
    add("--work", type=pathlib.Path, help="folder of upsamplers and results [MODELS_study]")
    add("--out", type=pathlib.Path, help="report [WORK/imagen_findings.md]")
    add("--only", help=f"comma-separated: {', '.join(FINDINGS)}")
    add("--steps", type=int, help="training steps of every upsampler [the experiment's]")
    study_config.add_flags(parser)
    return parser


def protocol_of(config: ImagenStudyConfig) -> dict[str, Any]:
    """Returns the settings that findings in one report must share; JSON-ready."""
    exported = chain_selection.find_stages(config.unclip, required=("clip",))
    unclip = tuple(stage for stage in UNCLIP_STAGES if stage in exported)
    runs = {"imagen": (config.models, IMAGEN_STAGES), "unclip": (config.unclip, unclip)}
    return {
        **{name: getattr(config, name) for name in ("split", "num", "images", "seed", "steps")},
        **{
            f"{run} {stage}": exports.content_digest(folder / stage / "export")[:16]
            for run, (folder, stages) in runs.items()
            for stage in stages
        },
        "data": config.data_digests(),
        "changes": list(config.overrides),
    }


def report(config: ImagenStudyConfig, argv: Sequence[str]) -> dict[str, Any]:
    """Writes the page of all results so far; returns them, JSON-ready."""
    facts = {
        "command": f"python -m studies.imagen {shlex.join(argv)}",
        **provenance.environment(),
        **config.facts(),
        "steps": exports.read_manifest(config.models / "imagen_base" / "export").step,
    }
    baselines, results = upsampler_runs.facts(config), claims.read(FINDINGS, config)
    content = {"facts": facts, "baselines": baselines, "findings": results}
    options = {"introduction": INTRODUCTION, "describe": models_and_sizes}
    report_page.write(config.out, content, FINDINGS, **options)
    return content


def models_and_sizes(report: dict[str, Any]) -> str:
    """Formats the training length of the base model."""
    return f"Imagen's base model was trained for {report['facts']['steps']} steps."


if __name__ == "__main__":
    entry.run(lambda: main(sys.argv[1:]))
