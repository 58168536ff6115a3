"""Flags that several commands share, and their checks."""

import argparse
import os
import pathlib
from collections.abc import Sequence
from typing import Any

from unclip_jax.core.checks import UserError
from unclip_jax.core.digests import SKIP
from unclip_jax.core.storage import Location, location
from unclip_jax.engine.request_fields import MAX_TEXT


def add_models(
    parser: argparse.ArgumentParser,
    *,
    public: bool = False,
    digests: bool = True,
    several: bool = False,
) -> None:
    """Adds --models, for `run_directory` or `run_directories`, and --skip-digests.

    Args:
        parser: the parser.
        public: True also mentions Karlo's folder in the help.
        digests: False leaves out --skip-digests.
        several: True accepts several run directories.
    """
    where = "run directory or its URL, or Karlo's" if public else "run directory or its URL"
    if several:
        where = "run directories or their URLs"
    parser.add_argument(
        "--models",
        type=location,
        nargs="+" if several else None,
        help=f"{where} (default: {'all' if several else 'the'} models installed with unclip)",
    )
    if digests:
        add_skip_digests(parser)


def parse_share(text: str) -> tuple[int, int]:
    """Returns (I, N) of "I/N".

    Raises:
        UserError: the text has another form, or I is not below N.
    """
    first, slash, second = text.partition("/")
    if not (slash and first.isdecimal() and second.isdecimal() and int(first) < int(second)):
        raise UserError(f"--shard is {text!r}; give I/N with 0 <= I < N, such as 0/16 and 15/16.")
    return int(first), int(second)


class _Chain(argparse.Action):
    """Sets `prior` to the name of a chain, which selects its default prior."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, *_: Any
    ):
        namespace.prior = values


def add_prior(
    parser: argparse.ArgumentParser, *, default: str | None = "prior", note: str = ""
) -> None:
    """Adds --prior and --chain, which both set `prior` for `load.load_cascade`."""
    priors = f"prior to use: prior or prior_ar{note}"
    parser.add_argument("--prior", default=default, help=priors)
    parser.add_argument(
        "--chain",
        action=_Chain,
        help="chain to use, if a run has several: unclip, imagen or dalle",
    )


class _SkipDigests(argparse.Action):
    """Sets the environment variable that turns off all checks of stored digests."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, *_: object):
        os.environ[SKIP] = "1"
        setattr(namespace, self.dest, True)


def add_skip_digests(parser: argparse.ArgumentParser) -> None:
    """Adds --skip-digests, for commands that load exports or embeddings."""
    parser.add_argument(
        "--skip-digests",
        action=_SkipDigests,
        nargs=0,
        default=False,
        help=f"load files without comparing their stored digests ({SKIP}=1)",
    )


def run_directory(models: Location | None) -> pathlib.Path:
    """Returns the run directory of --models; see `shipped.run_directory`.

    Raises:
        UserError: `models` is None and no trained models are installed.
    """
    from unclip_jax.handoff import shipped

    return shipped.run_directory(models)


def run_directories(models: Sequence[Location] | None) -> list[pathlib.Path]:
    """Returns the run directories of --models with several values; None = all installed models.

    Raises:
        UserError: `models` is None and no trained models are installed.
    """
    from unclip_jax.handoff import shipped

    if models is None:
        return shipped.run_directories()
    return [shipped.run_directory(each) for each in models]


def check_captions(captions: Sequence[str]) -> None:
    """Rejects captions that are too long.

    Raises:
        UserError: naming the length.
    """
    for caption in captions:
        if len(caption) > MAX_TEXT:
            raise UserError(f"a caption has {len(caption)} characters; give at most {MAX_TEXT}.")
