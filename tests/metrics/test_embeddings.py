import numpy as np
import pytest

from unclip_jax.metrics import embeddings


def unit_rows(seed, n=40, d=8):
    rows = np.random.default_rng(seed).normal(size=(n, d))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_true_embeddings_have_rank_1_and_cosine_1():
    true = unit_rows(0)
    assert embeddings.cosine(true, true).value == pytest.approx(1.0)
    assert embeddings.retrieval_rate(true, true, group=40).value == 1.0
    assert list(embeddings.retrieval_ranks(true, true, group=40)) == [1] * 40


def test_ranks_by_brute_force_within_groups():
    samples, true = unit_rows(1), unit_rows(2)
    result = embeddings.retrieval_ranks(samples, true, group=12)
    assert len(result) == 36  # the last 4 fill no group
    for i, rank in enumerate(result):
        group = range(i // 12 * 12, i // 12 * 12 + 12)
        assert rank == sum(samples[i] @ true[j] >= samples[i] @ true[i] for j in group)


def test_a_group_larger_than_the_set_is_the_set():
    samples, true = unit_rows(1), unit_rows(2)
    few = embeddings.retrieval_ranks(samples[:5], true[:5], group=256)
    np.testing.assert_array_equal(few, embeddings.retrieval_ranks(samples, true, group=5)[:5])


def test_constant_embeddings_have_the_worst_rank():
    same = np.repeat(unit_rows(3)[:1], 40, axis=0)
    assert list(embeddings.retrieval_ranks(unit_rows(4), same, group=40)) == [40] * 40


def test_equal_captions_count_once():
    assert list(embeddings.first_occurrences(["b", "a", "b", "c", "a"])) == [0, 1, 3]
