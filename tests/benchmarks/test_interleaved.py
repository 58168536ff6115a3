"""Two processes in turns: their order, their ratios, and one that ends too early."""

import pytest

from benchmarks import interleaved
from unclip_jax.core.checks import UserError

MODULE = "tests.benchmarks.side"


def side(tmp_path, name, seconds=0.0, **more):
    task = {"name": name, "seconds": seconds, "log": str(tmp_path / "log"), **more}
    return interleaved.Side(name, MODULE, task)


def test_sides_work_in_turns(tmp_path, monkeypatch):
    monkeypatch.setattr(interleaved, "REST", 0.0)
    sides = [side(tmp_path, "a", 0.02), side(tmp_path, "b", 0.08)]
    result = interleaved.alternate(sides, rounds=3, count=2)
    peaks = [each.close() for each in sides]
    assert (tmp_path / "log").read_text() == "ab" + 3 * "aabb"  # one each that is not counted
    assert [each.facts for each in sides] == [{"name": "a"}, {"name": "b"}]
    assert {name: len(spent) for name, spent in result.items()} == {"a": 3, "b": 3}
    assert min(each.wall for each in result["a"]) >= 0.02
    assert min(each.wall for each in result["b"]) >= 0.08
    assert all(each.cpu < each.wall for each in result["b"])  # it sleeps
    assert all(2**20 < peak < 2**30 for peak in peaks)  # an interpreter, in bytes


def test_ratios_are_between_neighbouring_turns():
    theirs = [interleaved.Duration(2.0, 3.0), interleaved.Duration(8.0, 3.0)]
    result = interleaved.ratios(
        theirs, [interleaved.Duration(1.0, 2.0), interleaved.Duration(2.0, 4.0)]
    )
    assert result == {"wall": [2.0, 4.0], "cpu": [1.5, 0.75]}


def test_a_side_that_ends_is_named(tmp_path):
    with pytest.raises(UserError, match="b ended with status 3 before it answered"):
        side(tmp_path, "b", fails=True)


def test_the_middle_and_the_ends_of_what_was_measured():
    result = interleaved.spread([3.0, 1.0, 10.0])
    assert result == {"median": 3.0, "least": 1.0, "greatest": 10.0}
