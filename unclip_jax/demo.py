"""Serves a page and an HTTP API that sample and edit images with trained models.

    python -m unclip_jax.demo --models=runs/shapes

needs the extra `demo` (`pip install 'unclip_jax[demo]'`). docs/page.md describes both.
"""

import argparse
import os
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from unclip_jax.cli import compilation_cache, entry, flags
from unclip_jax.cli.parser import Parser
from unclip_jax.core.checks import UserError, in_range, positive
from unclip_jax.data.embeddings import EmbeddingSource
from unclip_jax.engine import example_captions
from unclip_jax.engine.request_base import MAX_IMAGES
from unclip_jax.serving import extra
from unclip_jax.serving.schemas import RequestLimits

EMBEDDINGS = "embeddings/train"  # of a run directory
TOKEN = "UNCLIP_TOKEN"  # the variable that may hold the token


def parser() -> Parser:
    """Returns the parser of the command."""
    parser = Parser("demo", description="Serve a page and an HTTP API.")
    flags.add_models(parser, several=True)
    flags.add_prior(parser)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 = all")
    parser.add_argument("--port", type=int, default=7860, help="port to listen on")
    parser.add_argument(
        "--token",
        help=f"secret that clients must send; also read from the variable {TOKEN}",
    )
    parser.add_argument(
        "--root-path", default="", help="path below which a proxy serves the page, such as /unclip"
    )
    parser.add_argument(
        "--allow-host",
        nargs="+",
        default=[],
        metavar="NAME",
        help="names of this server beside localhost, such as the proxy's; on other hosts than "
        "127.0.0.1 every name is allowed by default",
    )
    parser.add_argument("--batch", type=int, default=4, help="images per batch")
    parser.add_argument(
        "--max-images", type=int, default=RequestLimits.images, help="images per request"
    )
    parser.add_argument(
        "--max-waiting", type=int, default=RequestLimits.waiting, help="requests in the queue"
    )
    parser.add_argument(
        "--max-seconds",
        type=float,
        default=RequestLimits.seconds,
        help="seconds that a request may run",
    )
    parser.add_argument(
        "--no-warm-up",
        action="store_true",
        help="compile nothing before the first request",
    )
    parser.add_argument(
        "--embeddings",
        type=pathlib.Path,
        help="a split that `embed` wrote, for probe-pca, if one run is served; default: "
        f"{EMBEDDINGS} of every run",
    )
    return parser


def main(argv: Sequence[str]) -> None:
    """Binds the address, loads the models and serves until ctrl-C."""
    args = parser().parse_args(argv)
    check(args)
    from unclip_jax.serving import api, server

    access = access_of(args)
    with server.take_address(args.host, args.port) as listener:
        services = open_services(args)
        if not args.no_warm_up:
            services[0].warm_up()  # others would delay the first request
        names = " and ".join(service.name for service in services)
        lines = [f"{names} at {server.url(args.host, args.port, args.root_path)}"]
        lines.append("(API below /api)\n")
        sys.stdout.write(" ".join(lines))
        if not access.token and not server.is_local(args.host):
            sys.stdout.write(
                "anyone who reaches this port can use it; --token=SECRET requires a token.\n"
            )
        sys.stdout.flush()
        server.serve(api.app(services, access), listener)


def check(args: argparse.Namespace) -> None:
    """Checks the arguments before anything is loaded.

    Raises:
        UserError: naming the argument, or the extra that is not installed.
    """
    in_range("--port", args.port, 1, 65535)
    positive("--batch", args.batch)
    in_range("--max-images", args.max_images, 1, MAX_IMAGES)
    in_range("--max-waiting", args.max_waiting, 0, 1000)
    in_range("--max-seconds", args.max_seconds, 1, 1e6)
    extra.check_installed()
    args.models = flags.run_directories(args.models)
    names = [_name(run) for run in args.models]
    if len({*names}) < len(names):
        raise UserError(
            f"--models have the names {', '.join(names)}, and requests choose among them by name; "
            "rename folders, so that all names differ."
        )
    if args.embeddings is not None:
        if len(names) > 1:
            raise UserError(
                f"--embeddings are those of one run, and {len(names)} are served "
                f"({', '.join(names)}); give one with --models."
            )
        EmbeddingSource(args.embeddings)


def access_of(args: argparse.Namespace) -> Any:
    """Returns the `Access` that the arguments describe.

    Raises:
        UserError: a token or a path that cannot be part of an HTTP request.
    """
    from unclip_jax.serving import server
    from unclip_jax.serving.access import LOCAL_HOSTS, Access

    names = tuple(name.lower() for name in args.allow_host)
    if names or server.is_local(args.host):
        names = (*LOCAL_HOSTS, *names)
    if args.token == "":
        raise UserError("--token is empty; give one, or leave the flag out.")
    token = args.token or os.environ.get(TOKEN, "")
    return Access(token=token, hosts=names, root_path=args.root_path)


def open_services(args: argparse.Namespace) -> list[Any]:
    """Loads the models; returns an `InferenceService` for each run, which share one queue.

    Raises:
        UserError: a stage is missing, damaged, or does not fit the others.
    """
    from unclip_jax.engine.inference_engine import InferenceEngine
    from unclip_jax.serving.job_queue import JobQueue
    from unclip_jax.serving.service import InferenceService

    compilation_cache.use()
    limits = RequestLimits(
        images=args.max_images, waiting=args.max_waiting, seconds=args.max_seconds
    )
    queue = JobQueue(waiting=limits.waiting)
    services = []
    for run in args.models:
        engine = InferenceEngine.open(run, prior=args.prior, batch=args.batch)
        own = run / EMBEDDINGS if (run / EMBEDDINGS).is_dir() else None
        size = next(iter(engine.loaded.manifests.values())).size
        services.append(
            InferenceService(
                engine,
                name=_name(run),
                limits=limits,
                folder=run,
                embeddings=args.embeddings or own,
                examples=example_captions.CAPTIONS.get(example_captions.world_of(size), ()),
                queue=queue,
            )
        )
    return services


def _name(run: pathlib.Path) -> str:
    return run.resolve().name


if __name__ == "__main__":
    entry.run(lambda: main(sys.argv[1:]))
