import dataclasses
import json

import numpy as np
import pytest

from unclip_jax.core.checks import UserError
from unclip_jax.metrics.report import SetFeatures, compare
from unclip_jax.metrics.running import RunningMoments
from unclip_jax.metrics.score_options import ScoreOptions

PROTOCOL = {"features": "Inception-v3", "weights": "abc", "resize": "tf1"}
FACTS = {"source": "a", "count": 30, "size": "64 x 64", "crop": "none"}


def feature_set(seed=0, count=30, width=5, **changes):
    rng = np.random.default_rng(seed)
    pool = rng.standard_normal((count, width)).astype(np.float32)
    spatial = RunningMoments.of(rng.standard_normal((count, 3))).moments()
    chances = rng.dirichlet(np.ones(4), count).astype(np.float32)
    case = SetFeatures(
        {**FACTS, "count": count},
        PROTOCOL,
        RunningMoments.of(pool).moments(),
        spatial,
        pool,
        chances,
    )
    return dataclasses.replace(case, **changes)


def test_identical_sets_have_ideal_values():
    one = feature_set()
    result = compare(one, one, kind="inception").scores
    ideals = {"fid": 0, "sfid": 0, "precision": 1, "recall": 1, "coverage": 1}
    for name, ideal in ideals.items():
        assert result[name] == pytest.approx(ideal, abs=1e-6), name
    assert result["kid"] < 0  # unbiased: pairs of a picture with itself count in one term alone
    assert result["density"] == pytest.approx(1, abs=0.2)  # ties of rounding may count
    clip = compare(one, one, kind="clip").scores
    assert clip["cmmd"] == pytest.approx(0, abs=1e-9)
    assert "fid" not in clip
    assert clip["frechet"] == pytest.approx(0, abs=1e-6)


def test_a_report_holds_its_protocol_and_is_json():
    report = compare(
        feature_set(), feature_set(1, 40), kind="inception", options=ScoreOptions(seed=3)
    )
    assert report.protocol["kid"] == "100 subsets of 30, seed 3"
    assert report.protocol["neighbours"] == {"k": 3, "k_density": 5}
    assert report.protocol["real"]["count"] == 30
    assert report.protocol["fake"]["count"] == 40
    assert {**report.protocol, **PROTOCOL} == report.protocol
    assert json.loads(json.dumps(report.plain()))["scores"] == report.scores
    text = str(report)
    for line in ("fid ", "resize: tf1", "kid: 100 subsets of 30, seed 3", "    count: 40"):
        assert line in text
    assert "WARNING" not in text


def test_too_few_images_for_the_covariance_are_a_warning():
    report = compare(feature_set(count=20, width=25), feature_set(count=60, width=25), kind="clip")
    text = str(report)
    assert "WARNING: real has 20 images, too few for a covariance of 25 dimensions" in text
    assert "fake has" not in text
    assert report.plain()["warnings"] == report.warnings != []


@pytest.mark.parametrize("part", ["features", "weights", "resize"])
def test_mixed_protocols_are_rejected(part):
    other = feature_set(protocol={**PROTOCOL, part: "other"})
    with pytest.raises(UserError, match=f"protocols are mixed: {part} is"):
        compare(feature_set(), other, kind="inception")


def test_doubtful_scores_have_warnings():
    real = feature_set(facts={**FACTS, "size": "256 x 256", "crop": "centre"}, lossy=True)
    warnings = "\n".join(compare(real, feature_set(), kind="inception").warnings)
    assert "size differs, 256 x 256 for real and 64 x 64 for fake" in warnings
    assert "crop differs" in warnings
    assert "only real holds lossy files" in warnings


def test_statistics_of_others_give_frechet_distances_and_a_warning():
    real = feature_set(
        facts={"source": "ref.npz", "count": None}, protocol={}, pool=None, probabilities=None
    )
    report = compare(real, feature_set(1), kind="inception")
    assert {"fid", "sfid", "inception_score"} == set(report.scores)
    warnings = "\n".join(report.warnings)
    assert "do not record their number of images" in warnings
    assert "ref.npz does not record how its features were computed" in warnings
