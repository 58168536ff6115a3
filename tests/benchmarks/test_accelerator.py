"""The benchmark of accelerators, tried with the smallest networks on the CPU."""

import json

import pytest

from benchmarks import accelerator, unclip_side
from benchmarks.accelerator import Row
from tests.stages import tiny
from unclip_jax.core.checks import UserError
from unclip_jax.experiment import loading

RESULT = {
    "parameters": 2_000_000,
    "examples": 8,
    "seconds": {"median": 0.25},
    "mfu": 0.5,
    "compiled_memory": {"arguments": 2**30, "temporary": 2**30},
}


@pytest.mark.parametrize("smallest", [False, True])
def test_every_row_is_an_experiment(smallest):
    rows = accelerator.rows(tiny=smallest)
    assert len({row.name for row in rows}) == len(rows)
    for row in rows:
        overrides = [*row.overrides, f"--config.train.batch_size={row.batch}"]
        experiment = loading.read(row.config, overrides=overrides)
        if not smallest:
            assert unclip_side.dtype_of(experiment) == "bfloat16", row.name


def test_the_decoder_has_about_500_million_parameters():
    row = next(row for row in accelerator.rows() if "500 M" in row.name)
    stage = loading.read(row.config, overrides=row.overrides).build_stage()
    sizes = [leaf.size for leaf in tiny.jax.tree.leaves(tiny.abstract(stage))]
    assert 450e6 < sum(sizes) < 600e6


@pytest.mark.slow
def test_a_step_is_measured_profiled_and_not_measured_again(tmp_path, capsys, monkeypatch):
    row = Row("train prior", "train", "prior:tiny", ("--config.model.model.depth=1",), 8)
    monkeypatch.setattr(accelerator, "rows", lambda *, tiny: [row])
    monkeypatch.setattr(unclip_side, "MATMUL_SIDES", (128,))  # whose rate is not looked at
    monkeypatch.setattr(accelerator, "STEPS", 1)
    monkeypatch.setattr(accelerator, "PROFILED", 1)
    out = tmp_path / "accelerator.json"
    accelerator.main([f"--out={out}"])
    result = json.loads(out.read_text())["train prior"]
    assert result["examples"] == 8 and result["mfu"] > 0
    kernels = result["kernels"]
    assert kernels and sum(kernel["share"] for kernel in kernels) <= 1.0 + 1e-9
    assert [k["ms"] for k in kernels] == sorted((k["ms"] for k in kernels), reverse=True)
    monkeypatch.setattr(accelerator, "measure", lambda row: 1 / 0)
    accelerator.main([f"--out={out}"])
    assert "| train prior | " in capsys.readouterr().out


def test_no_row_begins_after_the_minutes(tmp_path, monkeypatch, capsys):
    now = [0.0]

    def measure(row):
        now[0] += 100.0
        return RESULT

    monkeypatch.setattr(accelerator.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(accelerator, "measure", measure)
    out = tmp_path / "accelerator.json"
    accelerator.main([f"--out={out}", "--minutes=4"])
    assert len(json.loads(out.read_text())) == 3  # at 0, 100 and 200 seconds
    assert "no time left; the same command continues" in capsys.readouterr().err


def test_a_batch_that_does_not_fit_is_halved(monkeypatch):
    batch_sizes = []

    def prepare(task):
        batch_sizes.append(task["batch"])
        if task["batch"] > 2:
            raise RuntimeError("RESOURCE_EXHAUSTED: out of memory")
        facts = {"examples": task["batch"], "traced_flops": 1.0, "model_flops": 1.0}
        return {**facts, "peak_flops": 1.0}, lambda: None

    monkeypatch.setattr(unclip_side, "prepare", prepare)
    monkeypatch.setattr(accelerator.gc, "collect", lambda: None)
    row = Row("x", "train", "prior:tiny", (), 8)
    assert accelerator.measure(row)["examples"] == 2 and batch_sizes == [8, 4, 2]
    monkeypatch.setattr(
        unclip_side, "prepare", lambda task: prepare({**task, "batch": task["batch"] + 9})
    )
    assert accelerator.measure(row) == {"failed": "no batch fits in the memory of the device."}


def test_the_worst_step_is_the_fused_one_with_the_least_share_of_the_peak():
    rows = accelerator.rows()
    results = {row.name: {**RESULT, "mfu": 0.5} for row in rows}
    results["train clip"] = {**RESULT, "mfu": 0.2}
    results["train prior, attention not fused"] = {**RESULT, "mfu": 0.1}
    results["train upsampler_256"] = {"failed": "x"}
    assert accelerator.worst(rows, results).name == "train clip"
    assert accelerator.worst(rows, {}) is None


def test_tables_show_failures_ratios_and_kernels():
    ratio = {"over_ours": {"wall": {"median": 1.25}}}
    kernel = {"name": "gemm", "ms": 1.5, "share": 0.75}
    text = accelerator.tables(
        {"a": RESULT, "b": {**RESULT, **ratio, "kernels": [kernel]}, "c": {"failed": "too large"}}
    )
    assert "| a | 2 | 8 | 0.25 | 50.0 | 2.0 |  |" in text
    assert "| b | 2 | 8 | 0.25 | 50.0 | 2.0 | 1.25 |" in text
    assert "| c | too large |" in text and "| gemm | 1.50 | 75 % |" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--minutes=0"], "--minutes is 0.0; it must be greater than 0"),
        (["--only=vae"], "--only is 'vae'; it must be part of one of: train prior"),
    ],
)
def test_mistakes_are_one_line(arguments, message):
    with pytest.raises(UserError, match=message):
        accelerator.main(arguments)
