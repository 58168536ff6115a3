"""`embed prior`: conditions and labels from files to samples in a file."""

import numpy as np
import pyarrow.parquet
import pytest
import safetensors.numpy

from tests.known_prior import model_of
from unclip_jax import embed
from unclip_jax.core.checks import UserError
from unclip_jax.inference.embedding_prior import EmbeddingPriorModel
from unclip_jax.models.condition_encoder import EncoderConfig
from unclip_jax.pairs.config import PairsConfig

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
    model = model_of(data, scaled, encoder=EncoderConfig(width=8, subjects=3, labels=LABELS))
    monkeypatch.setattr(EmbeddingPriorModel, "open", lambda path: model)
    np.save(tmp_path / "new.npy", X[:3])

    def run(*options, out="z.npy"):
        embed.main(["prior", "RUN", f"--out={tmp_path}/{out}", *options])
        return np.load(tmp_path / "z.npy") if out == "z.npy" else tmp_path / out

    return run


def test_rows_are_of_the_subjects_that_their_labels_name(command, tmp_path):
    (tmp_path / "labels.txt").write_text("bob\n anna \nzoe\n")
    options = [f"--x={tmp_path}/new.npy", f"--subjects={tmp_path}/labels.txt"]
    numbers = np.array([[11, 21], [12, 22], [10, 20]])
    np.testing.assert_allclose(command(*options, "--num=2"), X[:3, None] * numbers[..., None])
    (tmp_path / "labels.txt").write_text("bob\nanna\nzoi\n")
    with pytest.raises(UserError, match="for the subject 'zoi'; .* Did you mean 'zoe'"):
        command(*options)
    with pytest.raises(UserError, match="--subjects has 12 labels for 3 rows of --x; give one"):
        command(options[0], f"--subjects={tmp_path}/of_x.txt")
    with pytest.raises(
        UserError, match="give 'subject', one label per row .--subjects of `embed p"
    ):
        command(options[0])


def test_rows_that_are_not_finite_are_rejected_or_left_out(command, tmp_path, capsys):
    x = X[:4].copy()
    x[0, 2], x[2, 1] = np.nan, np.inf
    np.save(tmp_path / "bad.npy", x)
    (tmp_path / "labels.txt").write_text("bob\nanna\nzoe\nbob\n")
    options = [f"--x={tmp_path}/bad.npy", f"--subjects={tmp_path}/labels.txt", "--num=2"]
    message = "2 of 4 rows of x .*bad.npy. hold NaN or inf, first row 0; .*--bad-rows=skip"
    with pytest.raises(UserError, match=message):
        command(*options)
    samples = command(*options, "--bad-rows=skip")
    assert capsys.readouterr().out.endswith("2 rows, 2 samples each; 2 of 4 rows left out\n")
    expected = x[[1, 3], None] * np.array([[12, 22], [11, 21]])[..., None]
    np.testing.assert_allclose(samples, expected)
    table = pyarrow.parquet.read_table(command(*options, "--bad-rows=skip", out="z.parquet"))
    assert table["row"].to_pylist() == [1, 1, 3, 3]
    assert table["key"].to_pylist() == ["1", "1", "3", "3"]
    path = command(*options, "--bad-rows=skip", out="z.safetensors")
    assert safetensors.numpy.load_file(path)["row"].tolist() == [1, 1, 3, 3]
    with pytest.raises(UserError, match="unknown --bad-rows 'skpi'. Did you mean 'skip'"):
        command(*options, "--bad-rows=skpi")
    np.save(tmp_path / "bad.npy", x[:1])
    with pytest.raises(UserError, match="no row of .*bad.npy is left; it is empty, or every row"):
        command(*options, "--bad-rows=skip")


def test_conditions_have_equally_many_rows(command, tmp_path):
    np.save(tmp_path / "more.npy", X[:5])
    with pytest.raises(
        UserError, match=r"different numbers of rows .x 3, z 5.; give the same number"
    ):
        command(f"--x=x={tmp_path}/new.npy,z={tmp_path}/more.npy")
