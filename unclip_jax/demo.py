"""Serves a page and an HTTP API that sample and edit images with trained models.

    python -m unclip_jax.demo --models=runs/shapes

needs the extra `demo` (`pip install 'unclip_jax[demo]'`). docs/page.md describes both.
"""

import argparse
import importlib.util
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from unclip_jax.cli import entry, flags
from unclip_jax.cli.parser import Parser
from unclip_jax.core.checks import UserError, in_range, positive
from unclip_jax.data.embeddings import EmbeddingSource
from unclip_jax.engine.request_base import MAX_IMAGES
from unclip_jax.serving.schemas import Limits

EMBEDDINGS = "embeddings/train"  # of a run directory


def parser() -> Parser:
    """Returns the parser of the command."""
    parser = Parser("demo", description="Serve a page and an HTTP API.")
    flags.add_models(parser)
    parser.add_argument("--prior", default="prior", help="which prior: prior or prior_ar")
    parser.add_argument(
        "--host", default="127.0.0.1", help="0.0.0.0 lets other machines in; there is no password"
    )
    parser.add_argument("--port", type=int, default=7860)
    parser.add_argument("--batch", type=int, default=4, help="images at once")
    parser.add_argument("--max-images", type=int, default=Limits.images, help="per request")
    parser.add_argument("--max-waiting", type=int, default=Limits.waiting, help="requests in line")
    parser.add_argument(
        "--embeddings",
        type=pathlib.Path,
        help=f"a split that `embed` wrote, for probe-pca; default: MODELS/{EMBEDDINGS}, if there",
    )
    return parser


def main(argv: Sequence[str]) -> None:
    """Loads the models and serves until ctrl-C."""
    args = parser().parse_args(argv)
    check(args)
    service = open_service(args)
    import uvicorn  # pyright: ignore[reportMissingImports]

    from unclip_jax.serving import page

    sys.stdout.write(f"{service.name} at http://{args.host}:{args.port} (API below /api)\n")
    uvicorn.run(page.app(service), host=args.host, port=args.port, log_level="warning")


def check(args: argparse.Namespace) -> None:
    """Refuses what cannot be served, before anything is loaded.

    Raises:
        UserError: naming the argument, or the extra that is not installed.
    """
    in_range("--port", args.port, 1, 65535)
    positive("--batch", args.batch)
    in_range("--max-images", args.max_images, 1, MAX_IMAGES)
    in_range("--max-waiting", args.max_waiting, 0, 1000)
    if importlib.util.find_spec("gradio") is None:
        raise UserError(
            "the page needs Gradio, which is not installed; run `pip install 'unclip_jax[demo]'`, "
            "in a checkout `pip install -e '.[demo]'`."
        )
    args.models = flags.run_directory(args.models)
    if args.embeddings is not None:
        EmbeddingSource(args.embeddings)
    elif (args.models / EMBEDDINGS).is_dir():
        args.embeddings = args.models / EMBEDDINGS


def open_service(args: argparse.Namespace) -> Any:
    """Loads the models; returns the `InferenceService`.

    Raises:
        UserError: a stage is missing, damaged, or does not fit the others.
    """
    from unclip_jax.engine.inference_engine import InferenceEngine
    from unclip_jax.serving.service import InferenceService

    return InferenceService(
        InferenceEngine.open(args.models, prior=args.prior, batch=args.batch),
        name=args.models.resolve().name,
        limits=Limits(images=args.max_images, waiting=args.max_waiting),
        embeddings=args.embeddings,
    )


if __name__ == "__main__":
    entry.run(lambda: main(sys.argv[1:]))
