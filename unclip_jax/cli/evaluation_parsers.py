"""Parsers of the subcommands of `evaluate`, and the flags that several of them share."""

import pathlib

from unclip_jax.cli import data_flags, flags
from unclip_jax.cli.parser import Parser


def add_images(parser: Parser) -> Parser:
    """Adds the set of images and the .npz that is written from it."""
    parser.add_argument("--images", required=True, help="a set of images")
    parser.add_argument("--out", type=pathlib.Path, required=True, help=".npz to write")
    return parser


def add_features(parser: Parser) -> Parser:
    """Adds the extractor of features."""
    parser.add_argument("--features", required=True, help="inception:FILE or clip:EXPORT")
    parser.add_argument("--resize", default="tf1", help="to 299: tf1, torch, clean")
    return parser


def add_set(parser: Parser) -> Parser:
    """Adds the part of a set of images that is read, and how."""
    parser.add_argument("--size", type=int, help="resize and centre-crop images to this first")
    parser.add_argument("--num", type=int, help="images of each set, from the first; default: all")
    parser.add_argument("--blur", type=float, default=0.0, help="sigma in pixels of a blur of both")
    parser.add_argument("--split", default="validation", help="of data sets")
    data_flags.add_keys(parser)
    parser.add_argument("--batch", type=int, default=64, help="images at once")
    return parser


def add_sampling(parser: Parser) -> Parser:
    """Adds the models and the settings of images that are sampled."""
    add = parser.add_argument
    flags.add_models(parser, digests=False)
    add("--out", type=pathlib.Path, required=True, help="folder to write")
    flags.add_prior(parser)
    add("--condition", default="prior", help="source of z_img: prior or z_txt")
    add("--guidance", type=float, help="of the decoder; default: exported")
    add("--steps", help="of the decoder: 25, ddim50, ...; default: exported")
    add("--sampler", help="of the decoder: ddim, dpmpp_2m, ...; default: exported")
    add("--seed", type=int, default=0, help="of all random numbers")
    add("--batch", type=int, default=50, help="images at once")
    add("--part", type=int, default=500, help="images per file")
    return parser


def statistics_parser() -> Parser:
    """Returns the parser of `statistics`."""
    parser = Parser("evaluate statistics", description="Write the statistics of a set of images.")
    return add_set(add_features(add_images(parser)))


def pack_parser() -> Parser:
    """Returns the parser of `pack`."""
    parser = Parser("evaluate pack", description="Write a set of images as an .npz batch.")
    return add_set(add_images(parser))


def sweep_parser() -> Parser:
    """Returns the parser of `sweep`."""
    parser = Parser(
        "evaluate sweep",
        description="Score a cascade over guidance, steps and samplers of its decoder.",
    )
    add = parser.add_argument
    flags.add_models(parser, digests=False)
    data_flags.add(parser)
    add("--out", type=pathlib.Path, required=True, help="folder to write")
    add("--guidance", default="1", help="comma-separated scales, 1 = off")
    add("--steps", help="comma-separated, such as 10,25,ddim50; default: exported")
    add("--sampler", help="comma-separated, such as ddim,dpmpp_2m; default: exported")
    add("--features", help="inception:FILE or clip:EXPORT; default: the models' CLIP")
    add("--resize", default="tf1", help="of inception: tf1, torch, clean")
    flags.add_prior(parser)
    add("--condition", default="prior", help="source of z_img: prior, z_txt or z_img")
    add("--split", default="validation", help="of the data set")
    add("--num", type=int, default=200, help="captions")
    add("--images", type=int, default=2, help="images per caption")
    add("--reference", type=int, help="real images; default: all of the split")
    add("--seed", type=int, default=0, help="of all random numbers")
    add("--batch", type=int, default=50, help="images at once")
    add("--keep", action="store_true", help="keep the images, as .npz batches")
    return parser


def plot_parser() -> Parser:
    """Returns the parser of `plot`."""
    parser = Parser("evaluate plot", description="Plot sweeps together.")
    parser.add_argument("sweeps", nargs="+", type=pathlib.Path, help="folders that `sweep` wrote")
    parser.add_argument(
        "--out", type=pathlib.Path, default=pathlib.Path("sweeps.png"), help="PNG to write"
    )
    return parser


