"""Scripts that complete commands, flags and choices of `unclip` in bash, zsh and fish.

Words are taken from the parsers when the script is printed, so completion starts no Python. All
other arguments complete to file names.
"""

import argparse
import dataclasses
import shlex
from collections.abc import Iterable, Iterator, Mapping

SHELLS = ("bash", "zsh", "fish")


@dataclasses.dataclass(frozen=True)
class Flag:
    """A flag, as completed by a shell.

    Attributes:
        name: name with its hyphens.
        summary: help text in one line.
        takes_value: True if a value follows.
        choices: values to offer; () = file names.
    """

    name: str
    summary: str
    takes_value: bool
    choices: tuple[str, ...]


def script(
    shell: str, parsers: Mapping[str, argparse.ArgumentParser], *, summaries: Mapping[str, str]
) -> str:
    """Returns the script for one shell.

    Args:
        shell: "bash", "zsh" or "fish".
        parsers: command, or command and subcommand ("evaluate images") -> its parser.
        summaries: command -> one line about it.
    """
    listed = {name: list(flags(parser)) for name, parser in parsers.items()}
    summaries = {**summaries, "completion": "print a script like this one"}
    return {"bash": _bash, "zsh": _zsh, "fish": _fish}[shell](listed, summaries)


def flags(parser: argparse.ArgumentParser) -> Iterator[Flag]:
    """Yields the long flags of a parser."""
    for action in parser._actions:
        for name in action.option_strings:
            if name.startswith("--") and action.help != argparse.SUPPRESS:
                summary = " ".join((action.help or "").split()).replace("%(default)s", "")
                choices = tuple(map(str, action.choices or ()))
                yield Flag(name, summary, action.nargs != 0, choices)


def subcommands(names: Iterable[str]) -> dict[str, list[str]]:
    """Returns the subcommands of every command among names such as "evaluate images"."""
    result: dict[str, list[str]] = {"completion": list(SHELLS)}
    for name in names:
        command, _, subcommand = name.partition(" ")
        if subcommand:
            result.setdefault(command, []).append(subcommand)
    return result


def _bash(listed: Mapping[str, list[Flag]], summaries: Mapping[str, str]) -> str:
    def case(name: str, words: Iterable[str]) -> str:
        return f"        '{name}') words='{' '.join(words)}' ;;"

    second = "\n".join(case(name, words) for name, words in subcommands(listed).items())
    flag_names = "\n".join(
        case(name, [flag.name for flag in offered]) for name, offered in listed.items()
    )
    choices = "\n".join(
        case(f"{name} {flag.name}", flag.choices)
        for name, offered in listed.items()
        for flag in offered
        if flag.choices
    )
    pairs = "|".join(f"'{name}'" for name in listed if " " in name) or "' '"
    return f"""# eval "$(unclip completion bash)"
_unclip() {{
    local word=${{COMP_WORDS[COMP_CWORD]}} flag=${{COMP_WORDS[COMP_CWORD-1]}} words=
    local command=${{COMP_WORDS[1]}}
    [ "$flag" = = ] && flag=${{COMP_WORDS[COMP_CWORD-2]}}
    [ "$word" = = ] && word=
    if [ "$COMP_CWORD" -gt 2 ]; then
        case "$command ${{COMP_WORDS[2]}}" in {pairs}) command="$command ${{COMP_WORDS[2]}}" ;; esac
    fi
    if [ "$COMP_CWORD" -eq 1 ]; then
        words='{" ".join(summaries)}'
    elif [[ "$word" == -* ]]; then
        case "$command" in
{flag_names}
        esac
    else
        [ "$COMP_CWORD" -eq 2 ] && case "$command" in
{second}
        esac
        case "$command $flag" in
{choices}
        esac
    fi
    COMPREPLY=($(compgen -W "$words" -- "$word"))
}}
complete -o default -F _unclip unclip
"""


def _zsh(listed: Mapping[str, list[Flag]], summaries: Mapping[str, str]) -> str:
    def argument(flag: Flag) -> str:
        summary = flag.summary.translate({ord(c): f"\\{c}" for c in r"[]\:"})
        values = f"({' '.join(flag.choices)})" if flag.choices else "_files"
        value = f":value:{values}" if flag.takes_value else ""
        return shlex.quote(f"{flag.name}{'=' if flag.takes_value else ''}[{summary}]{value}")

    nested = subcommands(listed)

    def case(name: str, offered: list[Flag]) -> str:
        words = " ".join(nested.get(name, []))
        first = f"'1:command:({words})' " if words else ""
        arguments = " ".join(map(argument, offered))
        return f"        '{name}') _arguments {arguments} {first}'*:file:_files' ;;"

    cases = "\n".join(case(name, offered) for name, offered in listed.items())
    pairs = "|".join(f"'{name}'" for name in listed if " " in name) or "' '"
    names = " ".join(shlex.quote(f"{name}:{summary}") for name, summary in summaries.items())
    return f"""#compdef unclip
# eval "$(unclip completion zsh)", after compinit
_unclip() {{
    local -a commands
    commands=({names})
    if (( CURRENT == 2 )); then
        _describe command commands
        return
    fi
    local command=$words[2]
    shift words
    (( CURRENT-- ))
    if (( CURRENT > 2 )); then
        case "$command $words[2]" in
            {pairs}) command="$command $words[2]"; shift words; (( CURRENT-- )) ;;
        esac
    fi
    case $command in
        completion) _values shell {" ".join(SHELLS)} ;;
{cases}
    esac
}}
compdef _unclip unclip
"""


def _fish(listed: Mapping[str, list[Flag]], summaries: Mapping[str, str]) -> str:
    nested = subcommands(listed)

    def condition(name: str) -> str:
        command, _, subcommand = name.partition(" ")
        text = f"__fish_seen_subcommand_from {command}"
        if subcommand:
            return f"'{text}; and __fish_seen_subcommand_from {subcommand}'"
        others = " ".join(nested.get(command, []))
        return f"'{text}; and not __fish_seen_subcommand_from {others}'" if others else f"'{text}'"

    def line(name: str, flag: Flag) -> str:
        value = f" -x -a '{' '.join(flag.choices)}'" if flag.choices else " -r"
        return (
            f"complete -c unclip -n {condition(name)} -l {flag.name.removeprefix('--')}"
            f"{value if flag.takes_value else ''} -d {_fish_quoted(flag.summary)}"
        )

    lines = ["# unclip completion fish | source"]
    for name, summary in summaries.items():
        lines.append(
            f"complete -c unclip -f -n __fish_use_subcommand -a {name} -d {_fish_quoted(summary)}"
        )
    for name, words in nested.items():
        lines.append(f"complete -c unclip -n {condition(name)} -a '{' '.join(words)}'")
    lines += [line(name, flag) for name, offered in listed.items() for flag in offered]
    return "\n".join(lines) + "\n"


def _fish_quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
