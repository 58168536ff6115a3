r"""Evaluates a trained cascade on a held-out split, or scores sets of images.

    python -m unclip_jax.evaluate --models=runs/shapes --data=runs/shapes/data
    python -m unclip_jax.evaluate images --real=DIR --fake=DIR --features=inception:FILE
    python -m unclip_jax.evaluate statistics --images=DIR --features=clip:EXPORT --out=real.npz
    python -m unclip_jax.evaluate pack --images=DIR --out=batch.npz
    python -m unclip_jax.evaluate sweep --models=RUN --data=DATA --guidance=1,2,4 --out=DIR
    python -m unclip_jax.evaluate plot sweeps/unclip sweeps/glide --out=both.png
    python -m unclip_jax.evaluate coco --models=RUN --captions=FILE --real=val2014 \
        --features=inception:FILE --out=DIR
    python -m unclip_jax.evaluate prompts FILE --models=RUN --out=DIR
    python -m unclip_jax.evaluate compare DIR_A DIR_B --out=DIR
    python -m unclip_jax.evaluate judge DIR
    python -m unclip_jax.evaluate rerank --models=RUN --data=DATA --chain=dalle --candidates=64
    python -m unclip_jax.evaluate pairs RUN --x=a.npy --y=b.npy --out=DIR

The first form scores retrieval by CLIP and the PSNR of the upsampler against bicubic enlargement;
in the procedural worlds the exact checker scores images with z_img from the prior, with z_txt used
as z_img, and with the true z_img. It prints a table and writes MODELS/evaluation.json, or, of
installed models, ./evaluation.json; other settings are part of the name: evaluation_prior_ar.json
for --prior=prior_ar, evaluation_best_of_4.json of --best-of=4. docs/evaluation.md describes the
subcommands.
"""

import argparse
import json
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

from unclip_jax.cli import (
    compilation_cache,
    data_flags,
    entry,
    evaluation_parsers,
    flags,
    process_flags,
)
from unclip_jax.cli.parser import Parser
from unclip_jax.core.checks import UserError, in_range, one_of
from unclip_jax.core.files import check_output


def main(argv: Sequence[str]) -> None:
    """Evaluates, prints and writes; or runs a subcommand.

    Raises:
        UserError: an unknown subcommand, or arguments that are not valid.
    """
    if argv and not argv[0].startswith("-"):
        make_parser, run = SUBCOMMANDS[one_of("subcommand", argv[0], SUBCOMMANDS)]
        if argv[0] in WITHOUT_JAX:
            args = make_parser().parse_args(argv[1:])
            check_out(argv[0], args)
            sys.stdout.write(run(args))
            return
        args = with_processes(make_parser()).parse_args(argv[1:])
        check_out(argv[0], args)
    else:
        args, run = with_processes(parser()).parse_args(argv), run_cascade
    if "models" in args:
        args.models = flags.run_directory(args.models)
    if run is run_cascade and args.models.is_dir():  # which is rejected later otherwise
        check_output(_result_path(args), flag="--models")
    process_flags.start_alike(args)
    compilation_cache.use()
    text = run(args)
    if _is_first():
        sys.stdout.write(text)


def check_out(name: str, args: argparse.Namespace) -> None:
    """Checks --out of a subcommand before anything is loaded.

    Raises:
        UserError: it has another suffix, or cannot be written.
    """
    if getattr(args, "out", None) is None:
        return
    if name in ("statistics", "pack"):
        _check_npz(args.out)
    check_output(args.out, folder=name in FOLDERS)


def with_processes(parser: Parser) -> Parser:
    """Adds the flags of several processes to a parser and returns it."""
    flags.add_skip_digests(parser)
    process_flags.add(parser)
    return parser


def parser() -> Parser:
    """Returns the parser of the command without a subcommand."""
    parser = Parser(
        "evaluate",
        description="Evaluate a cascade on held-out captions.",
        epilog=f"subcommands (each has its own --help): {', '.join(SUBCOMMANDS)}",
    )
    flags.add_models(parser, digests=False)
    data_flags.add(parser)
    flags.add_prior(parser)
    parser.add_argument("--split", default="validation", help="split of the data set")
    parser.add_argument("--num", type=int, default=200, help="captions to sample")
    parser.add_argument("--seed", type=int, default=0, help="random seed")
    parser.add_argument(
        "--best-of",
        type=int,
        default=1,
        help="images per caption, of which CLIP selects the nearest to it",
    )
    return parser


def subparsers() -> dict[str, Parser]:
    """Returns the parsers of the subcommands."""
    return {
        name: make() if name in WITHOUT_JAX else with_processes(make())
        for name, (make, _) in SUBCOMMANDS.items()
    }


def run_cascade(args: argparse.Namespace) -> str:
    """Evaluates a cascade and writes the result beside its models; returns the table."""
    from unclip_jax.evaluation import cascade

    names = ("models", "data", "prior", "split", "num", "seed", "best_of")
    values = {name: getattr(args, name) for name in names}
    result = cascade.evaluate_cascade(cascade.CascadeConfig(**values, keys=data_flags.keys(args)))
    out = _result_path(args)
    if _is_first():
        try:
            out.write_text(json.dumps(result, indent=2) + "\n")
        except OSError as error:
            raise UserError(f"cannot write {out}: {error}; give another --out.") from None
    return cascade.table(result)


