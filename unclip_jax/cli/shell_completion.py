"""Scripts that complete commands, flags and choices of `unclip` in bash, zsh and fish.

The words are taken from the parsers when the script is printed, so completing starts no Python.
Everything else completes to file names.
"""

import argparse
import dataclasses
import shlex
from collections.abc import Iterator, Mapping


@dataclasses.dataclass(frozen=True)
class Flag:
    """A flag as a shell completes it.

    Attributes:
        name: with its hyphens.
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
        parsers: command -> its parser.
        summaries: command -> one line about it.
    """
    commands = {name: list(flags(parser)) for name, parser in parsers.items()}
    return {"bash": _bash, "zsh": _zsh, "fish": _fish}[shell](commands, summaries)


def flags(parser: argparse.ArgumentParser) -> Iterator[Flag]:
    """Yields the long flags of a parser."""
    for action in parser._actions:
        for name in action.option_strings:
            if name.startswith("--") and action.help != argparse.SUPPRESS:
                summary = " ".join((action.help or "").split()).replace("%(default)s", "")
                choices = tuple(map(str, action.choices or ()))
                yield Flag(name, summary, action.nargs != 0, choices)


def _bash(commands: Mapping[str, list[Flag]], summaries: Mapping[str, str]) -> str:
    cases = "\n".join(
        f"        {name}) words={shlex.quote(' '.join(flag.name for flag in listed))} ;;"
        for name, listed in commands.items()
    )
    choices = "\n".join(
        f"        '{name} {flag.name}') words={shlex.quote(' '.join(flag.choices))} ;;"
        for name, listed in commands.items()
        for flag in listed
        if flag.choices
    )
    return f"""# eval "$(unclip completion bash)"
_unclip() {{
    local word=${{COMP_WORDS[COMP_CWORD]}} flag=${{COMP_WORDS[COMP_CWORD-1]}} words=
    if [ "$COMP_CWORD" -eq 1 ]; then
        COMPREPLY=($(compgen -W '{" ".join(commands)} completion' -- "$word"))
        return
    fi
    [ "$flag" = = ] && flag=${{COMP_WORDS[COMP_CWORD-2]}}
    [ "$word" = = ] && word=
    case "${{COMP_WORDS[1]}}" in
        completion) words='bash zsh fish' ;;
{cases}
    esac
    case "$word" in -*) ;; *) [ "${{COMP_WORDS[1]}}" = completion ] || words= ;; esac
    case "${{COMP_WORDS[1]}} $flag" in
{choices}
    esac
    COMPREPLY=($(compgen -W "$words" -- "$word"))
}}
complete -o default -F _unclip unclip
"""


def _zsh(commands: Mapping[str, list[Flag]], summaries: Mapping[str, str]) -> str:
    def argument(flag: Flag) -> str:
        summary = flag.summary.translate({ord(c): f"\\{c}" for c in r"[]\:"})
        values = f"({' '.join(flag.choices)})" if flag.choices else "_files"
        value = f":value:{values}" if flag.takes_value else ""
        return shlex.quote(f"{flag.name}{'=' if flag.takes_value else ''}[{summary}]{value}")

    cases = "\n".join(
        f"        {name}) _arguments {' '.join(map(argument, listed))} '*:file:_files' ;;"
        for name, listed in commands.items()
    )
    names = " ".join(shlex.quote(f"{name}:{summaries[name]}") for name in commands)
    return f"""#compdef unclip
# eval "$(unclip completion zsh)", after compinit
_unclip() {{
    local -a commands
    commands=({names} 'completion:print a script like this one')
    if (( CURRENT == 2 )); then
        _describe command commands
        return
    fi
    local command=$words[2]
    shift words
    (( CURRENT-- ))
    case $command in
        completion) _values shell bash zsh fish ;;
{cases}
    esac
}}
compdef _unclip unclip
"""


def _fish(commands: Mapping[str, list[Flag]], summaries: Mapping[str, str]) -> str:
    def line(name: str, flag: Flag) -> str:
        value = f" -x -a {shlex.quote(' '.join(flag.choices))}" if flag.choices else " -r"
        return (
            f"complete -c unclip -n '__fish_seen_subcommand_from {name}' "
            f"-l {flag.name.removeprefix('--')}{value if flag.takes_value else ''} "
            f"-d {_fish_quoted(flag.summary)}"
        )

    lines = ["# unclip completion fish | source"]
    for name, summary in {**summaries, "completion": "print a script like this one"}.items():
        lines.append(
            f"complete -c unclip -f -n __fish_use_subcommand -a {name} -d {_fish_quoted(summary)}"
        )
    shells = "-n '__fish_seen_subcommand_from completion' -a 'bash zsh fish'"
    lines.append(f"complete -c unclip -f {shells}")
    lines += [line(name, flag) for name, listed in commands.items() for flag in listed]
    return "\n".join(lines) + "\n"


def _fish_quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
