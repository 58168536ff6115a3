"""Figures of priors on held-out pairs, compared with those of the same samples by hand."""

import dataclasses
import json
import pathlib
from collections.abc import Callable

import numpy as np
import pytest

from tests.known_prior import KnownModel, model_of
from unclip_jax.core.checks import UserError
from unclip_jax.evaluation import pair_evaluation
from unclip_jax.evaluation.pair_evaluation import PairEvaluation, evaluate_pairs
from unclip_jax.models.condition_encoder import EncoderConfig
from unclip_jax.pairs.config import PairsConfig

N = 40
RNG = np.random.default_rng(0)
X = RNG.normal(size=(N, 6)).astype(np.float32)
MAP = RNG.normal(size=(6, 8)).astype(np.float32)
Y = X @ MAP + 1.0
HELD_OUT = RNG.permutation(N) < 15
SUBJECTS = np.where(RNG.permutation(N) < 16, "anna", "zoe")
LABELS = ("zoe", "bob", "anna")  # another order than that of the data


@pytest.fixture
def place(tmp_path):
    np.save(tmp_path / "x.npy", X)
    np.save(tmp_path / "y.npy", Y)
    np.savetxt(tmp_path / "splits.txt", np.where(HELD_OUT, "validation", "train"), fmt="%s")
    np.savetxt(tmp_path / "subjects.txt", SUBJECTS, fmt="%s")
    return tmp_path


def settings(place: pathlib.Path, **more) -> dict[str, str]:
    names = {name: f"{place}/{name}.npy" for name in "xy"}
    return {**names, "splits": f"{place}/splits.txt", **more}


@pytest.fixture
def evaluation(place, monkeypatch):
    """Evaluates models by name."""

    def evaluate(models: dict[str, KnownModel], **options):
        monkeypatch.setattr(
            pair_evaluation.EmbeddingPriorModel, "open", lambda path: models[path.name]
        )
        runs = tuple(map(pathlib.Path, models))
        config = PairEvaluation(runs, **{**settings(place), "num": 3, "pool": 15, **options})
        return evaluate_pairs(config, out=place / "out")

    return evaluate


def unit(rows):
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def cosine(guess, true):
    return float(np.mean(np.sum(unit(guess) * unit(true), axis=-1)))


def noisy(scale: float) -> Callable:
    """Samples around the true targets; the noise depends on the row, found by its x."""

    def function(fields, num):
        rows = [np.flatnonzero((x == X).all(axis=1))[0] for x in fields["x"]]
        noise = np.random.default_rng(7).normal(size=(N, num, 8))
        return Y[rows][:, None] + scale * noise[rows]

    return function


def test_every_figure_is_of_the_own_pairs(place, evaluation):
    data = PairsConfig(**settings(place))
    models = {"near": model_of(data, noisy(0.5)), "far": model_of(data, noisy(3.0))}
    report = evaluation(models)
    assert list(report.priors) == ["near", "ridge", "mean", "far"] and report.pairs == 15
    true = Y[HELD_OUT]
    for name, scale in (("near", 0.5), ("far", 3.0)):
        samples = noisy(scale)({"x": X[HELD_OUT]}, 3)
        one, guess = report.priors[name], samples.mean(axis=1)
        scores = unit(guess) @ unit(true).T
        assert one.cosine.value == pytest.approx(cosine(guess, true), rel=1e-5)
        assert one.sample_cosine.value == pytest.approx(cosine(samples, true[:, None]), rel=1e-5)
        assert one.forward.hits == np.sum(scores.argmax(axis=1) == np.arange(15))
        assert one.backward.hits == np.sum(scores.argmax(axis=0) == np.arange(15))
        ranks = (scores >= np.diag(scores)[:, None]).sum(axis=1)
        assert one.rank.value == pytest.approx(ranks.mean())
    assert report.priors["near"].cosine.value > report.priors["far"].cosine.value
    mean = np.broadcast_to(Y[~HELD_OUT].mean(axis=0), true.shape)
    assert report.priors["mean"].cosine.value == pytest.approx(cosine(mean, true), rel=1e-4)
    ridge = report.priors["ridge"]  # y is a linear function of x
    assert ridge.cosine.value > 0.999 and ridge.forward.hits == ridge.backward.hits == 15
    plain = json.loads((place / "out" / "pairs.json").read_text())["priors"]
    assert plain["far"]["cosine"]["value"] == report.priors["far"].cosine.value


def test_a_model_that_does_not_contain_the_mean_is_not_compared_with_it(place, evaluation):
    base = model_of(PairsConfig(**settings(place)), noisy(0.5))
    model = dataclasses.replace(base.cfg.model, ridge=False)
    without = dataclasses.replace(base, cfg=dataclasses.replace(base.cfg, model=model))
    assert list(evaluation({"near": without}).priors) == ["near"]
    np.testing.assert_allclose(base.mean(), Y[~HELD_OUT].mean(axis=0), rtol=1e-5)


