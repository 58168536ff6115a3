"""Draw images for captions with a trained cascade, or edit images (see cli/edits).

    python -m unclip_jax.sample --models=runs/shapes "a red circle above a blue square"
    python -m unclip_jax.sample interpolate --models=runs/shapes one.png other.png

Writes a labelled grid, the single images beside it, and a JSON with everything needed to draw the
same images again. Image i depends on (seed, i) alone. The first form is the subcommand `text`,
which also has to be named when the first caption is the name of a subcommand.
"""

import argparse
import dataclasses
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from unclip_jax.cli import entry, flags, guided_text, process_flags, subcommands
from unclip_jax.cli.output import write
from unclip_jax.cli.parser import Parser
from unclip_jax.convert import importing
from unclip_jax.core.checks import UserError, in_range, positive
from unclip_jax.inference import batched, load
from unclip_jax.inference.engine import InferenceEngine
from unclip_jax.inference.text_to_image import MAX_BEST_OF, Cascade, SampleOptions
from unclip_jax.parallel import cluster
from unclip_jax.parallel.multihost import check_same
from unclip_jax.stages.gaussian import SAMPLERS
from unclip_jax.version import __version__


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Command-line arguments."""
    parser = Parser(
        "sample",
        description="Draw images for captions.",
        epilog=f"subcommands (each has its own --help):\n{subcommands.overview()}",
    )
    parser.add_argument("captions", nargs="+", help="one image is drawn per caption and --num")
    flags.add_models(parser, public=True)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("samples.png"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--num", type=int, default=1, help="images per caption")
    parser.add_argument("--batch", type=int, default=16, help="images drawn at once")
    parser.add_argument("--guidance", type=float, help="decoder guidance scale, 1 = off")
    parser.add_argument("--prior-guidance", type=float, help="prior guidance scale, 1 = off")
    parser.add_argument("--steps", help="decoder steps: 50, ddim25, fast27, logsnr20, 22@140, ...")
    parser.add_argument("--prior-steps", help="diffusion prior: steps")
    parser.add_argument("--sampler", help=f"of the decoder: {', '.join(SAMPLERS)}")
    parser.add_argument("--prior-sampler", help="diffusion prior: sampler")
    parser.add_argument("--prior-variance", help="diffusion prior, ancestral: small, large, table")
    parser.add_argument("--prior", default="prior", choices=load.prior_names(), help="which prior")
    parser.add_argument("--prior-temperature", type=float, help="autoregressive prior; 0 = greedy")
    parser.add_argument("--prior-top-p", type=float, help="autoregressive prior: nucleus, 1 = all")
    parser.add_argument(
        "--prior-dot-percentile",
        type=float,
        help="autoregressive prior: z_img . z_txt is asked to lie above this percentile",
    )
    parser.add_argument("--candidates", type=int, help="embeddings drawn per caption, best kept")
    parser.add_argument(
        "--best-of", type=int, default=1, help="pictures drawn per image, CLIP keeps the nearest"
    )
    parser.add_argument(
        "--condition",
        default="prior",
        choices=("prior", "z_txt"),
        help="where z_img comes from; z_txt skips the prior",
    )
    parser.add_argument(
        "--by-stage",
        action="store_true",
        help="keep one stage on the device at a time, for models that fill its memory",
    )
    process_flags.add(parser)
    guided_text.add_arguments(parser)
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> None:
    """Draw, write the grid, the images and the JSON; or hand over to a subcommand."""
    if argv and argv[0] in subcommands.COMMANDS:
        subcommands.run(argv[0], list(argv[1:]))
        return
    argv = list(argv[1:] if argv[:1] == ["text"] else argv)
    args = parse(argv)
    args.command, args.argv = "text", argv
    check(args)
    process_flags.start(args)
    check_same({**asked(args), **cluster.facts()})
    run = importing.run_directory(args.models)
    captions = [caption for caption in args.captions for _ in range(args.num)]
    if args.by_stage:
        if jax.process_count() > 1:
            raise UserError("--by-stage draws on one device; run it in one process.")
        files = load.find_cascade(run, prior_name=args.prior)
        options = options_from(args, files.cascade)
        images = batched.sample_by_stage(
            files, captions, seed=args.seed, options=options, batch_size=args.batch
        )
        finish(args, images, captions, options)
        return
    loaded = load.load_cascade(run, prior_name=args.prior)
    options = options_from(args, loaded.cascade)
    if guided_text.wanted(args):
        studio = InferenceEngine(loaded, batch=args.batch)
        sys.stdout.write(
            guided_text.run(args, studio, captions, options=options, record=record(args, options))
        )
        return
    images = batched.sample_images(
        loaded, captions, seed=args.seed, options=options, batch_size=args.batch
    )
    finish(args, images, captions, options)


def finish(
    args: argparse.Namespace, images: np.ndarray, captions: list[str], options: SampleOptions
) -> None:
    """Write what was drawn; every process has all images, and the first writes them."""
    if jax.process_index() > 0:
        return
    write(args.out, images, captions=captions, record=record(args, options))
    sys.stdout.write(f"wrote {args.out}: {len(captions)} images of {images.shape[1]} px\n")


def asked(args: argparse.Namespace) -> dict[str, str]:
    """What all processes must have been asked alike."""
    return {name: str(value) for name, value in vars(args).items() if name != "process_id"}


def check(args: argparse.Namespace) -> None:
    """Refuse what cannot be drawn before anything is loaded, and settle on the models.

    Raises:
        UserError: naming the argument.
    """
    positive("--num", args.num)
    positive("--batch", args.batch)
    flags.check_count(args.num * len(args.captions))
    flags.check_captions(args.captions)
    in_range("--best-of", args.best_of, 1, MAX_BEST_OF)
    flags.check_count(args.num * len(args.captions) * args.best_of)
    if args.best_of > 1 and guided_text.wanted(args):
        raise UserError(
            f"--best-of is {args.best_of}, which --negative, --guidance-schedule, --previews "
            "and --animate cannot be combined with; leave it or them out."
        )
    if args.out.suffix.lower() != ".png":
        raise UserError(f"--out is {str(args.out)!r}; give a name that ends in .png.")
    if args.by_stage and (guided_text.wanted(args) or args.best_of > 1):
        raise UserError(
            "--by-stage draws whole batches, without --negative, --guidance-schedule, --previews, "
            "--animate and --best-of; leave one of them out."
        )
    args.models = flags.run_directory(args.models)


def options_from(args: argparse.Namespace, cascade: Cascade) -> SampleOptions:
    """The exported sampling settings with what the command line changes.

    Raises:
        UserError: an option that is not this prior's.
    """
    decoder = {"guidance_scale": args.guidance, "steps": args.steps, "sampler": args.sampler}
    names = ("steps", "sampler", "variance", "temperature", "top_p", "dot_percentile")
    prior = {name: getattr(args, f"prior_{name}") for name in names}
    prior["guidance_scale"] = args.prior_guidance
    return SampleOptions(
        prior=batched.override(cascade.prior.sampling, prior),
        decoder=batched.override(cascade.decoder.sampling, decoder),
        num_candidates=args.candidates,
        condition=args.condition,
        best_of=args.best_of,
    )


def record(args: argparse.Namespace, options: SampleOptions) -> dict[str, Any]:
    """What is needed to draw the same pictures again."""
    return {
        "command": args.command,
        "arguments": args.argv,
        "code_version": __version__,
        "models": str(args.models),
        "prior": args.prior,
        "captions": args.captions,
        "num": args.num,
        "seed": args.seed,
        "options": dataclasses.asdict(options),
    }


if __name__ == "__main__":
    entry.run(lambda: main(sys.argv[1:]))
