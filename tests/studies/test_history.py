"""The history page: equal compute for every system, its runs, its scores, and all of it once."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

from benchmarks import markdown_page
from studies import evaluation_set, scoring, statistics
from studies.history import __main__ as history
from studies.history import history_page, measurement, training
from studies.history.systems import BUDGET, SYSTEMS, trained_stages
from tests import cascades
from unclip_jax import prepare
from unclip_jax.core.checks import UserError
from unclip_jax.handoff import load as exports
from unclip_jax.handoff.export import replace_manifest
from unclip_jax.inference import load
from unclip_jax.metrics import frechet
from unclip_jax.metrics.shapes_checker import ATTRIBUTES, CRITERIA

STEPS = 6


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    """An untrained DALL-E that claims to have been trained for some steps, and a small world."""
    folder = cascades.write(tmp_path_factory.mktemp("dalle"), names=("clip", *BUDGET))
    for name in BUDGET:
        export = folder / name / "export"
        card = dataclasses.replace(exports.read_manifest(export), step=STEPS)
        replace_manifest(export, card)
    inputs = ["shapes:train=64,validation=16", f"--out={folder}/data"]
    prepare.main([*inputs, f"--tokenizer={folder}/tokenizer"])
    return folder


@pytest.fixture
def config(run_dir, tmp_path):
    arguments = [f"--models={run_dir}", f"--work={tmp_path}", "--num=4", "--rows=2"]
    return history.parse(arguments)


def test_every_system_has_the_compute_of_dalle(config):
    stages = training.plan(config)
    budget = sum(stages[name]["flops"] for name in BUDGET)
    for name in BUDGET:
        assert stages[name]["steps"] == STEPS
    for system in SYSTEMS:
        if not system.stages:
            assert set(BUDGET) <= set(system.linked)
            continue
        priors = {"prior", "prior_ar"} - {system.prior}  # a run holds both, a system one
        own = [stage for stage in system.stages if stage.share and stage.name not in priors]
        assert sum(stage.share for stage in own) == pytest.approx(1)
        spent = sum(stages[stage.name]["flops"] for stage in own)
        rounding = sum(stages[s.name]["flops"] / stages[s.name]["steps"] for s in own) / 2
        assert abs(spent - budget) <= rounding


def test_flops_of_a_step_are_three_forward_passes(config):
    """By hand: the linear maps of dalle:tiny, over all states and the heads' own."""
    own = training.experiment("dalle", config)
    net = own.model.model
    states, pairs = net.context + net.length, (net.context + net.length) ** 2
    blocks = net.depth * (2 * 12 * net.width**2 * states + 2 * 2 * net.width * pairs)
    heads = 2 * net.width * (net.vocab_size * (net.context - 1) + net.code_count * net.length)
    expected = 3 * own.train.batch_size * (blocks + heads)
    assert training.flops_per_step(own) == pytest.approx(expected, rel=0.02)


def test_commands_train_on_the_shared_inputs(config):
    stages = trained_stages()
    words = training.command(stages["prior_ar"], config, steps=7)
    assert "--config.train.steps=7" in words and "--config.train.batch_size=32" in words
    assert any(word.endswith("/embeddings") and "data.embeddings=" in word for word in words)
    words = training.command(stages["imagen_base"], config, steps=7)
    assert any("data.text_encoder=" in w and w.endswith("text_encoder/export") for w in words)
    assert not any("embeddings" in word for word in words)


def test_an_export_of_another_length_is_rejected(config, run_dir):
    training._link(config.stage("upsampler_256"), run_dir / "clip")  # of 0 steps
    glide = next(system for system in SYSTEMS if system.run == "glide")
    with pytest.raises(UserError, match=r"was trained for 0 steps, but \d+ are requested; give"):
        training.prepare(glide, config)


def test_results_belong_to_the_content_of_the_data_not_to_its_path(config, run_dir, tmp_path):
    protocol = history.protocol_of(config)
    shutil.copytree(run_dir / "data", tmp_path / "copy")
    elsewhere = dataclasses.replace(config, data=tmp_path / "copy")
    assert history.protocol_of(elsewhere) == protocol
    inputs = ["shapes:train=65,validation=16", f"--out={tmp_path}/other"]
    prepare.main([*inputs, f"--tokenizer={run_dir}/tokenizer"])
    other = dataclasses.replace(config, data=tmp_path / "other")
    differences = {k for k, v in history.protocol_of(other).items() if v != protocol[k]}
    assert differences == {"data"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--images=1"], r"--images is 1; it must lie in \[2, 64\]"),
        (["--num=0"], "--num is 0; it must be greater than 0"),
        (["--rows=101"], r"--rows is 101; it must lie in \[1, 100\]"),
        (["--out=page.txt"], "give a name that ends in .md"),
        (["--nonsense=1"], "unknown argument '--nonsense=1'; overrides begin with --config."),
        (["--models=nowhere"], "nowhere"),
    ],
)
def test_mistakes_are_reported_before_anything_is_trained(run_dir, tmp_path, arguments, message):
    with pytest.raises(UserError, match=message):
        history.main([f"--models={run_dir}", f"--work={tmp_path}/work", *arguments])
    assert not (tmp_path / "work" / "stages").exists()


