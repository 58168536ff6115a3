"""The tier on a project of two lines: what counts as caught, and that the tree stays as it is."""

import contextlib

import pytest

from tests.mutation import __main__ as command
from tests.mutation import runner
from tests.mutation.operators import Mutant

SOURCE = """
def half(x):
    return x / 2


def unused(x):
    return x * 3
"""
TEST = """
from unclip_jax.data import numbers


def test_other():
    assert numbers.half(0) == 0


def test_half():
    assert numbers.half(4) == 2
"""
CHANGES = {  # replacement of "x / 2" -> status
    "x / 2.0": "passed",
    "x": "failed",
    "(": "failed",
    "sum(iter(int, 1))": "timeout",
    "[b'x' * (300 << 20), sum(iter(int, 1))]": "memory",
    "__import__('os').abort()": "crashed",
}


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    root = tmp_path_factory.mktemp("project")
    for folder in ("unclip_jax/data", "tests/data", "experiments"):
        (root / folder).mkdir(parents=True)
    (root / "unclip_jax/data/numbers.py").write_text(SOURCE)
    (root / "tests/data/test_numbers.py").write_text(TEST)
    return root


@pytest.fixture(scope="module")
def servers(tree):
    with runner.Servers(tree, 1, preload=()) as servers:
        yield servers


@pytest.fixture
def server(servers):
    with servers.acquire() as server:
        yield server


def mutant(after: str, before: str = "x / 2") -> Mutant:
    offset = SOURCE.index(before)
    line = SOURCE.count("\n", 0, offset) + 1
    return Mutant("unclip_jax/data/numbers.py", line, "listed", before, after, offset)


def own_tests(tree) -> list[str]:
    return runner.tests_of(tree, "data")


@pytest.fixture(scope="module")
def reach(tree, servers):
    reach = runner.Reach(tree, tree / ".mutants" / "reach.json")
    assert [file for file, _ in reach.record(servers, own_tests(tree))]
    assert not list(reach.record(servers, own_tests(tree)))  # nothing has changed
    return reach


@pytest.mark.parametrize(("after", "status"), CHANGES.items())
def test_what_counts_as_caught(server, after, status):
    limits = {"timeout": 2.0 if status == "timeout" else 30.0, "memory": 250 << 20}
    with server.mutated(mutant(after)):
        result = server.run(["tests/data/test_numbers.py"], **limits)
    assert (server.folder / mutant(after).path).read_text() == SOURCE
    assert result["status"] == status, result
    assert runner.Outcome(mutant(after), result["status"]).caught == (status != "passed")


def test_the_failing_test_is_named_and_those_that_reach_the_line_come_first(tree, servers, reach):
    result = runner.outcome(servers, reach, mutant("x"), tests=own_tests(tree))
    assert (result.status, result.test) == ("failed", "tests/data/test_numbers.py::test_half")
    assert "assert 4 == 2" in result.reason or "AssertionError" in result.reason
    files, first, _ = reach.select(mutant("x"), own_tests(tree))
    assert files == ["tests/data/test_numbers.py"]
    assert first == [f"{files[0]}::test_other", f"{files[0]}::test_half"]


def test_a_line_that_no_test_reaches_survives_without_a_run(tree, servers, reach):
    result = runner.outcome(servers, reach, mutant("x * 4", "x * 3"), tests=own_tests(tree))
    assert result.status == "unreached" and not result.caught


def test_the_tree_stays_as_it_is_and_the_report_has_every_survivor(
    tree, reach, capsys, monkeypatch
):
    before = {path: path.read_bytes() for path in tree.rglob("*.py")}
    monkeypatch.setattr(runner, "PRELOADED", ())
    arguments = ["--num=100", "--package=data", "--least=0.99"]
    assert command.main(arguments, root=tree) == 1
    assert before == {path: path.read_bytes() for path in tree.rglob("*.py")}
    report = capsys.readouterr().out
    assert "survived (unreached): unclip_jax/data/numbers.py:7\n-    return x * 3" in report
    assert "-    return x / 2" not in report  # by a factor, a sign or a constant: all caught
    assert command.main(["--num=0", "--package=data"], root=tree) == 0
    results = (tree / ".mutants" / "results.jsonl").read_text().splitlines()
    assert len(results) == len(runner.generated(tree, ["data"]))


def test_survivors_are_run_again_and_leave_the_list_once_they_are_caught(
    tree, reach, capsys, monkeypatch
):
    monkeypatch.setattr(runner, "PRELOADED", ())
    command.main(["--num=100", "--package=data", "--out=survivors.jsonl"], root=tree)
    num_survivors = capsys.readouterr().out.count("survived (")
    arguments = ["--survivors", "--package=data", "--out=survivors.jsonl"]
    file = tree / "tests/data/test_unused.py"
    file.write_text(
        "from unclip_jax.data import numbers\n\n\n"
        "def test_unused():\n    assert numbers.unused(5) == 15\n"
    )
    assert command.main([*arguments, "--least=1.0"], root=tree) == 0
    assert f"{num_survivors:>5}   1.00" in capsys.readouterr().out
    assert not command.survivors(tree / "survivors.jsonl")
    file.unlink()


def test_without_results_there_are_no_survivors_to_run(tree, capsys):
    with pytest.raises(SystemExit):
        command.main(["--survivors", "--out=nothing.jsonl"], root=tree)
    assert "there is no nothing.jsonl; run a sample of mutants first" in capsys.readouterr().err


def test_a_test_that_fails_without_a_mutant_ends_the_run_in_one_line(tmp_path):
    (tmp_path / "test_x.py").write_text("")

    class Server:
        @contextlib.contextmanager
        def acquire(self):
            yield self

        def run(self, tests, **options):
            lines = {"import": [["a.py", line] for line in range(1000)]}
            failed = {"test": f"{tests[0]}::test_y", "reason": "test_x.py:3: AssertionError"}
            return {"status": "failed", "lines": lines, "durations": {}, **failed}

    records = runner.Reach(tmp_path, tmp_path / "reach.json").record(Server(), ["test_x.py"])
    message = "^test_x.py fails without a mutant: test_x.py::test_y, test_x.py:3: AssertionError$"
    with pytest.raises(RuntimeError, match=message):
        next(records)
