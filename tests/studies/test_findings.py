"""The paper's findings: how claims are decided, the report, its mistakes, and all of it once."""

import dataclasses
import json
import math
import pathlib

import numpy as np
import pytest

from studies import evaluation_set, scoring, statistics
from studies.findings import __main__ as findings
from studies.findings import baseline_runs, binding, guidance, probing, report_page, steps
from tests import cascades
from tests.stages import tiny
from unclip_jax import embed, prepare
from unclip_jax.core.checks import UserError
from unclip_jax.experiment import loading
from unclip_jax.handoff import export, load
from unclip_jax.handoff.manifest import Manifest
from unclip_jax.metrics import frechet, worlds
from unclip_jax.metrics.intervals import IntervalEstimate
from unclip_jax.metrics.shapes_checker import ATTRIBUTES, CRITERIA
from unclip_jax.objectives.gaussian import SamplingConfig
from unclip_jax.portraits import render as portraits_render
from unclip_jax.portraits import world as portraits_world

ROOT = pathlib.Path(__file__).parents[2]
STEPS = 3


# The rule.


@pytest.mark.parametrize(
    ("low", "high", "margin", "expected"),
    [
        (0.1, 0.3, 0.0, "agree"),
        (-0.3, -0.1, 0.0, "not"),
        (-0.1, 0.3, 0.0, "undecided"),
        (0.0, 0.3, 0.0, "undecided"),  # touching zero decides nothing
        (-0.3, 0.0, 0.0, "undecided"),
        (-0.04, 0.3, 0.05, "agree"),
        (-0.06, 0.3, 0.05, "undecided"),
        (-0.3, -0.06, 0.05, "not"),
    ],
)
def test_a_claim_is_decided_by_where_its_interval_lies(low, high, margin, expected):
    estimate = IntervalEstimate((low + high) / 2, low, high)
    case = statistics.inequality("one - other", estimate, captions=30, margin=margin)
    assert statistics.Inequality(**case).verdict == expected
    few = dataclasses.replace(statistics.Inequality(**case), captions=29)
    assert few.verdict == "undecided"


def test_a_statistic_without_values_decides_nothing_before_and_after_json():
    estimate = statistics.interval(lambda rows: math.nan, 40)
    assert all(math.isnan(each) for each in estimate)
    case = {"tests": [statistics.inequality("x", estimate, captions=40)]}
    assert statistics.verdict_of(case) == "undecided"
    assert (
        statistics.verdict_of(json.loads(json.dumps(statistics.as_json(case), allow_nan=False)))
        == "undecided"
    )


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        (["agree", "agree"], "agree"),
        (["agree", "undecided"], "undecided"),
        (["agree", "not"], "not"),
        (["undecided", "not"], "not"),
        ([], "undecided"),
    ],
)
def test_a_claim_of_parts_needs_all_and_fails_with_one(parts, expected):
    ends = {"agree": (0.1, 0.2), "not": (-0.2, -0.1), "undecided": (-0.1, 0.1)}
    case = [statistics.Inequality("x", 0.0, *ends[part], captions=99) for part in parts]
    assert statistics.conjunction(case) == expected


def test_intervals_have_their_nominal_coverage():
    """Means of 40 normal numbers, 300 times: 95 % +- 4 standard errors of such a count."""
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(300):
        values = rng.normal(1.0, 2.0, 40)
        interval = statistics.interval(
            lambda rows, v=values: float(v[rows].mean()), 40, resamples=300
        )
        hits += interval.low < 1.0 < interval.high
    assert 0.88 < hits / 300 < 0.99


def test_the_basic_interval_corrects_the_bias_of_a_resampled_distance():
    """Resampling repeats vectors, which makes every Fréchet distance larger than the sample's."""
    z = np.random.default_rng(0).normal(size=(80, 16))
    reference = frechet.moments(np.random.default_rng(1).normal(size=(500, 16)))

    def distance(rows):
        return frechet.squared_distance(frechet.moments(z[rows]), reference)

    plain = statistics.interval(distance, 80, resamples=100)
    basic = statistics.interval(distance, 80, resamples=100, basic=True)
    assert plain.low > plain.value > basic.low


# What is measured.


def evaluation_examples(count=40, images=2):
    z = np.random.default_rng(0).normal(size=(count * images, 8))
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    captions = tuple(f"{i}" for i in range(count) for _ in range(images))
    return evaluation_set.EvaluationSet(captions, captions, z, z, images, frechet.moments(z))


def test_images_of_one_caption_are_resampled_together():
    examples = evaluation_examples(count=3)
    assert examples.rows(np.array([2, 0, 2])).tolist() == [4, 5, 0, 1, 4, 5]
    assert examples.count == 3