def _result_path(args: argparse.Namespace) -> pathlib.Path:
    """Returns the file of the result: beside the models, or in this folder for installed models."""
    from unclip_jax.handoff import shipped

    folder = pathlib.Path() if args.models.parent == shipped.WEIGHTS else args.models
    suffix = "" if args.prior == "prior" else f"_{args.prior}"
    suffix += f"_best_of_{args.best_of}" if args.best_of > 1 else ""
    return folder / f"evaluation{suffix}.json"


def images_parser() -> Parser:
    """Returns the parser of `images`."""
    from unclip_jax.metrics.score_options import ScoreOptions

    parser = Parser("evaluate images", description="Compare two sets of images.")
    kinds = "folder of images, .npz batch, .npz statistics, or data set"
    parser.add_argument("--real", required=True, help=kinds)
    parser.add_argument("--fake", required=True, help="images to score, in the same forms")
    parser.add_argument("--out", type=pathlib.Path, help="JSON to write")
    default = ScoreOptions()
    parser.add_argument(
        "--kid-subsets", type=int, default=default.kid_subsets, help="subsets of KID"
    )
    parser.add_argument("--kid-size", type=int, default=default.kid_size, help="images per subset")
    parser.add_argument(
        "--k", type=int, default=default.k, help="neighbours for precision and recall"
    )
    parser.add_argument(
        "--k-density",
        type=int,
        default=default.k_density,
        help="neighbours for density and coverage",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of KID's subsets")
    return evaluation_parsers.add_set(evaluation_parsers.add_features(parser))


def run_images(args: argparse.Namespace) -> str:
    """Compares two sets of images; returns the report."""
    from unclip_jax.evaluation import set_comparison
    from unclip_jax.metrics.score_options import ScoreOptions

    options = ScoreOptions(args.kid_subsets, args.kid_size, args.k, args.k_density, args.seed)
    config = _feature_config(args)
    report = set_comparison.compare_sets(
        args.real, args.fake, config=config, options=options, out=args.out
    )
    return str(report)


def run_statistics(args: argparse.Namespace) -> str:
    """Writes the statistics of a set of images; returns a line about them."""
    from unclip_jax.evaluation import set_comparison

    count = set_comparison.write_statistics(args.images, args.out, config=_feature_config(args))
    return f"wrote {args.out}: {count} images\n"


def run_pack(args: argparse.Namespace) -> str:
    """Writes a set of images as a batch of guided-diffusion; returns a line about it."""
    from unclip_jax.evaluation import image_sets

    image_set = image_sets.open_set(args.images, _read_options(args))
    if _is_first():
        image_sets.pack(image_set, args.out)
    return f"wrote {args.out}: {image_set.count} images\n"


def run_sweep(args: argparse.Namespace) -> str:
    """Samples and scores the missing points; returns the table."""
    from unclip_jax.evaluation import sweep, sweep_points

    names = ("models", "data", "out", "features", "resize", "prior", "condition", "split")
    names += ("num", "images", "reference", "seed", "batch")
    config = sweep.SweepConfig(
        **{name: getattr(args, name) for name in names},
        guidance=_numbers("guidance", args.guidance),
        steps=_words(args.steps),
        samplers=_words(args.sampler),
        thresholds=_words(args.threshold),
        upsampler_guidance=_numbers("upsampler-guidance", args.upsampler_guidance),
        upsampler_levels=_numbers("upsampler-level", args.upsampler_level),
        keys=data_flags.keys(args),
        keep_images=args.keep,
    )
    result = sweep.run_sweep(config)
    return sweep_points.table(result) if result else ""


def run_plot(args: argparse.Namespace) -> str:
    """Plots sweeps together; returns a line about the figure."""
    from unclip_jax.evaluation import sweep_plots

    sweep_plots.plot_sweeps(args.sweeps, out=args.out)
    return f"wrote {args.out}\n"


def run_coco(args: argparse.Namespace) -> str:
    """Evaluates a cascade on MS-COCO; returns the report."""
    from unclip_jax.evaluation import coco

    names = ("captions", "real", "features", "resize", "num", "size")
    values = {name: getattr(args, name) for name in names}
    config = coco.CocoConfig(_sampling(args), **values, keys=data_flags.keys(args))
    return str(coco.evaluate_coco(config))


def run_prompts(args: argparse.Namespace) -> str:
    """Evaluates a cascade on a file of prompts; returns the table."""
    from unclip_jax.cli.flags import check_captions
    from unclip_jax.evaluation import prompts

    rows = tuple(prompts.read(args.file))
    check_captions([prompt.text for prompt in rows])
    config = prompts.PromptsConfig(rows, args.file.name, _sampling(args), args.images)
    return prompts.table(prompts.evaluate_prompts(config))


def run_compare(args: argparse.Namespace) -> str:
    """Writes a comparison and the report of its answers so far; returns the report."""
    from unclip_jax.evaluation import comparison, preferences

    config = comparison.ComparisonConfig(args.a, args.b, args.out, args.seed)
    return preferences.markdown(comparison.compare(config))


def run_judge(args: argparse.Namespace) -> str:
    """Serves the page for raters until ctrl-C; returns a line about their answers."""
    from unclip_jax.serving import extra

    in_range("--port", args.port, 1, 65535)
    extra.check_installed()
    from unclip_jax.evaluation.questionnaire import Questionnaire
    from unclip_jax.serving import judging, server
    from unclip_jax.serving.access import LOCAL_HOSTS, Access

    questions = Questionnaire(args.folder, rater=args.rater, category=args.category)
    is_local = server.is_local(args.host)
    app = judging.app(questions, Access(hosts=LOCAL_HOSTS if is_local else ()))
    with server.take_address(args.host, args.port) as listener:
        sys.stdout.write(f"questions at {server.url(args.host, args.port)}\n")
        if not is_local:
            sys.stdout.write("anyone who reaches this port can answer under any name.\n")
        sys.stdout.flush()
        server.serve(app, listener)
    return f"{questions.summary()}\n"


def run_rerank(args: argparse.Namespace) -> str:
    """Scores the best of n images as a function of n; returns the table."""
    from unclip_jax.evaluation import reranking

    names = ("models", "data", "prior", "split", "num", "candidates", "guidance", "seed", "batch")
    values = {name: getattr(args, name) for name in names}
    config = reranking.RerankingConfig(**values, keys=data_flags.keys(args))
    result = reranking.evaluate_reranking(config)
    if args.out is not None and _is_first():
        args.out.write_text(json.dumps(result, indent=2) + "\n")
    return reranking.table(result)


def run_pairs(args: argparse.Namespace) -> str:
    """Scores priors, their ridge regressions and the mean on held-out pairs; returns the table."""
    from unclip_jax.evaluation import pair_evaluation

    names = ("x", "y", "groups", "subjects", "splits", "eval_share", "bad_rows", "repeats")
    names += ("num", "most", "pool", "guidance", "steps", "seed")
    values = {name: getattr(args, name) for name in names}
    config = pair_evaluation.PairEvaluation(tuple(args.runs), **values)
    return str(pair_evaluation.evaluate_pairs(config, out=args.out))


SUBCOMMANDS: dict[str, tuple[Callable[[], Parser], Callable[[argparse.Namespace], str]]] = {
    "images": (images_parser, run_images),
    "statistics": (evaluation_parsers.statistics_parser, run_statistics),
    "pack": (evaluation_parsers.pack_parser, run_pack),
    "sweep": (evaluation_parsers.sweep_parser, run_sweep),
    "plot": (evaluation_parsers.plot_parser, run_plot),
    "coco": (evaluation_parsers.coco_parser, run_coco),
    "prompts": (evaluation_parsers.prompts_parser, run_prompts),
    "compare": (evaluation_parsers.compare_parser, run_compare),
    "judge": (evaluation_parsers.judge_parser, run_judge),
    "rerank": (evaluation_parsers.rerank_parser, run_rerank),
    "pairs": (evaluation_parsers.pairs_parser, run_pairs),
}
FOLDERS = ("pairs", "sweep", "coco", "prompts", "compare")  # subcommands whose --out is a folder
WITHOUT_JAX = ("compare", "judge")  # these compute nothing on devices, and run in one process


def _words(text: str | None) -> tuple[str | None, ...]:
    return tuple(text.split(",")) if text else (None,)


def _numbers(name: str, text: str | None) -> tuple[Any, ...]:
    if text is None:
        return (None,)
    try:
        return tuple(float(word) for word in text.split(","))
    except ValueError:
        raise UserError(f"--{name} is {text!r}; give numbers such as 1,2,4.") from None


def _sampling(args: argparse.Namespace) -> Any:
    from unclip_jax.evaluation.sampled_set import SampledSetConfig

    names = ("models", "out", "prior", "condition", "guidance", "steps", "sampler")
    return SampledSetConfig(**{n: getattr(args, n) for n in (*names, "seed", "batch", "part")})


def _read_options(args: argparse.Namespace) -> Any:
    from unclip_jax.evaluation.image_sets import ImageSetOptions

    return ImageSetOptions(args.size, args.num, args.split, data_flags.keys(args), args.blur)


def _feature_config(args: argparse.Namespace) -> Any:
    from unclip_jax.evaluation.set_comparison import FeatureConfig

    return FeatureConfig(args.features, args.resize, _read_options(args), args.batch)


def _is_first() -> bool:
    """Returns True in the process that writes files, once all are connected."""
    import jax

    return jax.process_index() == 0


def _check_npz(path: pathlib.Path) -> None:
    if path.suffix != ".npz":
        raise UserError(f"--out is {str(path)!r}; give a name that ends in .npz.")


if __name__ == "__main__":
    entry.run(lambda: main(sys.argv[1:]))
