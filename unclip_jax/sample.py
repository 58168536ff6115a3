"""Draw images for captions with a trained cascade, or edit pictures (see commands/).

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
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from unclip_jax import distributed, entry, weights
from unclip_jax.commands import arguments, guided_text, menu
from unclip_jax.commands.output import write
from unclip_jax.commands.studio import Studio, tokenise
from unclip_jax.core.checks import UserError, in_range, positive
from unclip_jax.data import text
from unclip_jax.parallel import place
from unclip_jax.parallel.mesh import batch_sharding, for_drawing, replicated, traced_on
from unclip_jax.pipeline import by_stage, load, text_to_image
from unclip_jax.pipeline.load import Found, Loaded
from unclip_jax.pipeline.text_to_image import MAX_BEST_OF, Cascade, SampleOptions
from unclip_jax.stages.gaussian import SAMPLERS
from unclip_jax.training.agreement import check_same
from unclip_jax.version import __version__


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Command-line arguments."""
    parser = argparse.ArgumentParser(
        prog="python -m unclip_jax.sample",
        description="Draw images for captions.",
        epilog=f"subcommands (each has its own --help):\n{menu.overview()}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("captions", nargs="+", help="one image is drawn per caption and --num")
    arguments.add_models(parser, public=True)
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
    parser.add_argument("--prior", default="prior", choices=tuple(load.PRIORS), help="which prior")
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
    distributed.add_flags(parser)
    guided_text.add_arguments(parser)
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> None:
    """Draw, write the grid, the images and the JSON; or hand over to a subcommand."""
    if argv and argv[0] in menu.COMMANDS:
        menu.run(argv[0], list(argv[1:]))
        return
    argv = list(argv[1:] if argv[:1] == ["text"] else argv)
    args = parse(argv)
    args.command, args.argv = "text", argv
    check(args)
    distributed.start(args)
    check_same({**asked(args), **distributed.facts()})
    run = weights.run_of(args.models)
    captions = [caption for caption in args.captions for _ in range(args.num)]
    if args.by_stage:
        if jax.process_count() > 1:
            raise UserError("--by-stage draws on one device; run it in one process.")
        found = load.find_cascade(run, prior_name=args.prior)
        options = options_from(args, found.cascade)
        images = draw_by_stage(
            found, captions, seed=args.seed, options=options, batch_size=args.batch
        )
        finish(args, images, captions, options)
        return
    loaded = load.load_cascade(run, prior_name=args.prior)
    options = options_from(args, loaded.cascade)
    if guided_text.wanted(args):
        studio = Studio(loaded, batch=args.batch)
        sys.stdout.write(
            guided_text.run(args, studio, captions, options=options, record=record(args, options))
        )
        return
    images = draw(loaded, captions, seed=args.seed, options=options, batch_size=args.batch)
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
    arguments.check_count(args.num * len(args.captions))
    arguments.check_captions(args.captions)
    in_range("--best-of", args.best_of, 1, MAX_BEST_OF)
    arguments.check_count(args.num * len(args.captions) * args.best_of)
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
    args.models = arguments.run_directory(args.models)


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
        prior=changed(cascade.prior.sampling, prior),
        decoder=changed(cascade.decoder.sampling, decoder),
        num_candidates=args.candidates,
        condition=args.condition,
        best_of=args.best_of,
    )


def draw(
    loaded: Loaded,
    captions: Sequence[str],
    *,
    seed: int,
    options: SampleOptions,
    z_img: np.ndarray | None = None,
    batch_size: int = 16,
    name: str = "sampling",
    run: Callable[..., jax.Array] | None = None,
    first: int = 0,
) -> np.ndarray:
    """Draw one uint8 image per caption with one compiled function, in batches of one shape.

    Args:
        loaded: the cascade.
        captions: one per image.
        seed: image i depends on (seed, i) alone.
        options: overrides of the exported settings.
        z_img: one image embedding per caption, when `options.condition` is "z_img".
        batch_size: images at once.
        name: on the progress bar.
        run: a `sampler` of the same options made before, so that nothing is compiled twice.
        first: index of the first image, of a set that is drawn in parts.
    """
    mesh, batch_size = for_drawing(min(batch_size, len(captions)))
    run = run or sampler(loaded.cascade, options, mesh=mesh)
    params = place.copied(loaded.params, mesh)
    tokenizer = text.load(loaded.tokenizer_dir)
    images = []
    quiet = jax.process_index() > 0
    bar = tqdm(total=len(captions), unit="image", desc=name, disable=quiet)
    for start in range(0, len(captions), batch_size):
        indices = np.arange(start, start + batch_size)
        kept = np.minimum(indices, len(captions) - 1)  # one shape, one compilation
        tokens = tokenise(loaded.cascade, tokenizer, [captions[int(i)] for i in kept])
        given = None if z_img is None else z_img[kept]
        keys = text_to_image.keys_for(seed, jnp.array(first + indices))
        drawn = run(params, *place.spread((tokens, keys, given), mesh))
        images.append(np.asarray(drawn)[: len(captions) - start])
        bar.update(len(images[-1]))
    bar.close()
    return np.concatenate(images)


def draw_by_stage(
    found: Found, captions: Sequence[str], *, seed: int, options: SampleOptions, batch_size: int
) -> np.ndarray:
    """What `draw` draws but for rounding, with one stage on the first device at a time."""
    tokenizer, size = text.load(found.tokenizer_dir), min(batch_size, len(captions))
    batches = []
    for start in range(0, len(captions), size):
        indices = np.arange(start, start + size)
        kept = np.minimum(indices, len(captions) - 1)
        tokens = tokenise(found.cascade, tokenizer, [captions[int(i)] for i in kept])
        batches.append(by_stage.Batch(tokens, text_to_image.keys_for(seed, jnp.array(indices))))
    with tqdm(total=len(found.readers), unit="stage", desc="sampling") as bar:

        def begin(name: str) -> None:
            bar.update(bool(bar.postfix))  # the stage before is done
            bar.set_postfix_str(name)

        images = by_stage.draw(found, batches, options=options, begin=begin)
        bar.update()
    return np.concatenate(images)[: len(captions)]


def sampler(
    cascade: Cascade, options: SampleOptions, *, mesh: Mesh | None = None
) -> Callable[..., jax.Array]:
    """The jit-compiled sampling function: (params, captions, keys, z_img) -> uint8 images.

    A batch is split over `mesh` (default: one device, or all of several processes); every device
    gets all images.
    """
    mesh = mesh or for_drawing(1)[0]

    def run(params, captions, keys, z_img):
        drawn = text_to_image.sample(cascade, params, captions, keys, options=options, z_img=z_img)
        return text_to_image.to_uint8(drawn.images)

    whole, split = replicated(mesh), batch_sharding(mesh)
    places = (whole, split, split, split)
    return jax.jit(traced_on(mesh, run), in_shardings=places, out_shardings=whole)


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


def changed(sampling: Any, changes: dict[str, Any]) -> Any:
    """Sampling settings with those of `changes` that are not None.

    Raises:
        UserError: a setting that this prior has not.
    """
    given = {name: value for name, value in changes.items() if value is not None}
    known = {field.name for field in dataclasses.fields(sampling)}
    for name in sorted(given.keys() - known):
        raise UserError(
            f"--prior-{name.replace('_', '-')} is {given[name]!r}, but this prior has no such "
            "setting; leave it out or choose the other --prior."
        )
    return dataclasses.replace(sampling, **given)


if __name__ == "__main__":
    entry.run(lambda: main(sys.argv[1:]))
