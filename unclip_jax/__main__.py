"""Lists the commands, or runs one: `unclip train ...` is `python -m unclip_jax.train ...`."""

import importlib
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import NoReturn

from unclip_jax.cli import entry, parser
from unclip_jax.cli.parser import Parser
from unclip_jax.core.checks import one_of
from unclip_jax.version import __version__

COMMANDS = {
    "prepare": "turn captioned images into a data set",
    "train": "train one stage",
    "embed": "embed a data set with a trained CLIP",
    "sample": "generate images for captions, or edit images",
    "tour": "show the abilities of trained models in a few images",
    "evaluate": "score a cascade, or compare sets of images",
    "demo": "serve a page and an HTTP API",
    "convert": "convert public weights to exports, and back",
    "bundle": "write the sampler of a cascade as one file",
    "plan": "estimate memory and time of a stage on given devices",
    "analytic": "estimate the reverse variance of a trained prior",
    "steps": "search the timesteps of a sampler of few steps",
}
HELP = """usage: {program} COMMAND [arguments]

commands (each has its own --help):
{commands}
  completion  print a script that completes commands in bash, zsh or fish

--version prints the version.
"""


def main() -> NoReturn:
    """Runs the command line and exits."""
    entry.run(lambda: run(sys.argv[1:]))


def run(argv: Sequence[str]) -> None:
    """Runs one command, or prints the list of all.

    Raises:
        UserError: no such command, or arguments that are not valid.
    """
    name, *arguments = argv or ["--help"]
    if name in ("-h", "--help", "help"):
        sys.stdout.write(overview())
    elif name == "--version":
        sys.stdout.write(f"unclip_jax {__version__}\n")
    elif name == "completion":
        sys.stdout.write(completion(arguments))
    else:
        module(one_of("command", name, [*COMMANDS, "completion"])).main(arguments)


def overview() -> str:
    """Returns the help text: one line per command."""
    program = "unclip" if parser.is_script() else "python -m unclip_jax"
    commands = "\n".join(f"  {name:10}  {summary}" for name, summary in COMMANDS.items())
    return HELP.format(program=program, commands=commands)


def module(command: str) -> ModuleType:
    """Returns the module of a command."""
    suffix = ".__main__" if command == "convert" else ""
    return importlib.import_module(f"unclip_jax.{command}{suffix}")


def parsers() -> dict[str, Parser]:
    """Returns the parsers of all commands and subcommands ("evaluate images")."""
    result: dict[str, Parser] = {}
    for name in COMMANDS:
        command = module(name)
        result[name] = command.parser()
        subparsers = command.subparsers() if hasattr(command, "subparsers") else {}
        result |= {f"{name} {subcommand}": parser for subcommand, parser in subparsers.items()}
    return result


def completion(arguments: Sequence[str]) -> str:
    """Returns the script that completes command lines in a shell.

    Raises:
        UserError: no shell is named, or an unknown one.
    """
    from unclip_jax.cli import shell_completion

    shell = one_of("shell for `completion`", " ".join(arguments), shell_completion.SHELLS)
    return shell_completion.script(shell, parsers(), summaries=COMMANDS)


if __name__ == "__main__":
    main()
