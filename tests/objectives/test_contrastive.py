"""The contrastive loss of the encoder: by hand, and its limits."""

import jax
import jax.numpy as jnp
import numpy as np

from unclip_jax.core.arrays import unit
from unclip_jax.objectives import contrastive

RNG = np.random.default_rng(0)
N = 5
X, Y = (unit(jnp.asarray(RNG.normal(size=(N, 3)), jnp.float32)) for _ in range(2))


def by_hand(share, other, scale):
    scores = scale * np.asarray(X, np.float64) @ np.asarray(Y, np.float64).T
    total = np.zeros(N)
    for i in range(N):
        for j, weight in ((i, share[i]), (other[i], 1 - share[i])):
            total[i] -= weight * (scores[i, j] - np.log(np.exp(scores[i]).sum())) / 2
            total[j] -= weight * (scores[i, j] - np.log(np.exp(scores[:, j]).sum())) / 2
    return total


def test_it_is_the_mean_of_both_directions_over_mixed_pairs():
    share, other = RNG.uniform(size=N).astype(np.float32), np.array([1, 2, 3, 4, 0])
    options = {"share": jnp.asarray(share), "other": jnp.asarray(other)}
    losses = contrastive.losses(X, Y, scale=jnp.asarray(3.0), **options)
    np.testing.assert_allclose(losses, by_hand(share, other, 3.0), rtol=1e-5)


def test_without_mixing_it_is_clips_loss():
    mixture = contrastive.mixed(X, mixup=0.0, key=jax.random.key(0))
    np.testing.assert_array_equal(mixture.x, X)
    options = {"scale": jnp.asarray(2.0), "share": mixture.share, "other": mixture.other}
    scores = 2.0 * X @ Y.T
    forward = -jnp.diagonal(jax.nn.log_softmax(scores, axis=1))
    backward = -jnp.diagonal(jax.nn.log_softmax(scores, axis=0))
    losses = contrastive.losses(X, Y, **options)
    np.testing.assert_allclose(losses, (forward + backward) / 2, rtol=1e-5)


def test_rows_are_mixed_with_each_other_by_their_share():
    mixture = contrastive.mixed(X, mixup=0.3, key=jax.random.key(0))
    share = np.asarray(mixture.share)[:, None]
    np.testing.assert_allclose(mixture.x, X * share + X[mixture.other] * (1 - share), rtol=1e-5)
    assert sorted(np.asarray(mixture.other).tolist()) == list(range(N))
    assert ((share > 0) & (share < 1)).all()
