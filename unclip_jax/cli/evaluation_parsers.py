"""Parsers of the subcommands of `evaluate`, and the flags that several of them share."""

import pathlib

from unclip_jax.cli import data_flags, flags
from unclip_jax.cli.parser import Parser


def add_images(parser: Parser) -> Parser:
    """Adds the set of images and the .npz to write."""
    parser.add_argument("--images", required=True, help="folder of images, .npz batch or data set")
    parser.add_argument("--out", type=pathlib.Path, required=True, help=".npz to write")
    return parser


def add_features(parser: Parser) -> Parser:
    """Adds the feature extractor."""
    parser.add_argument("--features", required=True, help="inception:FILE or clip:EXPORT")
    parser.add_argument("--resize", default="tf1", help="resize to 299 x 299 as: tf1, torch, clean")
    return parser


def add_set(parser: Parser) -> Parser:
    """Adds the options of reading a set of images."""
    parser.add_argument("--size", type=int, help="resize and crop images to this side first")
    parser.add_argument("--num", type=int, help="number of images, from the start; default: all")
    parser.add_argument(
        "--blur", type=float, default=0.0, help="sigma in pixels of a blur; 0 = off"
    )
    parser.add_argument("--split", default="validation", help="split of a data set")
    data_flags.add_keys(parser)
    parser.add_argument("--batch", type=int, default=64, help="images per batch")
    return parser


def add_sampling(parser: Parser) -> Parser:
    """Adds the models and the settings of sampling."""
    add = parser.add_argument
    flags.add_models(parser, digests=False)
    add("--out", type=pathlib.Path, required=True, help="folder to write")
    flags.add_prior(parser)
    add("--condition", default="prior", help="source of z_img: prior or z_txt")
    add("--guidance", type=float, help="guidance scale; default: as exported")
    add("--steps", help="decoder steps: 25, ddim50, ...; default: as exported")
    add("--sampler", help="decoder sampler, such as ddim; default: as exported")
    add("--seed", type=int, default=0, help="random seed")
    add("--batch", type=int, default=50, help="images per batch")
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
        description="Score a cascade over settings of its decoder and upsamplers.",
    )
    add = parser.add_argument
    flags.add_models(parser, digests=False)
    data_flags.add(parser)
    add("--out", type=pathlib.Path, required=True, help="folder to write")
    add("--guidance", default="1", help="scales, comma-separated; 1 = off")
    add("--steps", help="such as 10,25,ddim50; default: as exported")
    add("--sampler", help="such as ddim,dpmpp_2m; default: as exported")
    add("--threshold", help="bounds on x_0, such as none,static,dynamic; default: as exported")
    add("--upsampler-guidance", help="scales of the upsamplers; default: as exported")
    noise = "noise on the images that upsamplers enlarge, such as 0,0.1,0.2; default: as exported"
    add("--upsampler-level", help=noise)
    add("--features", help="inception:FILE or clip:EXPORT; default: the models' CLIP")
    add("--resize", default="tf1", help="resize to 299 x 299 as: tf1, torch, clean")
    flags.add_prior(parser)
    add("--condition", default="prior", help="source of z_img: prior, z_txt or z_img")
    add("--split", default="validation", help="split of the data set")
    add("--num", type=int, default=200, help="number of captions")
    add("--images", type=int, default=2, help="images per caption")
    add("--reference", type=int, help="number of real images; default: the whole split")
    add("--seed", type=int, default=0, help="random seed")
    add("--batch", type=int, default=50, help="images per batch")
    add("--keep", action="store_true", help="store the images too, as .npz batches")
    return parser


def plot_parser() -> Parser:
    """Returns the parser of `plot`."""
    parser = Parser("evaluate plot", description="Plot several sweeps in one figure.")
    parser.add_argument("sweeps", nargs="+", type=pathlib.Path, help="folders that `sweep` wrote")
    parser.add_argument(
        "--out", type=pathlib.Path, default=pathlib.Path("sweeps.png"), help="PNG to write"
    )
    return parser


def coco_parser() -> Parser:
    """Returns the parser of `coco`."""
    parser = add_sampling(Parser("evaluate coco", description="Compute zero-shot FID on MS-COCO."))
    add = parser.add_argument
    add(
        "--captions",
        type=pathlib.Path,
        required=True,
        help="captions_val2014.json or a similar file",
    )
    add("--real", required=True, help="folder val2014, an .npz batch or .npz statistics")
    data_flags.add_keys(parser)
    add("--features", required=True, help="inception:FILE or clip:EXPORT")
    add("--resize", default="tf1", help="resize to 299 x 299 as: tf1, torch, clean")
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
    parser = Parser(
        "evaluate rerank", description="Score the best of n images by CLIP, for every n."
    )
    add = parser.add_argument
    add("--models", type=pathlib.Path, required=True, help="run directory")
    data_flags.add(parser)
    flags.add_prior(parser)
    add("--split", default="validation", help="split of the data set")
    add("--num", type=int, default=64, help="number of captions")
    add("--candidates", type=int, default=64, help="images per caption")
    add("--guidance", type=float, help="guidance scale; default: as exported")
    add("--seed", type=int, default=0, help="random seed")
    add("--batch", type=int, default=64, help="images per batch")
    add("--out", type=pathlib.Path, help="JSON to write")
    return parser


def pairs_parser() -> Parser:
    """Returns the parser of `pairs`."""
    parser = Parser("evaluate pairs", description="Evaluate priors between embedding spaces.")
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
    add("--most", type=int, default=2000, help="pairs to evaluate, at most")
    add("--pool", type=int, default=300, help="candidates per retrieval")
    add("--guidance", type=float, help="guidance scale; default: as exported")
    add("--steps", help="sampling steps; default: as exported")
    add("--seed", type=int, default=0, help="random seed")
    return parser


def compare_parser() -> Parser:
    """Returns the parser of `compare`."""
    parser = Parser("evaluate compare", description="Compare two models side by side, blind.")
    kinds = "output of `evaluate prompts`"
    parser.add_argument("a", type=pathlib.Path, metavar="DIR_A", help=f"{kinds}: model A")
    parser.add_argument("b", type=pathlib.Path, metavar="DIR_B", help=f"{kinds}: model B")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder to write")
    parser.add_argument("--seed", type=int, default=0, help="random seed of the sides")
    return parser


def judge_parser() -> Parser:
    """Returns the parser of `judge`."""
    parser = Parser("evaluate judge", description="Serve the page on which raters compare.")
    parser.add_argument("folder", type=pathlib.Path, help="folder that `compare` wrote")
    parser.add_argument("--rater", default="", help="name of the rater; default: the page asks")
    parser.add_argument("--category", help="category to answer; default: all")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 = all")
    parser.add_argument("--port", type=int, default=7861, help="port to listen on")
    return parser
