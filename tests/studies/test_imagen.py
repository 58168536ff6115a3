"""The study of Imagen: its inputs, what a finding changes, its page, and all of it once."""

import dataclasses
import json

import numpy as np
import pytest

from studies import claims, evaluation_set, scoring, statistics
from studies.findings import report_page
from studies.imagen import (
    __main__ as imagen,
)
from studies.imagen import (
    against_unclip,
    augmentation,
    harness,
    thresholds,
    unet_topologies,
    upsampler_runs,
)
from tests import cascades
from unclip_jax import prepare
from unclip_jax.core.checks import UserError
from unclip_jax.handoff import load as exports
from unclip_jax.handoff.export import replace_manifest
from unclip_jax.inference import load

STEPS = 6


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Imagen's and unCLIP's untrained chains, whose upsampler claims some steps, a small world."""
    root = tmp_path_factory.mktemp("imagen_study")
    files = {"upsampler_256": "imagen_sr256"}
    cascades.write(root / "imagen", names=imagen.IMAGEN_STAGES, files=files)
    cascades.write(root / "unclip")
    export = root / "imagen" / "upsampler_256" / "export"
    replace_manifest(export, dataclasses.replace(exports.read_manifest(export), step=STEPS))
    inputs = ["shapes:train=64,validation=16", f"--out={root}/data"]
    prepare.main([*inputs, f"--tokenizer={root}/unclip/tokenizer"])
    return root


def command(folders, work, *more):
    words = [f"--models={folders}/imagen", f"--unclip={folders}/unclip", f"--data={folders}/data"]
    return [*words, f"--work={work}", f"--steps={STEPS}", "--num=2", *more]


@pytest.fixture
def untrained_models(folders, monkeypatch):
    """Every upsampler of the study is the untrained one."""
    monkeypatch.setattr(upsampler_runs, "prepare", lambda run, config: folders / "imagen")


def test_every_upsampler_differs_from_the_experiment_in_one_place(folders, tmp_path):
    config = imagen.parse(command(folders, tmp_path, "--config.optim.warmup_steps=1"))
    commands = {run.name: upsampler_runs.command(run, config) for run in upsampler_runs.UPSAMPLERS}
    assert len(commands) == 4
    for name, words in commands.items():
        assert "--config=experiments/imagen_sr256.py:tiny" in words
        assert f"--config.train.steps={STEPS}" in words and words[-1].endswith("warmup_steps=1")
        assert any(w.endswith("imagen/text_encoder/export") for w in words)
        overrides = [word for word in words if word.startswith("--config.model")]
        assert {w.split("=")[0].split(".")[2] for w in overrides} <= (
            {"model"} if name == "adm" else {"augment"}
        )
    assert not any("augment" in word for word in commands["noise"])


def test_a_missing_upsampler_is_trained_and_an_existing_one_is_not(folders, tmp_path, monkeypatch):
    config = imagen.parse(command(folders, tmp_path))
    names = []
    monkeypatch.setattr(
        "studies.training_runs.run", lambda words, *, name, work: names.append(name)
    )
    run = upsampler_runs.by_name("all_noise")
    folder = upsampler_runs.prepare(run, config)
    assert names == ["all_noise"]
    assert (folder / "imagen_base" / "export").is_dir()
    (folder / "upsampler_256").symlink_to(folders / "imagen" / "upsampler_256")
    upsampler_runs.prepare(run, config)
    assert names == ["all_noise"]


def test_the_steps_are_those_of_the_experiment_unless_others_are_given(folders, tmp_path):
    config = imagen.parse(command(folders, tmp_path))
    assert upsampler_runs.steps_of(config) == STEPS
    assert upsampler_runs.steps_of(dataclasses.replace(config, steps=None)) == 100


def test_the_border_is_the_share_of_values_at_the_ends():
    images = np.full((2, 2, 2, 3), 128, np.uint8)
    images[0, 0, 0] = (0, 255, 254)
    assert thresholds.border(images).tolist() == [2 / 12, 0.0]


def test_functions_are_timed_in_turns():
    calls = []
    steps = {name: lambda name=name: calls.append(name) for name in "ab"}
    seconds = unet_topologies.times(steps, turns=3)
    assert calls == ["a", "b"] * 3 and seconds["a"].shape == (3,) and (seconds["a"] >= 0).all()


def test_upsamplers_enlarge_under_their_captions_at_a_level_of_noise(
    folders, tmp_path, untrained_models
):
    study = harness.Harness(imagen.parse(command(folders, tmp_path)))
    low = study.true
    clean = study.enlarge("noise", low)
    assert clean.shape == (4, 32, 32, 3)
    assert np.any(study.enlarge("noise", low, level=0.2) != clean)
    assert np.any(study.enlarge("noise", low, guidance=1.0) != clean)
    with pytest.raises(
        UserError, match="level is 0.3, but the upsampler_256 was trained with levels up to 0.2"
    ):
        study.enlarge("noise", low, level=0.3)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--num=0"], "--num is 0; it must be greater than 0"),
        (["--images=1"], r"--images is 1; it must lie in \[2, 64\]"),
        (["--steps=0"], "--steps is 0; it must be greater than 0"),
        (["--only=augmentations"], "unknown --only 'augmentations'. Did you mean"),
        (["--out=x.txt"], "give a name that ends in .md"),
        (["--unclip=nowhere"], "nowhere"),
    ],
)
def test_mistakes_are_reported_first(folders, tmp_path, more, message):
    with pytest.raises(UserError, match=message):
        imagen.main(command(folders, tmp_path / "work", *more))
    assert not (tmp_path / "work" / "runs").exists()


def test_the_page_has_its_own_introduction_and_the_rules_of_verdicts():
    cell = {"value": 0.5, "low": 0.4, "high": 0.6}
    estimate = statistics.IntervalEstimate(0.5, 0.4, 0.6)
    test = statistics.inequality("gain", estimate, captions=40)
    finding = {"rows": [{"name": "one", "dB": cell}], "tests": [test], "minutes": 1.0}
    facts = {"command": "python -m studies.imagen", "date": "2026-01-01", "device": "cpu"}
    facts |= {"jax": "0", "num": 2, "split": "validation", "images": 2, "seed": 0, "note": ""}
    report = {"facts": {**facts, "steps": 9}, "baselines": [], "findings": {"unclip": finding}}
    text = report_page.markdown(
        report,
        imagen.FINDINGS,
        plots="plots",
        introduction=imagen.INTRODUCTION,
        describe=imagen.models_and_sizes,
    )
    assert text.startswith("# Tests of Imagen's claims") and "Each claim is about" in text
    assert "base model was trained for 9 steps" in text and "own decoder" not in text
    assert "gain: 0.50 [0.40, 0.60] | agrees |" in text
    assert "| baseline |" not in text  # no upsampler has been trained
    assert "Not measured yet: Dynamic thresholding (`thresholds`)" in text


def test_findings_on_upsamplers_need_only_the_clip_of_unclip_s_run(folders, tmp_path):
    clip_alone = tmp_path / "clip_alone"
    clip_alone.mkdir()
    (clip_alone / "clip").symlink_to(folders / "unclip" / "clip")
    words = [*command(folders, tmp_path / "work"), f"--unclip={clip_alone}"]
    config = imagen.parse([*words, "--only=augmentation,topologies"])
    assert "unclip clip" in imagen.protocol_of(config)
    assert "unclip prior" not in imagen.protocol_of(config)
    complete = imagen.parse(command(folders, tmp_path / "work", "--only=augmentation"))
    assert {"unclip clip", "unclip prior"} <= imagen.protocol_of(complete).keys()
    for only in ((), ("--only=thresholds,unclip",)):
        with pytest.raises(UserError, match="prior"):
            imagen.parse([*words, *only])


def test_the_clip_that_scores_is_that_of_unclip_s_run(folders, tmp_path):
    study = harness.Harness(imagen.parse(command(folders, tmp_path)))
    engine = harness.InferenceEngine(load.load_cascade(folders / "unclip"), batch=4)
    expected = scoring.score_images(engine, study.true, study.examples.captions).z
    np.testing.assert_allclose(study.score(study.true).z, expected, atol=1e-5)


@pytest.mark.nightly
def test_every_finding_is_measured_once(folders, tmp_path, monkeypatch, untrained_models):
    monkeypatch.setattr(statistics, "RESAMPLES", 20)
    monkeypatch.setattr(evaluation_set, "FRECHET_RESAMPLES", 10)
    monkeypatch.setattr(thresholds, "SCALES", (1.0, 8.0))
    monkeypatch.setattr(against_unclip, "SCALES", (1.0, 8.0))
    monkeypatch.setattr(unet_topologies, "TURNS", 3)
    levels = {"no_noise": (0.0,), "noise": (0.0, 0.2)}
    monkeypatch.setattr(augmentation, "LEVELS", levels)
    imagen.main(command(folders, tmp_path))
    report = json.loads((tmp_path / "imagen_findings.json").read_text())
    assert list(report["findings"]) == list(imagen.FINDINGS)
    assert [len(f["rows"]) for f in report["findings"].values()] == [4, 6, 6, 2]
    monkeypatch.setattr(claims, "measure", None)  # nothing is measured again
    imagen.main(command(folders, tmp_path))
