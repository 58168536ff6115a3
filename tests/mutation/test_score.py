"""The mutation score of a sample of the code, and the mutants of the list."""

import pytest

from tests.mutation import __main__ as command

pytestmark = pytest.mark.nightly


def test_tests_catch_most_of_a_sample_of_mutants(capsys):
    assert command.main(["--num=60", "--seed=0", "--least=0.85"]) == 0, capsys.readouterr().out


def test_tests_catch_every_listed_mutant(capsys):
    assert command.main(["--listed", "--least=1.0"]) == 0, capsys.readouterr().out
