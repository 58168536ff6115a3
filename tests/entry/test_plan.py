"""The plan command as a user calls it."""

import dataclasses
import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import jax
import pytest

from unclip_jax import plan
from unclip_jax.core.checks import UserError
from unclip_jax.experiment import loading
from unclip_jax.parallel.mesh import MeshConfig, make_mesh
from unclip_jax.planning import compile_target, plans, program
from unclip_jax.stages.distillation import DistillConfig

ROOT = pathlib.Path(__file__).parents[2]
SMALL = ("--config.model.model.depth=1", "--config.train.batch_size=32")


@pytest.fixture(scope="module")
def case(tmp_path_factory) -> tuple[dict, pathlib.Path]:
    """A small prior on eight pretended devices."""
    out = tmp_path_factory.mktemp("plan") / "made" / "plan.json"
    arguments = [
        "--config=experiments/prior.py:tiny",
        "--mesh=data=2,fsdp=4",
        f"--out={out}",
        *SMALL,
    ]
    plan.main(arguments)
    return json.loads(out.read_text()), out


def test_a_distillation_is_planned_with_its_teacher(tmp_path):
    experiment = loading.read("prior:tiny", overrides=SMALL)
    distill = DistillConfig(steps=2, substeps=3, guidance_scale=1.0)
    student = dataclasses.replace(experiment, distill=distill, init_from="prior/export")
    mesh = make_mesh(MeshConfig(), devices=jax.devices()[:1])
    plain, taught = (program.train(each, mesh=mesh) for each in (experiment, student))
    assert taught.resident["teacher"] == plain.resident["parameters"]
    assert "teacher" not in plain.resident
    # one forward pass is a third of a step; those of the teacher's scan have no gradient
    assert taught.model_flops == pytest.approx(2 * plain.model_flops, rel=0.03)


def test_a_plan_says_what_a_step_needs(case):
    result, _ = case
    assert (result["what"], result["chips"], result["fits"]) == ("train", 8, True)
    assert result["mesh"] == {"data": 2, "fsdp": 4, "tensor": 1}
    sizes = result["memory_per_chip"]
    assert sizes["optimiser"] == pytest.approx(2 * sizes["parameters"], rel=0.01)  # two moments
    assert sizes["average"] == sizes["parameters"]
    quarter = 4 * result["parameters"] / 4  # bytes; gains and biases are replicated
    assert quarter < sizes["parameters"] < 1.4 * quarter
    assert 0 < sizes["activations_and_scratch"] < sizes["peak"] < sizes["available"]
    assert result["collective_bytes_per_chip"]["all-gather"] > 0
    assert result["estimate"] is None  # nobody publishes the peaks of a pretended device


def test_flops_as_compiled_are_an_even_share_of_those_as_written(case):
    flops = case[0]["flops"]
    assert flops["compiled_over_even_share"] == pytest.approx(1.0, abs=0.02)
    assert flops["not_counted"] == flops["hidden_in_calls"] == []
    assert 0.8 * flops["model"] < flops["traced"] <= flops["model"]  # no gradient of the inputs


def test_without_libtpu_the_device_at_hand_is_planned_for(monkeypatch, capsys):
    monkeypatch.setattr(compile_target, "can_compile_for_tpu", lambda: False)
    target = plans.find_target("v5p:4x4x8")
    assert target.real and len(target.devices) == 8
    stderr = capsys.readouterr().err
    assert "libtpu is not installed (pip install 'unclip_jax[tpu]')" in stderr
    assert "instead" in stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--topology=v5p-256"], "--topology is 'v5p-256'; write GENERATION:AxB"),
        (["--topology=v7:4x4"], "unknown TPU generation in --topology 'v7'"),
        (["--topology=v5p:16x16"], "slices of v5p are v5p:AxBxC"),
        (["--mesh=date=4"], "--mesh has no axis 'date'.*data"),
        (["--mesh=data=many"], "--mesh gives data the size 'many'; give an integer"),
        (["--mesh=data=3"], "config.mesh is data 3 .*, but there are 8 devices"),
        (["--config.train.batch_size=30"], "config.train.batch_size is 30; it must be a multiple"),
        (["--effort=heroic"], "--effort 'heroic'"),
        (["--search=0"], "--search is 0; it must be greater than 0"),
        (["--search", "--what=sample"], "--search is for training"),
        (["--what=sample", "--batch=3"], "--batch is 3, which 8 does not divide"),
        (["--depth=3"], "unknown argument '--depth=3'; overrides begin with --config."),
    ],
)
def test_mistakes_are_one_line(arguments, message):
    with pytest.raises(UserError, match=message):
        plan.main(["--config=experiments/prior.py:tiny", *arguments])


def test_a_stage_that_generates_nothing_is_rejected():
    with pytest.raises(UserError, match="stage 'clip' generates nothing; use one of prior, "):
        plan.main(["--config=experiments/clip.py:tiny", "--what=sample"])


def test_a_place_that_cannot_be_written_is_one_line(case):
    with pytest.raises(UserError, match=r"cannot write .*; give another --out"):
        plans.write(case[1] / "below_a_file" / "plan.json", {})


def test_a_refusal_of_the_compiler_is_read():
    text = (
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
        "temporaries (128.00G) exceeds available HBM (15.75G).\nmore"
    )
    result = program._too_large(text)
    assert result.required == 128 * 2**30
    assert result.reason.startswith("Ran out of memory on HBM") and "\n" not in result.reason


def planned_for_tpu(tmp_path: pathlib.Path, *arguments: str) -> dict:
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("libtpu is not installed")
    out = tmp_path / "plan.json"
    command = [sys.executable, "-m", "unclip_jax.plan", *arguments, f"--out={out}"]
    process = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "XLA_FLAGS": ""}, capture_output=True, text=True
    )
    assert process.returncode == 0, process.stderr
    assert "fits: " in process.stdout
    return json.loads(out.read_text())


@pytest.mark.slow
def test_a_tiny_stage_compiles_for_a_tpu_that_is_not_there(tmp_path):
    arguments = ("--config=experiments/prior.py:tiny", "--topology=v5e:2x4", "--mesh=data=2,fsdp=4")
    result = planned_for_tpu(tmp_path, *arguments, *SMALL)
    assert (result["chips"], result["fits"]) == (8, True)
    low, high = result["estimate"]["step_seconds"]
    assert 0 < low < high
    assert result["estimate"]["label"] == "compiler-model estimate, not measured"
    assert result["flops"]["compiled_over_even_share"] == pytest.approx(1.0, abs=0.05)


@pytest.mark.nightly
def test_what_does_not_fit_is_rejected_by_the_compiler_with_advice(tmp_path):
    arguments = ("--config=experiments/prior.py", "--topology=v5e:2x2", "--config.mesh.fsdp=1")
    result = planned_for_tpu(tmp_path, *arguments)
    assert not result["fits"] and "exceed" in result["refusal"]
    assert any("raise fsdp" in line for line in result["advice"])


@pytest.mark.nightly
def test_the_paper_s_prior_fits_256_small_chips_and_moves_parameters_not_examples(tmp_path):
    arguments = ("--config=experiments/prior.py", "--topology=v5e:16x16", "--mesh=data=16,fsdp=16")
    result = planned_for_tpu(tmp_path, *arguments)
    assert result["fits"] and result["memory_per_chip"]["peak"] < 6e9
    assert result["collective_bytes_per_chip"]["total"] < 8 * 2 * result["parameters"]