def test_a_constant_difference_is_exact_however_noisy_the_values():
    examples, noise = evaluation_examples(), np.random.default_rng(1).normal(size=80) * 9
    interval = examples.difference(noise + 0.5, noise)
    assert interval == pytest.approx((0.5, 0.5, 0.5))


def test_embeddings_equal_to_the_reference_have_no_distance():
    examples = evaluation_examples()
    assert examples.distance(examples.z_img) == pytest.approx(0.0, abs=1e-9)
    shifted = examples.z_img + 1.0  # covariances are equal, so the distance is |shift|^2 = 8
    assert examples.distances(lambda d: d(shifted) - d(examples.z_img)).value == pytest.approx(8.0)


def test_two_equal_images_of_a_caption_have_no_diversity():
    examples = evaluation_examples(count=2)
    z = examples.z_img.copy()
    z[1] = z[0]
    spread = examples.diversity(z)
    assert spread[0] == pytest.approx(0.0, abs=1e-9)
    assert spread[1] == pytest.approx(1 - z[2] @ z[3])


def scored_images(**correct):
    nothing = dict.fromkeys(ATTRIBUTES, np.full(2, np.nan))
    case = {name: np.array(values, float) for name, values in correct.items()}
    return scoring.ScoredImages(np.zeros((2, 8)), {**nothing, **case}, CRITERIA)


def test_attributes_that_the_caption_does_not_name_are_not_counted():
    scores = scored_images(count=[1, 0], colour=[1, 1], relation=[math.nan, 0])
    assert scores.followed.tolist() == pytest.approx([1.0, 1 / 3])


def test_components_are_measured_between_none_and_all():
    arms = [
        scored_images(count=[r, r], size=[s, s]) for r, s in [(0.2, 0.5), (0.6, 0.5), (0.8, 0.9)]
    ]
    rows = np.arange(2)
    assert probing.retained(arms, ("count",), rows) == pytest.approx(2 / 3)
    assert probing.retained(arms, ("size",), rows) == pytest.approx(0.0)
    assert math.isnan(probing.retained(arms[:1] * 3, ("size",), rows))


@pytest.mark.parametrize(
    ("world", "caption", "expected"),
    [
        ("shapes", "a red circle above an orange star", "an orange circle above a red star"),
        (
            "shapes",
            "an image of a large blue ring left of a red heart on a navy background",
            "an image of a large red ring left of a blue heart on a navy background",
        ),
        (
            "portraits",
            "a person with curly red hair, in a blue hoodie",
            "a person with curly blue hair, in a red hoodie",
        ),
        (
            "portraits",
            "a person in a green t-shirt on a green background, with pink hair",
            "a person in a pink t-shirt on a green background, with green hair",
        ),
    ],
)
def test_colours_are_swapped_and_nothing_else(world, caption, expected):
    binds = binding.BINDINGS[world]
    assert binds.accept(caption)
    assert binds.swap(caption) == expected
    assert binds.swap(expected) == caption


@pytest.mark.parametrize(
    ("world", "caption"),
    [
        ("shapes", "a red circle"),
        ("shapes", "two red circles"),
        ("shapes", "a red circle above a red star"),
        ("portraits", "a person with red hair, in a red hoodie"),
        ("portraits", "a person with red hair, in a hoodie"),
        ("portraits", "a person with blonde hair, in a blue hoodie"),  # clothes are never blonde
        ("portraits", "a person with red hair, in a purple hoodie"),  # hair is never purple
        ("portraits", "a person with spiky hair, on a blue background"),
    ],
)
def test_captions_whose_colours_cannot_be_exchanged_are_left_out(world, caption):
    assert not binding.BINDINGS[world].accept(caption)


@pytest.mark.parametrize("world", worlds.WORLDS, ids=lambda world: world.name)
def test_every_criterion_of_a_world_is_coarse_or_fine(world):
    groups = probing.GROUPS[world.name]
    assert sorted((*groups.coarse, *groups.fine)) == sorted(world.criteria)
    assert {*binding.BINDINGS[world.name].columns} <= {*world.attributes}


def test_images_of_portraits_are_scored_by_their_world():
    example = portraits_world.example("validation", seed=0, index=0)
    other = portraits_world.example("validation", seed=0, index=1)
    images = portraits_render.render([example.portrait, other.portrait], size=64)
    world = evaluation_set.world_of([example.captions[0]])
    verdicts = world.check(images, [example.captions[0]] * 2)
    scored = scoring.ScoredImages.from_verdicts(np.zeros((2, 8)), verdicts, world)
    assert world.name == "portraits" and scored.criteria == world.criteria
    assert scored.followed[0] == 1.0 > scored.followed[1]
    assert scored.correct["joint"].tolist() == [1.0, 0.0]


