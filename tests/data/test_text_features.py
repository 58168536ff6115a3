"""Features of captions on disk: what is written is read, by the tokens of a caption."""

import jax.numpy as jnp
import numpy as np
import pytest

from unclip_jax.core.checks import UserError
from unclip_jax.data import text_features
from unclip_jax.data.text_features import TextFeatureFolder, TextFeatureStore

INFO = {"text_encoder_id": "abc", "width": 3, "context": 4}
ROWS = [np.array([5, 6, 1]), np.array([1]), np.array([5, 1])]
RNG = np.random.default_rng(0)
FEATURES = [RNG.normal(size=(len(row), 3)).astype(jnp.bfloat16) for row in ROWS]
TOKENS = np.array([[5, 1, 0, 0], [5, 6, 1, 0], [1, 0, 0, 0]])
MASK = TOKENS > 0


def write(folder, *, finish=True):
    writer = TextFeatureFolder(folder, info=INFO)
    writer.write(1, ROWS[2:], FEATURES[2:])
    writer.write(0, ROWS[:2], FEATURES[:2])
    if finish:
        writer.complete(2)


def test_features_are_found_by_the_tokens_and_padded(tmp_path):
    write(tmp_path)
    store = TextFeatureStore(tmp_path)
    out = store.batch(TOKENS, MASK)
    assert len(store) == 3 and out.dtype == jnp.bfloat16
    for row, length in ((0, 2), (1, 3), (2, 1)):
        expected = FEATURES[[2, 0, 1][row]]
        np.testing.assert_array_equal(out[row, :length], expected)
        assert not out[row, length:].any()


def test_a_caption_that_is_not_stored_is_rejected(tmp_path):
    write(tmp_path)
    with pytest.raises(UserError, match="lacks the features of a caption of 3 tokens"):
        TextFeatureStore(tmp_path).batch(np.array([[5, 7, 1, 0]]), MASK[1:2])


@pytest.mark.parametrize("name", ["lengths", "features", "digests"])
def test_a_file_that_was_cut_short_is_rejected_by_name(tmp_path, name):
    write(tmp_path)
    path = tmp_path / f"{name}_0001.npy"
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(UserError, match=f"{name}_0001.npy cannot be read: .*embed text"):
        TextFeatureStore(tmp_path)


def test_an_interrupted_run_knows_what_is_written(tmp_path):
    write(tmp_path, finish=False)
    with pytest.raises(UserError, match="is half-written; run the same"):
        TextFeatureStore(tmp_path)
    (tmp_path / "digests_0001.npy").unlink()  # written last, so the shard does not count
    again = TextFeatureFolder(tmp_path, info=INFO)
    assert [again.is_written(index) for index in range(2)] == [True, False]
    again.complete(2, partial=True)
    assert not again.finished
    with pytest.raises(UserError, match="lacks the shards 1 of 2; run the same command again"):
        again.complete(2)
    again.write(1, ROWS[2:], FEATURES[2:])
    again.complete(2, partial=True)
    assert again.finished and again.captions() == 3
    np.testing.assert_array_equal(
        TextFeatureStore(tmp_path).batch(TOKENS, MASK)[0, :2], FEATURES[2]
    )


def test_features_of_another_encoder_are_not_continued(tmp_path):
    write(tmp_path)
    with pytest.raises(UserError, match="with text_encoder_id = 'abc', now it is 'xyz'"):
        TextFeatureFolder(tmp_path, info={**INFO, "text_encoder_id": "xyz"})
    with pytest.raises(UserError, match="no features of captions in"):
        TextFeatureStore(tmp_path / "elsewhere")


def test_digests_that_begin_alike_and_captions_in_two_shards(tmp_path, monkeypatch):
    """Eight bytes are searched for, sixteen compared; an empty shard does no harm."""
    monkeypatch.setattr(
        text_features, "digest", lambda row: b"same----" + bytes(row.astype("<i4"))[:4] * 2
    )
    writer = TextFeatureFolder(tmp_path, info=INFO)
    rows = [np.array([i, 1]) for i in range(2, 40)]
    features = [np.full((2, 3), i, np.float32) for i in range(2, 40)]
    writer.write(0, rows, features)
    writer.write(1, [], [])
    writer.write(2, rows[:3], features[:3])
    writer.complete(3)
    store = TextFeatureStore(tmp_path)
    tokens = np.array([[i, 1, 0, 0] for i in range(2, 40)])
    out = store.batch(tokens, tokens > 0)
    np.testing.assert_array_equal(out[:, 0, 0].astype(np.float32), np.arange(2, 40))
    with pytest.raises(UserError, match="lacks the features"):
        store.batch(np.array([[77, 1]]), np.array([[True, True]]))