def coco_parser() -> Parser:
    """Returns the parser of `coco`."""
    parser = add_sampling(Parser("evaluate coco", description="Zero-shot FID on MS-COCO."))
    add = parser.add_argument
    add("--captions", type=pathlib.Path, required=True, help="captions_val2014.json, or alike")
    add("--real", required=True, help="folder val2014, an .npz batch or .npz statistics")
    data_flags.add_keys(parser)
    add("--features", required=True, help="inception:FILE or clip:EXPORT")
    add("--resize", default="tf1", help="to 299: tf1, torch, clean")
    add("--num", type=int, default=30_000, help="captions to sample")
    add("--size", type=int, default=256, help="side at which images are compared")
    return parser


def prompts_parser() -> Parser:
    """Returns the parser of `prompts`."""
    parser = Parser("evaluate prompts", description="Sample and score prompts by category.")
    kinds = "TSV, CSV or JSONL of prompt and category, or prompts alone, one per line"
    parser.add_argument("file", type=pathlib.Path, help=kinds)
    parser.add_argument("--images", type=int, default=4, help="images per prompt")
    return add_sampling(parser)


def rerank_parser() -> Parser:
    """Returns the parser of `rerank`."""
    parser = Parser("evaluate rerank", description="Score the best of n images by CLIP, over n.")
    add = parser.add_argument
    add("--models", type=pathlib.Path, required=True, help="run directory")
    data_flags.add(parser)
    flags.add_prior(parser)
    add("--split", default="validation", help="of the data set")
    add("--num", type=int, default=64, help="captions")
    add("--candidates", type=int, default=64, help="images per caption")
    add("--guidance", type=float, help="scale; default: exported")
    add("--seed", type=int, default=0, help="of all random numbers")
    add("--batch", type=int, default=64, help="images at once")
    add("--out", type=pathlib.Path, help="JSON to write")
    return parser


def pairs_parser() -> Parser:
    """Returns the parser of `pairs`."""
    parser = Parser("evaluate pairs", description="Judge priors between embedding spaces.")
    add = parser.add_argument
    add("runs", nargs="+", type=pathlib.Path, help="workdirs or exports of embedding_prior")
    add("--x", required=True, help="conditions, as config.data.x")
    add("--y", required=True, help="targets, as config.data.y")
    add("--groups", default="", help="as config.data.groups")
    add("--subjects", default="", help="as config.data.subjects")
    add("--splits", default="", help="as config.data.splits")
    add("--eval-share", type=float, default=0.1, help="as config.data.eval_share; 1 = all pairs")
    add("--bad-rows", default="reject", help="as config.data.bad_rows")
    add("--repeats", default="each", help="as config.data.repeats")
    add("--out", type=pathlib.Path, required=True, help="folder to write")
    add("--num", type=int, default=16, help="samples per pair")
    add("--most", type=int, default=2000, help="pairs that are judged")
    add("--pool", type=int, default=300, help="candidates of retrieval")
    add("--guidance", type=float, help="scale; default: exported")
    add("--steps", help="of sampling; default: exported")
    add("--seed", type=int, default=0, help="of all random numbers")
    return parser


def compare_parser() -> Parser:
    """Returns the parser of `compare`."""
    parser = Parser("evaluate compare", description="Compare two models side by side, blind.")
    kinds = "output of `evaluate prompts`"
    parser.add_argument("a", type=pathlib.Path, metavar="DIR_A", help=f"{kinds}: model A")
    parser.add_argument("b", type=pathlib.Path, metavar="DIR_B", help=f"{kinds}: model B")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder to write")
    parser.add_argument("--seed", type=int, default=0, help="of the sides")
    return parser


def judge_parser() -> Parser:
    """Returns the parser of `judge`."""
    parser = Parser("evaluate judge", description="Ask raters on a local page.")
    parser.add_argument("folder", type=pathlib.Path, help="folder that `compare` wrote")
    parser.add_argument("--rater", default="", help="the only one; default: the page asks")
    parser.add_argument("--category", help="of the prompts to judge; default: all")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 lets other machines in")
    parser.add_argument("--port", type=int, default=7861)
    return parser
