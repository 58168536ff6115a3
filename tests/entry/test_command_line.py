"""The list of commands, their help, and completion in shells."""

import pathlib
import shlex
import shutil
import subprocess
import sys

import pytest

import unclip_jax
from unclip_jax import __main__ as command_line
from unclip_jax.cli import shell_completion
from unclip_jax.cli.parser import Parser
from unclip_jax.core.checks import UserError

PACKAGE = pathlib.Path(unclip_jax.__file__).parent


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_every_command_is_listed():
    modules = {path.stem for path in PACKAGE.glob("*.py")}
    modules |= {path.parent.name for path in PACKAGE.glob("*/__main__.py")}
    others = {"__init__", "__main__", "version", "experiment"}  # the last serves launch/cascade
    assert modules - others == set(command_line.COMMANDS)


@pytest.mark.parametrize("argv", [[], ["--help"]])
def test_the_list_has_one_line_per_command(capsys, argv):
    command_line.run(argv)
    lines = capsys.readouterr().out.splitlines()
    for name, summary in command_line.COMMANDS.items():
        assert [line for line in lines if line.split()[:1] == [name]] == [f"  {name:10}  {summary}"]
    assert max(map(len, lines)) <= 80


def test_the_version_is_printed(capsys):
    command_line.run(["--version"])
    assert capsys.readouterr().out == f"unclip_jax {unclip_jax.__version__}\n"


def test_a_misspelt_command_is_one_line_with_a_suggestion():
    process = python("-m", "unclip_jax", "trian", "--config=prior:tiny")
    assert process.returncode == 2
    assert process.stderr == "error: unknown command 'trian'. Did you mean 'train'?\n"


def test_a_command_gets_its_arguments(tmp_path):
    process = python("-m", "unclip_jax", "train", "--config=priro:tiny", f"--workdir={tmp_path}")
    assert process.returncode == 2
    assert "no experiment 'priro'. Did you mean 'prior'?" in process.stderr


@pytest.mark.parametrize("name", command_line.COMMANDS)
def test_help_starts_no_jax(name):
    code = (
        "import sys; from unclip_jax import __main__ as m\n"
        "try: m.run([sys.argv[1], '--help'])\n"
        "except SystemExit as end: assert not end.code\n"
        "sys.stderr.write(str('jax' in sys.modules))"
    )
    process = python("-c", code, name)
    assert (process.returncode, process.stderr) == (0, "False")
    assert process.stdout.startswith("usage: python -m unclip_jax")


@pytest.mark.parametrize("name", command_line.COMMANDS)
def test_help_describes_every_argument_and_states_its_default(name):
    parser = command_line.module(name).parser()
    text = " ".join(parser.format_help().split())
    assert parser.description and "default: []" not in text
    for action in parser._actions:
        assert action.help, action.dest
        silent = action.nargs == 0 or action.default in (None, "", []) or action.required
        assert silent or not action.option_strings or f"default: {action.default}" in text


def test_parsers_repeat_the_defaults_of_modules_that_need_jax():
    from unclip_jax.experiment import analytic_variance, sampling_grid

    for command, module in (("analytic", analytic_variance), ("steps", sampling_grid)):
        parser = command_line.module(command).parser()
        assert parser.get_default("examples") == module.EXAMPLES


@pytest.fixture(scope="module")
def scripts() -> dict[str, str]:
    """The completion script of every shell, for two commands and a subcommand."""
    parsers = {name: command_line.module(name).parser() for name in ("train", "plan")}
    parsers["plan report"] = Parser("plan report")
    parsers["plan report"].add_argument("--format", choices=("text", "json"), help="it's [one]: %")
    summaries = {name: command_line.COMMANDS[name] for name in ("train", "plan")}
    return {
        shell: shell_completion.script(shell, parsers, summaries=summaries)
        for shell in shell_completion.SHELLS
    }


def completions(shell: str, script: pathlib.Path, line: str) -> list[str]:
    """Words that a shell offers at the end of a command line."""
    if shell == "bash":
        words = [shlex.quote(word) for word in line.split(" ")]
        code = f"source {script}; COMP_WORDS=({' '.join(words)}); "
        code += f'COMP_CWORD={len(words) - 1}; _unclip; printf "%s\\n" "${{COMPREPLY[@]}}"'
    else:
        code = f"source {script}; complete -C '{line}'"
    process = subprocess.run([shell, "-c", code], capture_output=True, text=True, check=True)
    return [word.split("\t")[0] for word in process.stdout.splitlines() if word]


@pytest.mark.parametrize("shell", ["bash", "fish"])
@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("unclip tr", ["train"]),
        ("unclip plan --wh", ["--what"]),
        ("unclip plan --what ", ["train", "sample"]),
        ("unclip train --what", []),
        ("unclip plan re", ["report"]),
        ("unclip plan report --form", ["--format"]),
        ("unclip plan report --wh", []),
        ("unclip plan --form", []),
        ("unclip completion z", ["zsh"]),
    ],
)
def test_commands_flags_and_choices_are_completed(shell, line, words, scripts, tmp_path):
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    (tmp_path / "script").write_text(scripts[shell])
    files = {path.name for path in pathlib.Path().iterdir()}
    assert sorted({*completions(shell, tmp_path / "script", line)} - files) == sorted(words)


@pytest.mark.parametrize("shell", shell_completion.SHELLS)
def test_a_completion_script_is_valid(shell, scripts, tmp_path):
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    (tmp_path / "script").write_text(scripts[shell])
    command = [shell, "-n", tmp_path / "script"]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (process.returncode, process.stderr) == (0, "")


@pytest.mark.parametrize("arguments", [[], ["csh"]])
def test_an_unknown_shell_is_one_line(arguments):
    with pytest.raises(UserError, match="unknown shell for `completion`"):
        command_line.completion(arguments)
