"""The argument parser of every command: one spelling of flags, one-line errors, defaults in help.

Importing it imports neither JAX nor the libraries behind the commands, so that --help is quick.
"""

import argparse
import pathlib
import re
import sys
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

from unclip_jax.core.checks import UserError, one_of, suggest
from unclip_jax.core.files import check_local
from unclip_jax.core.storage import location

_FLAG = re.compile(r"(--?[A-Za-z][\w-]*)(=.*)?", re.DOTALL)  # no dot: --config.KEY is an override


class Parser(argparse.ArgumentParser):
    """An `argparse.ArgumentParser` with the conventions of this project.

    Flags are declared with hyphens and may be typed with underscores, but not abbreviated. Help
    states defaults. Errors are raised as a one-line `UserError`, with a suggestion for a misspelt
    flag; argparse would print its usage and exit.
    """

    def __init__(self, command: str, **options: Any):
        """Creates a parser without arguments.

        Args:
            command: name as a user types it, such as "train" or "sample interpolate".
            options: further arguments of `argparse.ArgumentParser`.
        """
        options = {"prog": program(command), "formatter_class": _Help, **options}
        super().__init__(allow_abbrev=False, **options)

    def add_argument(self, *names: str, **options: Any) -> argparse.Action:
        """Adds one argument as argparse does; flags are spelled with hyphens."""
        assert not any(name.startswith("-") and "_" in name for name in names)
        if "help" not in options and _is_value(options.get("default")):
            options["help"] = "default: %(default)s"
        return super().add_argument(*names, **options)

    def parse_args(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, args: Any = None, namespace: Any = None
    ) -> Any:
        """Returns the parsed arguments.

        Raises:
            UserError: the arguments are not valid.
        """
        parsed, unknown = self.parse_known_args(args, namespace)
        if unknown:
            raise UserError(f"unexpected argument {unknown[0]!r}; {self._see_help()}")
        return parsed

    def parse_known_args(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, args: Any = None, namespace: Any = None
    ) -> Any:
        """Returns the parsed arguments, and those that are neither flags nor expected.

        Raises:
            UserError: an unknown flag, a missing argument, or a value of the wrong type.
        """
        argv = normalised(sys.argv[1:] if args is None else args)
        for flag in _flags(argv):
            if flag not in self._option_string_actions:
                raise UserError(f"unknown flag {flag!r}.{self._suggest(flag)}")
        return super().parse_known_args(argv, namespace)

    def parse_with_overrides(self, argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
        """Returns the parsed arguments, and overrides of the config: --config.KEY=VALUE.

        Raises:
            UserError: an argument of another kind.
        """
        argv = normalised(argv)
        for flag in _flags(argv):
            if flag not in self._option_string_actions:
                raise UserError(
                    f"unknown argument {_argument(argv, flag)!r}; overrides begin with --config."
                    f"{self._suggest(flag, only_near=True)}"
                )
        args, overrides = self.parse_known_args(argv)
        for argument in overrides:
            if not argument.startswith("--config."):
                raise UserError(f"unknown argument {argument!r}; overrides begin with --config.")
        return args, overrides

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Raises an error with a suggestion if `value` is not one of the choices."""
        if action.choices is not None:
            one_of(
                action.option_strings[-1] if action.option_strings else action.dest,
                value,
                action.choices,
            )

    def _get_value(self, action: argparse.Action, arg_string: str) -> Any:
        """Converts one argument; a path may not be a URL, nor a location one of another kind."""
        name = action.option_strings[-1] if action.option_strings else action.dest
        if action.type is pathlib.Path:
            check_local(name, arg_string)
        if action.type is location:  # argparse would replace the message
            try:
                return location(arg_string)
            except UserError as error:
                raise UserError(f"{name}: {error}") from None
        return super()._get_value(action, arg_string)  # pyright: ignore[reportAttributeAccessIssue]

    def error(self, message: str) -> NoReturn:
        """Raises `message` as a one-line error."""
        text = message.removeprefix("argument ")
        raise UserError(f"{text}; {self._see_help()}")

    def flags(self) -> list[str]:
        """Returns all flags except those of help."""
        return [flag for flag in self._option_string_actions if flag not in ("-h", "--help")]

    def _suggest(self, flag: str, *, only_near: bool = False) -> str:
        hint = suggest(flag, self.flags())
        if hint.startswith(" Did you mean"):
            return hint
        return "" if only_near else f" See `{self.prog} --help`."

    def _see_help(self) -> str:
        return f"see `{self.prog} --help`."


class _Help(argparse.RawDescriptionHelpFormatter):
    """A help formatter that keeps line breaks of descriptions and states defaults."""

    def _format_usage(self, usage: Any, actions: Any, groups: Any, prefix: Any) -> str:
        """Returns the usage with required arguments; the list of flags follows anyway."""
        required = [each for each in actions if each.required or not each.option_strings]
        return f"{super()._format_usage(usage, required, groups, prefix).rstrip()} [flags]\n\n"

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        silent = "default" in text or action.nargs == 0 or action.required
        if silent or not _is_value(action.default):
            return text
        return f"{text} (default: %(default)s)"


def _is_value(default: Any) -> bool:
    """Returns True if a default is worth stating."""
    return not (default is None or default is False or default in ("", argparse.SUPPRESS, [], ()))


def is_script() -> bool:
    """Returns True if this process was started with the script `unclip`, not as a Python module."""
    return pathlib.Path(sys.argv[0]).stem == "unclip"


def program(command: str) -> str:
    """Returns the command line of `command`, in the form that started this process."""
    if is_script():
        return f"unclip {command}"
    module, *subcommand = command.split(" ")
    return " ".join([f"python -m unclip_jax.{module}", *subcommand])


def normalised(argv: Iterable[str]) -> list[str]:
    """Returns the arguments with underscores in flags as hyphens: --max_side=9 is --max-side=9.

    Values, overrides (--config.train.batch_size=8) and arguments after a bare -- are not changed.
    """
    arguments, result = list(argv), []
    while arguments:
        argument = arguments.pop(0)
        if argument == "--":
            return [*result, argument, *arguments]
        match = _FLAG.fullmatch(argument)
        if match and argument.startswith("--"):
            argument = match[1].replace("_", "-") + (match[2] or "")
        result.append(argument)
    return result


def _flags(argv: Sequence[str]) -> list[str]:
    """Returns the names of flags among arguments, up to a bare --."""
    end = argv.index("--") if "--" in argv else len(argv)
    return [match[1] for argument in argv[:end] if (match := _FLAG.fullmatch(argument))]


def _argument(argv: Sequence[str], flag: str) -> str:
    """Returns the argument that contains `flag`, with its value if both are one argument."""
    return next(each for each in argv if each == flag or each.startswith(f"{flag}="))
