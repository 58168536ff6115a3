"""The table of plans: which rows, how they are read, and that it goes on where it was stopped."""

import json
import math
import subprocess

import pytest

from benchmarks import plans
from unclip_jax.core.checks import UserError
from unclip_jax.planning import compile_target

GIB = 2**30


def case(row, **changes):
    """A plan as the command writes it, with invented figures."""
    low = row.experiment != "prior"
    return {
        "fits": True,
        "mesh": {"data": 4, "fsdp": 16, "tensor": 1},
        "examples_per_step": 2048,
        "memory_per_chip": {"peak": 14.25 * GIB, "available": 31.5 * GIB},
        "compiler": {"jax": "1.2", "libtpu": "3.4"},
        "estimate": {
            "roofline_seconds": {
                "compute": 0.5,
                "memory": 0.25,
                "interconnect": 0.75,
                "binds": "interconnect",
            },
            "step_seconds": [0.75, None if low else 1.5],
            "mfu": [None if low else 0.2, 0.4],
            "days": [12.3, None if low else 24.6],
        },
        **changes,
    }


def test_every_stage_meets_every_chip_on_slices_of_64_to_256():
    rows = plans.rows()
    assert {row.experiment for row in rows} == set(plans.EXPERIMENTS)
    for name in plans.EXPERIMENTS:
        parsed = [compile_target.parse(row.topology) for row in rows if row.experiment == name]
        assert {generation for generation, _ in parsed} == {"v4", "v5e", "v5p", "v6e"}
        assert all(64 <= math.prod(sizes) <= 256 for _, sizes in parsed)
    assert len({row.name for row in rows}) == len(rows) == 48


def test_variants_change_their_row_alone():
    cached = plans.Row("clip", "v5e:16x16", "cached")
    assert cached in plans.rows() and cached.name == "clip cached v5e:16x16"
    own = plans.Row("clip", "v5e:16x16")
    assert "--mesh=data=-1,fsdp=16" in own.command() and "--config.rules" not in own.command()
    assert {"--mesh=data=-1,fsdp=16,tensor=2", "--config.rules=fsdp_tp"} < {*cached.command()}
    assert cached.command()[-1] == "--config.optim.sam_cached=True"
    plain = plans.Row("prior", "v4:4x4x4", "plain attention")
    assert plain.command() == [*plans.Row("prior", "v4:4x4x4").command(), "--plain-attention"]
    mesh = {"data": 8, "fsdp": 16, "tensor": 2}
    text = plans.table({cached.name: case(cached, mesh=mesh)})
    assert "| clip cached | v5e:16x16 (8 x 16 x 2)" in text
    assert "clip on v4:8x8x4, v5e:16x16, v5p:4x4x8, v6e:16x16; clip cached on v4:4x4x4, v5p" in text


def test_dalle_is_divided_over_more_chips():
    commands = {row.experiment: row.command() for row in plans.rows()}
    assert "--mesh=data=-1,fsdp=64" in commands["dalle"]
    assert "--mesh=data=-1,fsdp=16" in commands["decoder"]


def test_a_line_shows_what_fits_what_binds_and_intervals():
    prior, decoder = plans.Row("prior", "v4:4x4x4"), plans.Row("decoder", "v4:4x4x4")
    text = plans.table({row.name: case(row) for row in (prior, decoder)})
    assert "| prior | v4:4x4x4 (4 x 16) | 2,048 | yes: 14.2 of 31.5 |" in text
    assert "| 500 | 250 | 750 | links | 750 to 1500 | 20 to 40 | 12.3 to 24.6 |" in text
    assert "| links | ≥ 750 | ≤ 40 | ≥ 12.3 |" in text
    assert "jax 1.2, libtpu 3.4" in text
    assert (
        "Not planned: prior on v5e:16x16, v5p:4x4x4, v6e:8x8; prior plain attention on v4" in text
    )


def test_what_does_not_fit_stands_out_and_has_no_times():
    row = plans.Row("prior", "v4:4x4x4")
    sizes = {"peak": None, "available": 15.75 * GIB}
    (line,) = [
        line
        for line in plans.table(
            {row.name: case(row, fits=False, memory_per_chip=sizes, estimate=None)}
        ).splitlines()
        if line.startswith("| prior")
    ]
    assert "**no**: ? of 15.8" in line and line.endswith("|  |  |  |  |  |  |  |")


def test_it_goes_on_where_it_was_stopped(tmp_path, monkeypatch):
    planned = []

    def plan(row):
        if len(planned) == 3:
            raise UserError("stopped")
        planned.append(row.name)
        return case(row)

    monkeypatch.setattr(plans, "plan", plan)
    monkeypatch.setattr(compile_target, "can_compile_for_tpu", lambda: True)
    out = tmp_path / "plan.md"
    with pytest.raises(UserError, match="stopped"):
        plans.main([f"--out={out}", "--only=dalle"])
    planned.clear()
    plans.main([f"--out={out}", "--only=clip v4"])
    assert planned == ["clip v4:8x8x4"]
    planned.clear()
    plans.main([f"--out={out}", "--only=dalle"])
    assert planned == ["dalle v6e:8x16"]  # three were there
    assert len(json.loads(out.with_suffix(".json").read_text())) == 5
    planned.clear()
    plans.main([f"--out={out}", "--only=prior v4", "--again"])
    assert planned == ["prior v4:4x4x4"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only=prior v7"], "--only is 'prior v7'; it must be part of one of: prior v4:4x4x4"),
        (["--out=table.txt"], "--out is 'table.txt'; give a name that ends in .md"),
        ([], "libtpu is not installed; run `pip install 'unclip_jax"),
    ],
)
def test_mistakes_are_said_first(tmp_path, monkeypatch, arguments, message):
    monkeypatch.setattr(compile_target, "can_compile_for_tpu", lambda: False)
    with pytest.raises(UserError, match=message):
        plans.main([f"--out={tmp_path}/plan.md", *arguments])


def test_results_that_cannot_be_read_are_not_written_over(tmp_path):
    (tmp_path / "plan.json").write_text("{half")
    with pytest.raises(UserError, match="plan.json is not JSON .*; move it away"):
        plans.main([f"--out={tmp_path}/plan.md"])


def test_a_plan_that_fails_is_named_with_its_last_words(monkeypatch):
    def run(command, **options):
        return subprocess.CompletedProcess(command, 2, "", "first\nerror: no such chip\n")

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(UserError, match="prior v4:4x4x4 ended with 2: error: no such chip"):
        plans.plan(plans.Row("prior", "v4:4x4x4"))