def test_captions_of_no_world_cannot_be_scored():
    with pytest.raises(UserError, match="these 2 captions do not belong to one procedural world"):
        evaluation_set.world_of(["a photograph", "a red circle"])


def test_the_ladder_of_steps_keeps_to_the_chain():
    assert steps.ladder(SamplingConfig(steps="25"), 1000) == [
        (0.25, 6),
        (0.5, 12),
        (1, 25),
        (4, 100),
    ]
    assert steps.ladder(SamplingConfig(steps="4"), 10) == [(0.25, 2), (0.5, 2), (1, 4), (4, 10)]
    later = SamplingConfig(steps="4@3")
    assert [n for _, n in steps.ladder(later, 10)] == [2, 2, 4, 7]
    assert steps.grid(later, 7) == "7@3" and steps.grid(SamplingConfig(steps="25"), 6) == "6"


# The report.


def measurement(*ends, note=""):
    tests = [statistics.inequality("one - other", IntervalEstimate(*e), captions=90) for e in ends]
    row = {"name": "an arm", "followed": {"value": 0.5, "low": 0.4, "high": 0.6}, "images": 7}
    row |= {"size": {"value": None, "low": None, "high": None}, "frechet": 0.0123}
    return {"rows": [row, {**row, "name": "other"}], "tests": tests, "minutes": 1.5, "note": note}


def report(**results):
    facts = {"command": "python -m studies.findings", "date": "2022-04-13", "device": "cpu"}
    facts |= {"jax": "0", "num": 9, "images": 2, "split": "validation", "seed": 0, "note": "Hot."}
    facts |= {"lengths": {"decoder": 2800, "prior": 600}}
    baselines = [{"name": "glide", "about": "GLIDE", "steps": 600, "minutes": 4.25}]
    return {"facts": facts, "baselines": baselines, "findings": results}


def test_the_report_has_claim_numbers_verdict_cost_and_what_is_missing(tmp_path):
    results = {
        "priors": measurement((0.2, 0.1, 0.3)),
        "target": measurement((0.2, 0.1, 0.3), (-0.2, -0.3, -0.1), note="A remark."),
    }
    out = tmp_path / "findings.md"
    report_page.write(out, report(**results), findings.FINDINGS)
    text = out.read_text()
    row = next(line for line in text.splitlines() if line.startswith("| Prior type |"))
    assert "COCO FID 10.39 against 10.63" in row and "section 2.2, Tables 1 and 2" in row
    assert row.endswith("| one - other: 0.20 [0.10, 0.30] | agrees |")
    assert "| **does not** |" in text
    assert "4 minutes of training, 3 of sampling" in text and "\nHot.\n" in text
    assert "| glide | GLIDE | 600 | 4.2 |" in text
    assert "Not measured yet: Guidance and diversity (`guidance`)" in text
    assert "| an arm | 0.50 [0.40, 0.60] | 7 | – | 0.0123 |" in text and "A remark." in text
    for name in results:
        assert f"(findings/{name}.png)" in text
        assert (tmp_path / "findings" / f"{name}.png").stat().st_size > 5_000
    assert set(json.loads((tmp_path / "findings.json").read_text())["findings"]) == set(results)


def test_every_claim_names_its_place_in_the_paper():
    for module in findings.FINDINGS.values():
        assert "ection" in module.SOURCE or "Table" in module.SOURCE
        assert len(module.CLAIM) > 40 and len(module.ABOUT) > 40


# Mistakes.


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    """An untrained cascade, a small shapes world, and its embeddings."""
    folder = tmp_path_factory.mktemp("findings") / "tiny"
    cascades.write(folder)
    inputs = ["shapes:train=64,validation=16", f"--out={folder}/data"]
    prepare.main([*inputs, f"--tokenizer={folder}/tokenizer"])
    case = [f"--clip={folder}/clip/export", f"--data={folder}/data", f"--out={folder}/embeddings"]
    embed.main([*case, "--batch=16"])
    return folder


LENGTHS = (f"--decoder-steps={STEPS}", f"--prior-steps={STEPS}")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only=prior"], "unknown --only 'prior'. Did you mean 'priors'"),
        (["--num=0"], "--num is 0; it must be greater than 0"),
        (["--images=0"], "--images is 0; it must be greater than 0"),
        (["--decoder-steps=0"], "--decoder-steps is 0; it must be greater than 0"),
        (["--prior-steps=-1"], "--prior-steps is -1; it must be greater than 0"),
        (["--out=page.txt"], "--out is 'page.txt'; give a name that ends in .md"),
        (["--out=nowhere/page.md"], "there is no such folder; create it first"),
        (["--nonsense=1"], "unknown argument '--nonsense=1'; overrides begin with --config."),
        (["--num=17"], "has 16 examples with a scene; --num=17"),
        (["--split=test"], "has no split 'test'"),
        (["--data=nowhere"], "no data set at nowhere"),
    ],
)
def test_mistakes_are_reported_before_anything_is_trained(run_dir, tmp_path, arguments, message):
    base = [f"--models={run_dir}", f"--work={tmp_path}", *LENGTHS]
    with pytest.raises(UserError, match=message):
        findings.main([*base, *arguments])
    assert not (tmp_path / "runs").exists()


