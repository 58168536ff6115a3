import itertools

import numpy as np
import pytest

from unclip_jax.metrics.best_of import expected_best

RNG = np.random.default_rng(0)


def test_the_curve_is_the_mean_over_all_subsets():
    quality = RNG.integers(0, 2, (3, 6)).astype(float)
    scores = RNG.normal(size=(3, 6))
    scores[0, 4] = scores[0, 1]  # of equal ones the first
    curve = expected_best(quality, scores)
    for row, n in itertools.product(range(3), range(1, 7)):
        subsets = (list(s) for s in itertools.combinations(range(6), n))
        best = [quality[row, s[int(np.argmax(scores[row, s]))]] for s in subsets]
        assert curve[row, n - 1] == pytest.approx(np.mean(best))


def test_it_goes_from_the_mean_to_the_winner_and_rises_with_the_score_itself():
    scores = RNG.normal(size=(4, 200))
    curve = expected_best(scores, scores)
    np.testing.assert_allclose(curve[:, 0], scores.mean(1))
    np.testing.assert_allclose(curve[:, -1], scores.max(1))
    assert (np.diff(curve, axis=1) >= 0).all()
