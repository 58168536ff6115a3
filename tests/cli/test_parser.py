"""One spelling of flags, errors of one line with a suggestion, defaults in help."""

import argparse
import importlib
import pathlib
import sys

import pytest

from unclip_jax.cli import parser as parsing
from unclip_jax.cli.parser import Parser
from unclip_jax.core.checks import UserError
from unclip_jax.core.storage import location


def example() -> Parser:
    parser = Parser("example", description="Does nothing.")
    parser.add_argument("inputs", nargs="*", help="files")
    parser.add_argument("--max-side", type=int, default=8, help="longest side")
    parser.add_argument("--what", choices=("train", "sample"), help="program")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder to write")
    parser.add_argument("--by-stage", action="store_true", help="one stage at a time")
    parser.add_argument("--config", help="experiment")
    return parser


@pytest.mark.parametrize("flag", ["--max-side", "--max_side"])
@pytest.mark.parametrize("form", ["{}=3", "{} 3"])
def test_hyphens_and_underscores_are_one_spelling(flag, form):
    args = example().parse_args(["--out=a_b", *form.format(flag).split()])
    assert (args.max_side, args.out) == (3, pathlib.Path("a_b"))


def test_values_overrides_and_literal_arguments_keep_their_underscores():
    argv = ["--config.train.batch_size=8", "--out", "a_b", "--out=--c_d", "--", "--e_f"]
    assert parsing.normalised(argv) == argv


def test_a_flag_declared_with_underscores_is_a_bug():
    with pytest.raises(AssertionError):
        Parser("example").add_argument("--max_side")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--max-sied=3"], "unknown flag '--max-sied'. Did you mean '--max-side'?"),
        (["--max_sied", "3"], "unknown flag '--max-sied'. Did you mean '--max-side'?"),
        (["--max=3"], "unknown flag '--max'. Did you mean '--max-side'?"),
        (["--zzzzzz"], "unknown flag '--zzzzzz'. See `.*example --help`."),
        (["-x"], "unknown flag '-x'. See `.*example --help`."),
        ([], "the following arguments are required: --out; see `.*example --help`."),
        (["--out=a", "--max-side=big"], "^--max-side: invalid int value: 'big'; see"),
        (["--out"], "--out: expected one argument; see"),
        (["--out=a", "--what=trian"], "unknown --what 'trian'. Did you mean 'train'?"),
    ],
)
def test_a_mistake_is_one_line(argv, message):
    with pytest.raises(UserError, match=message) as error:
        example().parse_args(argv)
    assert "\n" not in str(error.value)


def test_arguments_with_spaces_are_values_whatever_they_begin_with():
    assert example().parse_args(["--out=a", "--a caption--"]).inputs == ["--a caption--"]


def test_overrides_are_returned_as_typed():
    argv = ["--out=a", "--config=prior:tiny", "--config.train.batch_size=8"]
    args, overrides = example().parse_with_overrides(argv)
    assert (args.config, overrides) == ("prior:tiny", ["--config.train.batch_size=8"])


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--max_sied=3", "unknown argument '--max-sied=3'; .* --config. Did you mean '--max-side'"),
        ("--zzzzzz", "unknown argument '--zzzzzz'; overrides begin with --config.$"),
    ],
)
def test_an_argument_that_is_no_override_is_one_line(argument, message):
    with pytest.raises(UserError, match=message):
        example().parse_with_overrides(["--out=a", argument])


@pytest.mark.parametrize("command", ["train", "plan"])
def test_a_command_without_its_experiment_is_one_line(command):
    module = importlib.import_module(f"unclip_jax.{command}")
    with pytest.raises(UserError, match=r"arguments are required: --config"):
        module.main([])


def test_help_states_defaults_once():
    parser = example()
    parser.add_argument("--seed", type=int, default=0, help="seed (default: 0, always)")
    text = parser.format_help()
    assert "longest side (default: 8)" in text
    assert "seed (default: 0, always)" in text
    assert text.count("default") == 2


def test_zero_is_a_default_and_an_empty_text_is_none():
    parser = Parser("example")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--field", default="", help="name")
    parser.add_argument("--raw", action="store_true", help="raw")
    text = parser.format_help()
    assert "default: 0" in text and text.count("default") == 1


@pytest.mark.parametrize(
    ("program", "name"),
    [
        ("/bin/unclip", "unclip sample blend"),
        ("/lib/unclip_jax/sample.py", "python -m unclip_jax.sample blend"),
    ],
)
def test_usage_names_the_command_as_it_was_started(monkeypatch, program, name):
    monkeypatch.setattr(sys, "argv", [program])
    assert Parser("sample blend").prog == name


@pytest.mark.parametrize("arguments", [["--out=gs://bucket/x"], ["--out", "s3://bucket/x"]])
def test_a_url_is_rejected_where_a_path_is_expected(arguments):
    with pytest.raises(UserError, match="^--out is '(gs|s3)://bucket/x'; expected a local path"):
        example().parse_args(arguments)


def test_a_url_of_another_kind_is_rejected_with_the_reason():
    parser = Parser("train")
    parser.add_argument("--workdir", type=location)
    with pytest.raises(UserError, match="^--workdir: 'hf://me/x' is a URL of another kind"):
        parser.parse_args(["--workdir=hf://me/x"])
    with pytest.raises(UserError, match="^--workdir: 'gs://' names no bucket"):
        parser.parse_args(["--workdir=gs://"])
    assert str(parser.parse_args(["--workdir=gs://b/run"]).workdir) == "gs://b/run"


COMMANDS = [
    "analytic",
    "bundle",
    "embed",
    "evaluate",
    "plan",
    "prepare",
    "sample",
    "steps",
    "train",
]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_flag_with_the_name_of_a_path_is_checked(command):
    """A flag of type str would pass a URL on."""
    module = importlib.import_module(f"unclip_jax.{command}")
    parsers = [module.parser()]
    for own in parsers:
        for action in own._actions:
            if isinstance(action, argparse._SubParsersAction):
                parsers += action.choices.values()
            elif action.dest in ("out", "workdir", "models", "clip", "json"):
                assert action.type in (pathlib.Path, location), (own.prog, action.dest)
