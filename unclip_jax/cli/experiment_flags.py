"""The parser of commands that read an experiment: --config, overrides, and help on its keys."""

import argparse
import itertools
from collections.abc import Sequence
from typing import Any

from unclip_jax.cli.parser import Parser

HELP = {"-h", "--help"}


class ExperimentParser(Parser):
    """A parser with --config, which also accepts overrides such as --config.train.steps=7.

    With --config and --help it lists the keys of that experiment with their values.
    """

    def __init__(self, command: str, *, config_help: str = "", **options: Any):
        """Creates the parser.

        Args:
            command: see `Parser`.
            config_help: addition to the help text of --config.
            options: further arguments of `argparse.ArgumentParser`.
        """
        epilog = "Any value of the config can be overridden: --config.train.batch_size=64"
        super().__init__(command, **{"epilog": epilog, **options})
        self.add_argument(
            "--config",
            required=True,
            metavar="NAME:SIZE",
            help="experiment such as prior:shapes, or FILE.py:SIZE; without a size the paper's, or "
            "the file's default; with --help also lists its keys"
            f"{config_help}",
        )

    def parse(self, argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
        """Returns the arguments, and overrides of the config.

        Raises:
            UserError: an argument of another kind.
        """
        config = _config_of(argv)
        if config and HELP & set(argv):
            self._print_message(self.format_help())
            self._print_message(f"\nkeys of {config}:\n{self._keys(config, argv)}\n")
            self.exit()
        return self.parse_with_overrides(argv)

    def _keys(self, config: str, argv: Sequence[str]) -> str:
        """Returns a line per key of the experiment, in the form of an override."""
        from unclip_jax.experiment import loading

        overrides = [argument for argument in argv if argument.startswith("--config.")]
        return "\n".join(f"  {line}" for line in loading.list_keys(config, overrides=overrides))


def _config_of(argv: Sequence[str]) -> str:
    """Returns the value of --config, or "" without one."""
    for argument, following in itertools.pairwise([*argv, ""]):
        if argument.startswith("--config="):
            return argument.removeprefix("--config=")
        if argument == "--config" and not following.startswith("-"):
            return following
    return ""