def test_pairs_are_taken_evenly_and_figures_are_theirs(place, evaluation):
    data = PairsConfig(**settings(place))
    report = evaluation({"far": model_of(data, noisy(3.0))}, most=5, pool=5)
    rows = np.flatnonzero(HELD_OUT)[np.arange(5) * 15 // 5]
    samples = noisy(3.0)({"x": X[rows]}, 3)
    expected = cosine(samples.mean(axis=1), Y[rows])
    assert report.priors["far"].cosine.value == pytest.approx(expected, rel=1e-5)


def test_every_pair_has_the_layer_of_its_subject(place, evaluation):
    """The function is right for a row only with the number of its subject in the model."""
    data = PairsConfig(**settings(place, subjects=f"{place}/subjects.txt"))

    def function(fields, num):
        rows = [np.flatnonzero((x == X).all(axis=1))[0] for x in fields["x"]]
        sign = np.where(np.array(LABELS)[fields["subject"]] == SUBJECTS[rows], 1.0, -1.0)
        return np.repeat((sign[:, None] * Y[rows])[:, None], num, axis=1)

    encoder = EncoderConfig(width=8, subjects=3, labels=LABELS)
    models = {"own": model_of(data, function, encoder=encoder)}
    report = evaluation(models, subjects=data.subjects)
    assert report.priors["own"].cosine.value == pytest.approx(1.0, abs=1e-5)
    assert report.priors["own"].forward.hits == 15


def test_figures_by_subject_are_those_of_its_held_out_pairs(place, evaluation):
    """Also of a prior without layers per subject."""
    models = {"far": model_of(PairsConfig(**settings(place)), noisy(3.0))}
    report = evaluation(models, subjects=f"{place}/subjects.txt")
    assert list(report.subjects) == ["anna", "zoe"]
    for label, own in report.subjects.items():
        rows = np.flatnonzero(HELD_OUT & (label == SUBJECTS))
        expected = cosine(noisy(3.0)({"x": X[rows]}, 3).mean(axis=1), Y[rows])
        assert own.pairs == own.pool == len(rows)
        assert own.priors["far"].cosine.value == pytest.approx(expected, rel=1e-5)
    plain = json.loads((place / "out" / "pairs.json").read_text())
    assert plain["subjects"]["zoe"]["pairs"] == report.subjects["zoe"].pairs
    assert plain["trained_on"] == {"far": 0}


@pytest.mark.parametrize("options", [{}, {"splits": ""}, {"splits": "", "eval_share": 0.2}])
def test_pairs_that_were_trained_on_are_not_called_held_out(place, evaluation, options):
    """The default and another usual split, and one by labels."""
    model = model_of(PairsConfig(**{**settings(place), **options}), noisy(3.0))
    split_options = {name: value for name, value in options.items() if name == "splits"}
    report = evaluation({"far": model}, **split_options, eval_share=1.0)
    count = {0: 25, 1: 36, 2: 32}[len(options)]
    assert report.pairs == N and report.trained == {"far": count}
    samples = noisy(3.0)({"x": X}, 3)
    assert report.priors["far"].cosine.value == pytest.approx(cosine(samples.mean(axis=1), Y))
    assert f"far was trained on {count} of these pairs" in str(report)


def test_pairs_of_which_nothing_is_known_are_not_called_held_out(place, evaluation):
    model = model_of(PairsConfig(**settings(place)), noisy(3.0))
    other = dataclasses.replace(model.manifest, inputs={"data": "of other pairs"})
    report = evaluation({"far": dataclasses.replace(model, manifest=other)}, eval_share=1.0)
    assert report.trained == {"far": None}
    unstated = dataclasses.replace(model.manifest, inputs=None)
    report = evaluation({"far": dataclasses.replace(model, manifest=unstated)})
    assert report.pairs == 15 and report.trained == {"far": None}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bad_rows": "skpi"}, "unknown --bad-rows 'skpi'. Did you mean 'skip'"),
        ({"repeats": "meen"}, "unknown --repeats 'meen'. Did you mean 'mean'"),
        ({"eval_share": 2.0}, r"--eval-share is 2.0; it must lie in \[0.0, 1.0\]"),
        ({"num": 0}, "--num is 0; it must be greater than 0"),
    ],
)
def test_messages_name_the_flags(options, message):
    with pytest.raises(UserError, match=message):
        PairEvaluation((), "x.npy", "y.npy", **options)


def test_padding_is_no_part_of_a_target(tmp_path, evaluation):
    lengths = RNG.integers(1, 4, N)
    sequences = [RNG.normal(size=(length, 2)).astype(np.float32) for length in lengths]
    np.savez(tmp_path / "y.npz", **{f"k{i:02}": rows for i, rows in enumerate(sequences)})
    (tmp_path / "x.keys.txt").write_text("".join(f"k{i:02}\n" for i in range(N)))
    own = {"y": f"{tmp_path}/y.npz:*"}
    data = PairsConfig(**settings(tmp_path, **own))
    models = {"ones": model_of(data, lambda fields, num: np.ones((len(fields["x"]), num, 3, 2)))}
    report = evaluation(models, **own)
    expected = [
        cosine(np.ones(2 * lengths[i]), sequences[i].reshape(-1)) for i in np.flatnonzero(HELD_OUT)
    ]
    assert report.priors["ones"].cosine.value == pytest.approx(np.mean(expected), rel=1e-5)


def test_another_split_than_that_of_training_is_rejected(place, evaluation):
    data = PairsConfig(**settings(place))
    with pytest.raises(UserError, match="was trained on other pairs than this split"):
        evaluation({"near": model_of(data, noisy(0.5))}, splits="")
