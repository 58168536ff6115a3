import numpy as np
import pytest

from unclip_jax.core.checks import UserError
from unclip_jax.metrics import scores


def test_inception_score_is_one_for_indifferent_images():
    assert scores.inception_score(np.full((20, 10), 0.1)).value == pytest.approx(1.0)


def test_inception_score_is_the_number_of_classes_when_sure_and_even():
    assert scores.inception_score(np.tile(np.eye(10), (3, 1))).value == pytest.approx(10.0)


def test_inception_score_is_the_mean_over_consecutive_splits():
    sure, same = np.eye(4), np.tile(np.eye(4)[:1], (4, 1))
    result = scores.inception_score(np.concatenate([sure, same]), split=4)
    assert result.value == pytest.approx((4.0 + 1.0) / 2)
    assert result.count == 2


def test_inception_score_is_the_formula():
    p = np.random.default_rng(0).dirichlet(np.ones(5), size=30)
    q = p.mean(0)
    kl = [sum(a * np.log(a / b) for a, b in zip(row, q, strict=True)) for row in p]
    assert scores.inception_score(p).value == pytest.approx(np.exp(np.mean(kl)), rel=1e-12)


def test_clip_score_is_a_hundred_times_the_cosine_of_pairs():
    z_img = np.float32([[2, 0], [0, 1], [1, 1]])
    z_txt = np.float32([[3, 0], [0, -1], [1, 0]])
    result = scores.clip_score(z_img, z_txt)
    cosines = 100 * np.array([1, -1, np.sqrt(0.5)])
    assert result.value == pytest.approx(cosines.mean())
    assert result.error == pytest.approx(cosines.std(ddof=1) / np.sqrt(3))


def test_clip_score_needs_a_caption_per_image():
    with pytest.raises(UserError, match="3 images and 2 captions"):
        scores.clip_score(np.ones((3, 2)), np.ones((2, 2)))


def test_diversity_is_the_mean_over_pairs_then_over_captions():
    z = np.random.default_rng(1).standard_normal((6, 4))
    captions = ["a", "b", "a", "a", "b", "alone"]
    u = z / np.linalg.norm(z, axis=1, keepdims=True)
    a = np.mean([1 - u[i] @ u[j] for i, j in ((0, 2), (0, 3), (2, 3))])
    b = 1 - u[1] @ u[4]
    result = scores.diversity(z, captions)
    assert result.value == pytest.approx((a + b) / 2)
    assert result.count == 2


def test_diversity_of_copies_is_zero_and_of_opposites_two():
    z = np.float32([[1, 2], [1, 2]])
    assert scores.diversity(z, [0, 0]).value == pytest.approx(0, abs=1e-12)
    assert scores.diversity(z * np.float32([[1], [-1]]), [0, 0]).value == pytest.approx(2)


def test_diversity_of_single_images_is_unknown():
    with pytest.raises(UserError, match="no caption has two images"):
        scores.diversity(np.ones((2, 3)), ["a", "b"])
