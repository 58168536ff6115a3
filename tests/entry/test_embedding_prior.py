"""A prior between two embedding spaces from the command line and from Python."""

import json

import jax
import numpy as np
import pytest

import unclip_jax
from unclip_jax import evaluate, train
from unclip_jax.core.checks import UserError
from unclip_jax.experiment import fit_prior, loading
from unclip_jax.inference.embedding_prior import EmbeddingPriorModel

N = 200
RNG = np.random.default_rng(0)
HIDDEN = RNG.normal(size=(N, 3))
X = (HIDDEN @ RNG.normal(size=(3, 6)) + 0.1 * RNG.normal(size=(N, 6))).astype(np.float32)
Y = (HIDDEN @ RNG.normal(size=(3, 5)) + 0.1 * RNG.normal(size=(N, 5))).astype(np.float32)
SETTINGS = {"train.steps": 12, "train.eval_every": 12, "train.batch_size": 32}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    np.save(folder / "x.npy", X)
    np.save(folder / "y.npy", Y)
    return folder


@pytest.fixture(scope="module")
def run(place):
    """A run of the command."""
    data = [f"--config.data.{name}={place}/{name}.npy" for name in "xy"]
    settings = [f"--config.{key}={value}" for key, value in SETTINGS.items()]
    workdir = place / "mine"
    train.main(["--config=embedding_prior:tiny", f"--workdir={workdir}", *data, *settings])
    return workdir


@pytest.fixture(scope="module")
def prior(run):
    return unclip_jax.open_prior(run)


def test_the_model_is_of_the_shapes_of_the_data(prior):
    assert prior.cfg.model.conditions[0].shape == (6,) and prior.cfg.model.target == (5,)
    assert prior.manifest.data.startswith("200 pairs of ")
    assert prior.manifest.step == 12


def test_validation_reports_the_baseline(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    last = [line for line in lines if "val/loss" in line][-1]
    assert last["val/cosine_ridge"] > 0.9  # the relation is linear
    assert {"val/cosine", "val/rank", "val/sample_cosine"} <= last.keys()


def test_samples_are_addressed_by_row_and_number(prior):
    samples = prior.sample(X[:3], num=2, steps="4")
    assert samples.shape == (3, 2, 5) and samples.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(samples, axis=-1), 1.0, rtol=1e-5)
    in_parts = prior.sample(X[:3], num=2, steps="4", batch=4)
    np.testing.assert_allclose(in_parts, samples, rtol=1e-4, atol=1e-5)
    assert np.abs(prior.sample(X[:3], num=2, steps="4", seed=1) - samples).max() > 1e-3
    guided = prior.sample(X[:3], num=2, steps="4", guidance=2.0)
    assert np.abs(guided - samples).max() > 1e-4


def test_the_linear_prediction_and_the_mean(prior):
    unit = Y / np.linalg.norm(Y, axis=1, keepdims=True)
    cosine = np.sum(prior.linear(X) * unit, axis=1).mean()
    assert cosine > 0.9
    assert np.linalg.norm(prior.mean()) == pytest.approx(1.0, rel=1e-5)


def test_it_is_saved_and_opened(prior, tmp_path):
    prior.save(tmp_path / "saved")
    again = EmbeddingPriorModel.open(tmp_path / "saved")
    jax.tree.map(np.testing.assert_array_equal, again.params, prior.params)
    assert again.cfg == prior.cfg


def test_the_evaluation_compares_with_the_ridge_and_the_mean(run, place, tmp_path, capsys):
    data = [f"--x={place}/x.npy", f"--y={place}/y.npy"]
    options = ["--num=4", "--steps=4", "--pool=10", f"--out={tmp_path}/report"]
    evaluate.main(["pairs", str(run), *data, *options])
    table = capsys.readouterr().out
    assert [line.split()[0] for line in table.splitlines()] == [
        "prior",
        "mine",
        "ridge",
        "mean",
        "20",
    ]
    report = json.loads((tmp_path / "report" / "pairs.json").read_text())
    assert report["pairs"] == 20 and report["priors"]["mine"]["coverage"]["expected"] == 0.6
    assert (
        report["priors"]["ridge"]["cosine"]["value"] > report["priors"]["mean"]["cosine"]["value"]
    )
    assert (tmp_path / "report" / "pairs.png").is_file()


def test_a_ridge_is_trained_by_the_same_command_in_one_step(place):
    data = [f"--config.data.{name}={place}/{name}.npy" for name in "xy"]
    experiment = loading.read("embedding_prior:ridge", overrides=data)
    assert (experiment.model.method, experiment.train.steps) == ("ridge", 1)


def test_arrays_in_memory_are_written_for_the_same_command(tmp_path):
    ragged = [np.ones((i % 3 + 1, 4), np.float32) * i for i in range(5)]
    place = fit_prior._written(tmp_path, "text", ragged)
    column = fit_prior.open_column(place)
    for i, sequence in enumerate(ragged):
        np.testing.assert_array_equal(column[i], sequence)
    with pytest.raises(UserError, match="x holds objects; give arrays of numbers"):
        fit_prior._written(tmp_path, "x", np.array([[{}], [{}]]))


def test_python_trains_with_several_conditions(tmp_path, monkeypatch):
    seen = {}

    def remember(experiment, folder):
        seen["experiment"] = experiment
        raise UserError("enough")

    monkeypatch.setattr(fit_prior.training_run, "train_and_export", remember)
    with pytest.raises(UserError, match="enough"):
        unclip_jax.fit_prior(
            {"brain": X, "text": X[:, :2]},
            Y,
            size="tiny",
            groups=np.arange(N) % 5,
            settings={"model.scaling": "standardised"},
            workdir=tmp_path,
        )
    experiment = seen["experiment"]
    assert list(experiment.data.named()) == ["brain", "text"]
    assert experiment.model.scaling == "standardised" and experiment.data.groups.endswith(".npy")


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (X[:2, :5], r"x has rows of shape \[5\]; this prior takes \[6\]"),
        ({"z": X}, "this prior has the conditions x, not z"),
        ({}, "has the conditions x, not none"),
        (X[:0], r"different numbers of rows, or none \(x 0\)"),
        (np.full_like(X[:2], np.inf), "2 rows of x hold NaN or inf, first row 0"),
    ],
)
def test_conditions_that_do_not_fit_are_refused(prior, x, message):
    with pytest.raises(UserError, match=message):
        prior.sample(x)


def test_data_of_other_shapes_than_the_export_are_refused(run, place, tmp_path):
    np.save(tmp_path / "x.npy", X[:, :4])
    data = [f"--x={tmp_path}/x.npy", f"--y={place}/y.npy", f"--out={tmp_path}/out"]
    with pytest.raises(UserError, match=r"x has rows \[4\] of float32; the model takes \[6\]"):
        evaluate.main(["pairs", str(run), *data])


def test_arrays_are_needed():
    with pytest.raises(UserError, match="config.data.x is empty; give arrays, such as"):
        loading.read("embedding_prior:tiny", overrides=["--config.data.x="])