def parse(run_dir, work):
    return findings.parse([f"--models={run_dir}", f"--work={work}", *LENGTHS])


def write_baseline(run_dir, work, name):
    """An untrained export where training would put it."""
    baseline = baseline_runs.by_name(name)
    spec = f"{ROOT}/experiments/{baseline.experiment}.py:tiny"
    stage = loading.read(spec, overrides=baseline.overrides).build_stage()
    manifest = load.read_manifest(run_dir / "clip" / "export")
    facts = {"tokenizer_hash": manifest.tokenizer_hash, "clip_id": manifest.clip_id}
    export.write_export(
        work / "runs" / name / baseline.stage / "export",
        params=tiny.random_params(stage),
        manifest=Manifest(stage=stage.name, size="tiny", step=STEPS, **stage.describe, **facts),
        tokenizer_dir=run_dir / "tokenizer",
    )


def test_a_baseline_of_the_models_own_length_is_the_models_own(run_dir, tmp_path):
    config = dataclasses.replace(parse(run_dir, tmp_path), decoder_steps=0)  # untrained
    folder = baseline_runs.prepare(baseline_runs.by_name("unclip"), config)
    assert (folder / "decoder").resolve() == (run_dir / "decoder").resolve()
    assert (folder / "prior").resolve() == (run_dir / "prior").resolve()


def test_a_baseline_of_another_length_is_rejected(run_dir, tmp_path):
    write_baseline(run_dir, tmp_path, "z_txt")
    config = dataclasses.replace(parse(run_dir, tmp_path), decoder_steps=5)
    with pytest.raises(UserError, match="was trained for 3 steps, but 5 are requested"):
        baseline_runs.prepare(baseline_runs.by_name("z_txt"), config)


def test_a_failed_training_is_reported_with_a_remedy(run_dir, tmp_path):
    config = dataclasses.replace(parse(run_dir, tmp_path), data=tmp_path / "nowhere")
    with pytest.raises(UserError, match="training 'eps' ended with status 2 .*same command again"):
        baseline_runs.prepare(baseline_runs.by_name("eps"), config)
    assert baseline_runs.minutes(tmp_path)["eps"] > 0


@pytest.mark.nightly
def test_one_command_trains_measures_and_reports_and_continues(
    run_dir, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(guidance, "SCALES", (1.0, 2.0))  # fewer programs to compile
    monkeypatch.setattr(steps, "SHARES", (1.0, 4.0))
    monkeypatch.setattr(statistics, "RESAMPLES", 20)
    monkeypatch.setattr(evaluation_set, "FRECHET_RESAMPLES", 10)
    for baseline in baseline_runs.BASELINES:
        if baseline.name != "glide":  # the one that it has to train itself
            write_baseline(run_dir, tmp_path, baseline.name)
    out = tmp_path / "findings.md"
    command = [f"--models={run_dir}", f"--work={tmp_path}", f"--out={out}", *LENGTHS, "--num=4"]
    command += ["--config.train.batch_size=8", "--config.optim.warmup_steps=1"]
    findings.main([*command, "--only=binding,steps"])
    first = json.loads(out.with_suffix(".json").read_text())
    assert list(first["findings"]) == ["binding", "steps"]
    assert load.read_manifest(tmp_path / "runs/glide/decoder/export").step == STEPS
    mtime = (tmp_path / "findings" / "points" / "steps.json").stat().st_mtime_ns
    findings.main(command)
    assert (tmp_path / "findings" / "points" / "steps.json").stat().st_mtime_ns == mtime
    whole = json.loads(out.with_suffix(".json").read_text())
    assert list(whole["findings"]) == list(findings.FINDINGS)
    assert {each["name"] for each in whole["baselines"]} == {
        b.name for b in baseline_runs.BASELINES
    }
    for name, case in whole["findings"].items():
        assert case["verdict"] == "undecided", name  # four captions decide nothing
        assert case["tests"] and len(case["rows"]) >= 2
    rows = {row["name"]: row for row in whole["findings"]["priors"]["rows"]}
    assert rows["the true z_img"]["cosine"]["value"] == pytest.approx(1.0, abs=1e-5)
    text = out.read_text()
    assert "Not measured yet" not in text and "| undecided |" in text
    assert "Prior type: undecided" in capsys.readouterr().out
    with pytest.raises(UserError, match="another protocol: num is 4 there and 5 here"):
        findings.main([*command, "--num=5"])
