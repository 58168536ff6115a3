"""Our scores beside torch-fidelity's own functions, on the same features and the same pictures."""

import numpy as np
import pytest

from tests.parity.test_inception import reference
from unclip_jax.evaluation import feature_extraction, image_sets
from unclip_jax.metrics import extractors, frechet, kernels, neighbours, scores
from unclip_jax.metrics import inception_weights as weights

torch = pytest.importorskip("torch")
pytest.importorskip("torch_fidelity")
from torch_fidelity import (  # noqa: E402
    feature_extractor_inceptionv3,
    metric_fid,
    metric_isc,
    metric_kid,
    metric_prc,
)

CLOSE = 1e-4


@pytest.fixture(scope="module")
def features():
    """Real and fake: two clouds that overlap in part, correlated and not of one scale."""
    rng = np.random.default_rng(0)
    mix = rng.normal(size=(32, 32)) * np.geomspace(0.05, 2, 32)[None]
    real = rng.normal(size=(400, 32)) @ mix
    fake = 0.8 * rng.normal(size=(300, 32)) @ mix + 0.3
    return real, fake


def fid(one, other):
    statistics = [
        metric_fid.fid_features_to_statistics(torch.from_numpy(each)) for each in (one, other)
    ]
    return metric_fid.fid_statistics_to_metric(*statistics, False)[metric_fid.KEY_METRIC_FID]


def kid(one, other, size):
    result = metric_kid.kid_features_to_metric(
        torch.from_numpy(one), torch.from_numpy(other), kid_subsets=2, kid_subset_size=size
    )
    return result[metric_kid.KEY_METRIC_KID_MEAN]


def precision_recall(real, fake, k):
    result = metric_prc.prc_features_to_metric(
        torch.from_numpy(fake), torch.from_numpy(real), prc_neighborhood=k, verbose=False
    )
    return result[metric_prc.KEY_METRIC_PRECISION], result[metric_prc.KEY_METRIC_RECALL]


def inception_score(logits, splits):
    result = metric_isc.isc_features_to_metric(torch.from_numpy(logits), splits, shuffle=False)
    return result[metric_isc.KEY_METRIC_ISC_MEAN]


def softmax(logits):
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    return p / p.sum(axis=1, keepdims=True)


def test_fid(features):
    ours = frechet.squared_distance(*(frechet.moments(each) for each in features))
    assert ours == pytest.approx(fid(*features), rel=CLOSE)


def test_kid(features):
    """Of subsets as large as the smaller set; which ones are drawn is each library's own affair."""
    real, fake = (each[:300] for each in features)
    ours = kernels.kid(real, fake, subsets=2, size=300)
    assert ours.value == pytest.approx(kid(real, fake, 300), rel=CLOSE)
    assert ours.std == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("k", [3, 5])
def test_precision_and_recall(features, k):
    real, fake = features
    ours = neighbours.overlap(real, fake, k=k)
    expected = precision_recall(real, fake, k)
    assert (ours.precision, ours.recall) == pytest.approx(expected, rel=CLOSE)
    assert 0.1 < ours.precision < 1 and 0.1 < ours.recall < 1  # or nothing would be compared


@pytest.mark.parametrize("splits", [1, 10])
def test_inception_score(splits):
    logits = 3 * np.random.default_rng(1).normal(size=(500, 40))
    ours = scores.inception_score(softmax(logits), split=500 // splits)
    assert ours.count == splits
    assert ours.value == pytest.approx(inception_score(logits, splits), rel=CLOSE)


def test_the_same_images_and_weights_to_the_same_scores(tmp_path):
    """From uint8 pictures on: resize, network, features, scores; weights of one file."""
    torch.save(reference(1).state_dict(), tmp_path / "inception.pth")
    theirs = feature_extractor_inceptionv3.FeatureExtractorInceptionV3(
        "inception-v3-compat",
        ["2048", "logits_unbiased"],
        feature_extractor_weights_path=str(tmp_path / "inception.pth"),
    )
    params = weights.load(tmp_path / "inception.pth")
    ours = extractors.inception(params, weights="random")
    rng = np.random.default_rng(2)
    pools, expected = [], []
    for top in (256, 160):
        images = rng.integers(0, top, (8, 64, 64, 3)).astype(np.uint8)
        result = feature_extraction.collect(
            ours, image_sets.in_memory(images, where="x"), batch_size=8
        )
        with torch.no_grad():
            pool, logits = theirs(torch.from_numpy(images.transpose(0, 3, 1, 2)))
        pool, logits = pool.numpy(), logits.numpy()
        assert np.abs(result.pool - pool).max() <= CLOSE * np.abs(pool).max()
        probabilities = scores.inception_score(result.probabilities, split=8)
        assert probabilities.value == pytest.approx(inception_score(logits, 1), rel=CLOSE)
        pools.append(result.pool)
        expected.append(pool)
    assert kernels.kid(*pools, subsets=2).value == pytest.approx(kid(*expected, 8), rel=CLOSE)
    few = [each[:, :4].astype(np.float64) for each in (*pools, *expected)]  # a full covariance
    distance = frechet.squared_distance(frechet.moments(few[0]), frechet.moments(few[1]))
    assert distance == pytest.approx(fid(*few[2:]), rel=CLOSE)
