"""`embed prior`: conditions and labels from files to samples in a file."""

import numpy as np
import pytest

from tests.known_prior import model_of
from unclip_jax import embed
from unclip_jax.core.checks import UserError
from unclip_jax.data.pairs_config import PairsConfig
from unclip_jax.inference.embedding_prior import EmbeddingPriorModel
from unclip_jax.models.condition_encoder import EncoderConfig

X = np.random.default_rng(0).normal(size=(12, 5)).astype(np.float32)
LABELS = ("zoe", "bob", "anna")


def scaled(fields, num):
    """The condition times the number of its subject and that of the sample."""
    number = fields["subject"][:, None, None] + 10 * np.arange(1, num + 1)[None, :, None]
    return fields["x"][:, None] * number


@pytest.fixture
def command(tmp_path, monkeypatch):
    """Runs `embed prior` with a model that has three subjects; returns the samples."""
    np.save(tmp_path / "x.npy", X)
    (tmp_path / "of_x.txt").write_text("anna\nbob\nzoe\nanna\n" * 3)
    data = PairsConfig(f"{tmp_path}/x.npy", f"{tmp_path}/x.npy", subjects=f"{tmp_path}/of_x.txt")
    known = model_of(data, scaled, encoder=EncoderConfig(width=8, subjects=3, labels=LABELS))
    monkeypatch.setattr(EmbeddingPriorModel, "open", lambda path: known)
    np.save(tmp_path / "new.npy", X[:3])

    def run(*options):
        embed.main(["prior", "RUN", f"--out={tmp_path}/z.npy", *options])
        return np.load(tmp_path / "z.npy")

    return run


def test_rows_are_of_the_subjects_that_their_labels_name(command, tmp_path):
    (tmp_path / "labels.txt").write_text("bob\nanna\nzoe\n")
    options = [f"--x={tmp_path}/new.npy", f"--subjects={tmp_path}/labels.txt"]
    numbers = np.array([[11, 21], [12, 22], [10, 20]])
    np.testing.assert_allclose(command(*options, "--num=2"), X[:3, None] * numbers[..., None])
    (tmp_path / "labels.txt").write_text("bob\nanna\nzoi\n")
    with pytest.raises(UserError, match="there is no subject 'zoi'"):
        command(*options)
