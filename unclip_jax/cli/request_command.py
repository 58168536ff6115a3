"""Runs a request from the command line: selects its kind, parses its flags, runs it, saves it."""

import argparse
import dataclasses
import difflib
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from unclip_jax.cli import caption_files, compilation_cache, flags, process_flags, request_flags
from unclip_jax.cli.parser import Parser
from unclip_jax.core.checks import UserError, in_range
from unclip_jax.data.image_codec import SUFFIXES
from unclip_jax.engine import output_files, request_fields
from unclip_jax.engine.request_base import Request
from unclip_jax.engine.requests import REQUESTS, TextRequest, UpscaleRequest

REPEAT = "repeat"
MAX_BATCH = 4096
NEAR, VERY_NEAR = 0.6, 0.8  # similarity of a misspelt command to the command


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Options of a run apart from its request.

    Attributes:
        models: a run directory, or Karlo's.
        prior: prior or chain of the run to use.
        out: labelled grid to write.
        batch: images per batch.
        by_stage: True to keep one stage on the device at a time.
        guide: export of a noise-aware CLIP or of a classifier.
    """

    models: pathlib.Path
    prior: str
    out: pathlib.Path
    batch: int
    by_stage: bool = False
    guide: pathlib.Path | None = None


def choose(argv: Sequence[str]) -> tuple[str, list[str]]:
    """Splits arguments into the command and its arguments; without a command they are captions.

    Raises:
        UserError: the first argument is a misspelt command.
    """
    names = [*REQUESTS, REPEAT]
    if not argv or argv[0].startswith("-"):
        return TextRequest.name, list(argv)
    first = argv[0].replace("_", "-")
    if first in names:
        return first, list(argv[1:])
    names_image = len(argv) > 1 and pathlib.Path(argv[1]).suffix.lower() in (*SUFFIXES, ".npz")
    cutoff = NEAR if names_image else VERY_NEAR
    if near := difflib.get_close_matches(first, names, n=1, cutoff=cutoff):
        raise UserError(
            f"unknown command {argv[0]!r}. Did you mean {near[0]!r}? To sample images of that "
            "caption, write `text` before it."
        )
    return TextRequest.name, list(argv)


def parsers() -> dict[str, Parser]:
    """Returns the parsers of all commands except the default one."""
    return {name: parser(name) for name in (*REQUESTS, REPEAT)}


def parser(command: str = TextRequest.name) -> Parser:
    """Returns the parser of a command."""
    if command == REPEAT:
        parser = Parser(f"sample {REPEAT}", description="Repeat the request of an earlier result.")
        parser.add_argument("result", type=pathlib.Path, help="the JSON beside its images")
    else:
        request, is_text = REQUESTS[command], command == TextRequest.name
        others = "\n".join(f"  {name:12} {each.summary}" for name, each in REQUESTS.items())
        others += f"\n  {REPEAT:12} Repeat the request of an earlier result."
        listed = {"epilog": f"commands (each has its own --help):\n{others}"} if is_text else {}
        name = "sample" if is_text else f"sample {command}"
        parser = Parser(name, description=request.summary, **listed)
        request_flags.add_fields(parser, request)
    flags.add_models(parser, public=True)
    default = None if command == REPEAT else "prior"
    origin = "; default: that of the result" if command == REPEAT else ""
    flags.add_prior(parser, default=default, note=origin)
    out = "samples.png" if command == TextRequest.name else f"{command}.png"
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path(out), help="file to write")
    parser.add_argument("--batch", type=int, default=16, help="images per batch")
    if command == TextRequest.name:
        parser.add_argument(
            "--guide",
            type=pathlib.Path,
            help="export of a noise-aware CLIP, for --clip-scale, or of a classifier, for "
            "--classifier-scale",
        )
        parser.add_argument(
            "--captions",
            dest="captions_file",
            metavar="FILE",
            help="file with a caption per line, or - for standard input",
        )
        parser.add_argument(
            "--by-stage",
            action="store_true",
            help="keep one stage on the device at a time, for models that fill its memory",
        )
    process_flags.add(parser)
    return parser


def parse(command: str, args: argparse.Namespace) -> tuple[Request, RunOptions]:
    """Returns the request and the options of a run from arguments.

    Raises:
        UserError: an argument is not valid, or there are no models.
    """
    in_range("--batch", args.batch, 1, MAX_BATCH)
    output_files.check(args.out)
    setting = RunOptions(
        models=flags.run_directory(args.models),
        prior=args.prior or "prior",
        out=args.out,
        batch=args.batch,
        by_stage=getattr(args, "by_stage", False),
        guide=getattr(args, "guide", None),
    )
    if command == REPEAT:
        request, prior = request_flags.from_result(args.result)
        return request, dataclasses.replace(setting, prior=args.prior or prior or "prior")
    if command == TextRequest.name:
        args.captions = caption_files.resolve(args.captions, args.captions_file)
    values = request_flags.values(args, REQUESTS[command])
    return request_fields.build(REQUESTS[command], values, name=command), setting


def run(request: Request, setting: RunOptions, *, engine: Any = None) -> None:
    """Runs a request and saves its result; the first process prints the files.

    Args:
        request: the request.
        setting: the options of the run.
        engine: the models, if they are loaded already.

    Raises:
        UserError: the models cannot run this request, or files cannot be written.
    """
    import jax

    from unclip_jax.convert import importing
    from unclip_jax.engine.bundle_engine import open_engine
    from unclip_jax.engine.handlers import text
    from unclip_jax.inference import load

    compilation_cache.use()
    if setting.by_stage:
        assert isinstance(request, TextRequest)
        files = load.find_cascade(importing.run_directory(setting.models), prior_name=setting.prior)
        result = text.run_by_stage(files, request, batch=setting.batch, name=str(setting.models))
    else:
        enlarges = isinstance(request, UpscaleRequest)
        options = {"prior": setting.prior, "batch": setting.batch, "enlarges": enlarges}
        engine = engine or open_engine(setting.models, **options)
        if setting.guide is not None:
            _add_guide(engine, setting.guide, request)
        result = engine.run(request)
    result.save(setting.out)
    if jax.process_index() == 0:
        note = f" ({result.note})" if result.note else ""
        size = result.images.shape[1]
        sys.stdout.write(f"wrote {setting.out}: {len(result.images)} images of {size} px{note}\n")


def _add_guide(engine: Any, export: pathlib.Path, request: Request) -> None:
    """Loads a noise-aware CLIP or a classifier beside the models of an engine.

    Raises:
        UserError: the export is neither, the request does not use it, or the models are a bundle.
    """
    from unclip_jax.inference import guided_sampling

    if not getattr(request, "guide_scale", ("", 0))[1]:
        raise UserError(
            f"--guide={export} has no effect while --clip-scale and --classifier-scale are 0; "
            "set the one of its kind."
        )
    if not hasattr(engine, "loaded"):
        raise UserError(
            f"--guide={export} needs a run directory, but --models is a bundle; give a run "
            "directory."
        )
    engine.loaded = engine.loaded._replace(guide=guided_sampling.load_guide(export))
