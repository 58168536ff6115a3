"""Encoders of language models; tests/parity compares them with transformers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models import probes
from unclip_jax.core.checks import UserError
from unclip_jax.models.language_encoder import (
    LanguageEncoder,
    LanguageEncoderConfig,
    relative_buckets,
)

SIZES = {"width": 16, "depth": 2, "heads": 2, "head_width": 12, "mlp": 24, "vocab_size": 30}


def test_distances_share_rows_from_the_borders_on():
    rows = relative_buckets(200)
    assert rows[100, 100] == 0 and rows[100, 99] == 1 and rows[100, 101] == 17
    behind = rows[0, 1:] - 16  # keys behind the query, by distance
    borders = [int(i) + 1 for i in np.flatnonzero(np.diff(behind, prepend=0))]
    assert borders == [1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 23, 32, 46, 64, 91]
    np.testing.assert_array_equal(rows[:, 0][1:], behind)


@pytest.mark.parametrize("family", ["t5", "bert"])
def test_real_tokens_depend_neither_on_padding_nor_on_the_length(family):
    tokens = jax.random.randint(jax.random.key(0), (2, 9), 0, 30)
    mask = jnp.arange(9)[None] < jnp.array([[5], [3]])
    short, other = LanguageEncoderConfig(family, context=6, **SIZES), (tokens + 1 - mask) % 30
    long = LanguageEncoderConfig(family, context=9, **SIZES)
    params = probes.fresh(LanguageEncoder(long), tokens, mask)
    full = probes.apply(LanguageEncoder(long), params, tokens, mask)
    for cfg, ids in ((long, other), (short, tokens)):
        length = cfg.context
        x = probes.apply(LanguageEncoder(cfg), params, ids[:, :length], mask[:, :length])
        seen = mask[:, :length, None]
        np.testing.assert_allclose(x * seen, full[:, :length] * seen, atol=1e-6)
    unmasked = probes.apply(LanguageEncoder(long), params, tokens, mask | True)
    assert np.abs(full - unmasked).max() > 1e-3


def test_a_context_longer_than_in_training_is_rejected():
    with pytest.raises(UserError, match="context is 600, but this bert was trained on 512 tokens"):
        LanguageEncoderConfig("bert", context=600, **SIZES)
