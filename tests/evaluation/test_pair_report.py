"""Reports of priors between embedding spaces: perfect, mean and calibrated predictions."""

import dataclasses
import json
import tracemalloc

import numpy as np
import pytest

from unclip_jax.core.checks import UserError
from unclip_jax.evaluation import pair_report

RNG = np.random.default_rng(0)
N, M, Z = 60, 9, 8
MEANS = RNG.normal(size=(N, Z))
TRUE = MEANS + 0.2 * RNG.normal(size=(N, Z))
SAMPLES = MEANS[:, None] + 0.2 * RNG.normal(size=(N, M, Z))


@pytest.fixture(scope="module")
def report():
    one = {
        "exact": TRUE[:, None],
        "calibrated": SAMPLES,
        "ridge": MEANS[:, None],
        "mean": np.ones((N, 1, Z)),
    }
    return pair_report.score_priors(TRUE, one, pool=20)


def test_figures_of_known_predictions(report):
    exact, calibrated, ridge, mean = report.priors.values()
    assert exact.cosine.value == pytest.approx(1.0) and exact.rank.value == 1.0
    assert exact.forward.value == exact.backward.value == 1.0
    assert mean.backward.value == 0.0  # ties count in full
    assert mean.rank.value == pytest.approx(10.5, abs=3)
    assert abs(mean.cosine.value) < 0.2 < ridge.cosine.value < 1.0
    assert calibrated.sample_cosine.value < calibrated.cosine.value
    assert ridge.sample_cosine.value == pytest.approx(ridge.cosine.value)


def test_calibration_is_of_samples(report):
    calibrated, ridge = report.priors["calibrated"], report.priors["ridge"]
    assert ridge.coverage is None and not ridge.histogram
    assert calibrated.coverage.expected == pytest.approx(0.8)  # one of ten ranks at each end
    assert abs(calibrated.coverage.measured.value - 0.8) < 0.05
    assert len(calibrated.histogram) == M + 1 and sum(calibrated.histogram) == pytest.approx(1.0)
    assert report.priors["exact"].energy.p_value > 0.5


def test_it_is_text_and_json(report):
    lines = str(report).splitlines()
    assert lines[0].split()[:2] == ["prior", "cosine"] and len(lines) == 6
    assert lines[-1].startswith("60 held-out pairs, retrieval among 20;")
    plain = json.loads(json.dumps(report.plain()))
    assert plain["priors"]["ridge"]["coverage"] is None
    assert plain["priors"]["exact"]["forward"]["hits"] == N


def test_figures_of_a_subject_are_those_of_its_pairs_alone():
    labels = np.array(["zoe", "anna"])[RNG.integers(0, 2, N)]
    labels[7] = "kim"  # of a single pair
    samples = {"calibrated": SAMPLES, "ridge": MEANS[:, None]}
    blocks = {"calibrated": (SAMPLES[i : i + 7] for i in range(0, N, 7)), "ridge": MEANS[:, None]}
    report = pair_report.score_priors(TRUE, blocks, pool=20, subjects=labels.tolist())
    assert list(report.subjects) == ["anna", "zoe"]
    for label, own in report.subjects.items():
        rows = labels == label
        alone = {name: each[rows] for name, each in samples.items()}
        expected = pair_report.score_priors(TRUE[rows], alone, pool=20)
        assert (own.pairs, own.pool) == (rows.sum(), 20)
        for name, one in expected.priors.items():
            for field in ("cosine", "sample_cosine", "forward", "backward", "rank", "energy"):
                np.testing.assert_allclose(getattr(own.priors[name], field), getattr(one, field))
            assert own.priors[name].coverage == one.coverage
    text = str(report)
    assert text.count("calibrated: anna  ") == text.count("ridge: zoe  ") == 1
    rows = int(np.sum(labels == "anna"))
    assert f"anna: {rows} pairs, retrieval of 20 pairs among 20" in text and "kim" not in text
    assert report.plain()["subjects"]["zoe"]["priors"]["ridge"]["cosine"]["total"] == np.sum(
        labels == "zoe"
    )


def test_the_note_says_what_the_pairs_are(report):
    def note(**fields):
        return str(dataclasses.replace(report, trained=fields)).split("\n")[5:]

    assert note(exact=0)[0].startswith("60 held-out pairs, retrieval among 20; 95 %")
    first, other, _ = note(exact=0, ridge=54)
    assert first.startswith("60 pairs, retrieval among 20; ")
    assert other.startswith("warning: ridge was trained on 54 of these pairs")
    first, other, _ = note(exact=None)
    assert first.startswith("60 pairs, ") and other.startswith("exact: its export does not state")


def test_small_p_values_are_not_zero(report):
    energy = [line.split("(p ")[1] for line in str(report).splitlines() if "(p " in line]
    assert energy[-1] == "0.005)"  # of the mean: 1 of 201
    assert "p from 200 random divisions" in str(report)


def test_retrieval_among_fewer_targets_than_asked_for_says_so():
    one = pair_report.score_priors(TRUE, {"a": SAMPLES}, pool=50)
    assert "60 held-out pairs, retrieval of 50 pairs among 50; " in str(one)
    assert "60 held-out pairs, retrieval among 60; " in str(
        pair_report.score_priors(TRUE, {"a": SAMPLES}, pool=300)
    )


def test_sequences_are_compared_flat():
    true = TRUE.reshape(N, 2, 4)
    one = pair_report.score_priors(true, {"a": SAMPLES.reshape(N, M, 2, 4)}, pool=20)
    other = pair_report.score_priors(TRUE, {"a": SAMPLES}, pool=20)
    assert one.priors["a"].cosine == other.priors["a"].cosine


def test_blocks_are_judged_like_the_whole(report):
    blocks = (SAMPLES[start : start + 7] for start in range(0, N, 7))
    one = pair_report.score_priors(TRUE, {"calibrated": blocks}, pool=20)
    assert one.priors["calibrated"] == report.priors["calibrated"]
    with pytest.raises(UserError, match="a has samples of 59 pairs for 60; give all"):
        pair_report.score_priors(TRUE, {"a": iter([SAMPLES[:59]])})


def test_memory_does_not_grow_with_the_number_of_samples():
    num, size = 200, 2000
    blocks = (RNG.normal(size=(2, num, size)).astype(np.float32) for _ in range(30))
    true = RNG.normal(size=(60, size)).astype(np.float32)
    tracemalloc.start()
    pair_report.score_priors(true, {"a": blocks}, pool=20)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 60 * num * size * 4 / 3  # a third of all samples


def test_equal_targets_are_one_candidate_of_retrieval(report):
    twice = {"exact": np.repeat(TRUE, 2, axis=0)[:, None]}
    one = pair_report.score_priors(np.repeat(TRUE, 2, axis=0), twice, pool=300)
    assert (one.pairs, one.pool) == (2 * N, N)
    assert one.priors["exact"].forward.value == one.priors["exact"].backward.value == 1.0


def test_a_plot_is_written(report, tmp_path):
    pair_report.plot(report, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes()[:4] == b"\x89PNG"


def test_samples_that_do_not_match_are_rejected():
    with pytest.raises(UserError, match=r"a has samples \[60, 8\] for targets \[60, 8\]"):
        pair_report.score_priors(TRUE, {"a": TRUE})
    with pytest.raises(UserError, match="1 held-out pairs are too few to score"):
        pair_report.score_priors(TRUE[:1], {})