def test_images_are_reduced_by_means():
    image = np.arange(16, dtype=np.uint8).reshape(1, 4, 4, 1).repeat(3, axis=-1) * 10
    small = scoring.reduce(image, side=2)
    assert small[0, :, :, 0].tolist() == [[25, 45], [105, 125]]
    assert scoring.reduce(image, side=4) is image


def test_scores_are_means_over_images_that_the_caption_names():
    z = np.random.default_rng(0).normal(size=(8, 4))
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    captions = tuple(f"{i // 2}" for i in range(8))
    examples = evaluation_set.EvaluationSet(captions, captions, z, z, 2, frechet.moments(z))
    correct = {name: np.full(8, np.nan) for name in ATTRIBUTES}
    correct["count"] = np.ones(8)  # every caption names one
    correct["colour"] = np.array([1, 1, 0, 0, 1, 0, np.nan, np.nan])
    row = measurement.scores(examples, measurement.ScoredImages(z, correct, CRITERIA))
    assert row["colour"]["value"] == pytest.approx(0.5)
    assert row["followed"]["value"] == pytest.approx((1 + 1 + 0.5 + 0.5 + 1 + 0.5 + 1 + 1) / 8)
    assert row["frechet"] == pytest.approx(0.0, abs=1e-9)
    spread = [1 - z[i] @ z[i + 1] for i in range(0, 8, 2)]
    assert row["diversity"]["value"] == pytest.approx(np.mean(spread))


def test_numbers_have_fixed_digits_and_zero_has_no_sign():
    assert markdown_page.number(-0.001) == "0.00" and markdown_page.number(-0.006) == "-0.01"
    assert markdown_page.number(None) == "–" and markdown_page.cell(0.12345) == "0.123"
    assert markdown_page.cell({"value": -0.001, "low": -0.5, "high": 0.0}) == "0.00 [-0.50, 0.00]"


def test_the_page_has_all_tables_and_keeps_its_own_words(tmp_path):
    cell = {"value": 0.5, "low": 0.4, "high": 0.6}
    scores = dict.fromkeys(measurement.COLUMNS, cell)
    row = {"name": "GLIDE", "paper": "2021", **scores, "diversity": cell, "frechet": 0.1234}
    row["binding"] = dict.fromkeys(cell)  # no caption of two unlike objects
    row |= {"side": 64, "parameters": 2_500_000, "seconds": 0.25, "flops": 3e9}
    facts = {"date": "2026-01-01", "device": "cpu", "jax": "0", "num": 4, "split": "validation"}
    facts |= {"images": 2, "seed": 0, "side": 32, "note": "", "missing": ["Imagen"]}
    stage = {"steps": 7, "batch": 32, "flops": 2e12, "minutes": 1.25, "systems": ["glide"]}
    out = tmp_path / "history.md"
    out.write_text("Before.\n<!-- tables: begin --><!-- tables: end -->\nAfter.\n")
    report = {"facts": facts, "rows": [row, {**row, "name": "true"}], "stages": {"glide": stage}}
    history_page.write(out, report)
    text = out.read_text()
    assert text.startswith("Before.") and text.endswith("After.\n")
    assert "Not measured yet: Imagen." in text
    assert "| GLIDE | 0.50 [0.40, 0.60] |" in text and "| – | 0.123 |" in text
    assert "| GLIDE | 2021 | 64 | 2.50 M | 3 | 0.25 |" in text
    assert "| glide | glide | 7 | 32 | 2 | 1.2 |" in text
    assert json.loads(out.with_suffix(".json").read_text())["rows"][0]["name"] == "GLIDE"


@pytest.mark.nightly
def test_one_command_trains_measures_and_writes_and_continues(
    run_dir, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(statistics, "RESAMPLES", 20)
    monkeypatch.setattr(evaluation_set, "FRECHET_RESAMPLES", 10)
    systems = [s for s in SYSTEMS if s.run in ("dalle", "imagen")]  # GLIDE and unCLIP: like Imagen
    monkeypatch.setattr(history, "SYSTEMS", systems)
    command = [f"--models={run_dir}", f"--work={tmp_path}", "--num=4", "--rows=2"]
    command += ["--config.train.batch_size=8", "--config.optim.warmup_steps=1"]
    history.main(command)
    for system in systems:
        chain = load.find_cascade(tmp_path / "runs" / system.run, prior_name=system.prior)
        assert chain.cascade.image_size in (16, 32)
    result = json.loads((tmp_path / "history.json").read_text())
    assert [row["name"] for row in result["rows"][1:]] == [system.name for system in systems]
    assert result["rows"][0]["joint"]["value"] > 0.8  # true images, at 16 px
    assert (tmp_path / "history.png").is_file()
    points = sorted((tmp_path / "points").glob("*.json"))
    times = [path.stat().st_mtime_ns for path in points]
    assert len(points) == len(systems)
    history.main(command)
    assert [path.stat().st_mtime_ns for path in points] == times
    assert "DALL-E: measured already" in capsys.readouterr().err
