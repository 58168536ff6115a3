"""A prior between two embedding spaces from the command line and from Python."""

import contextlib
import dataclasses
import json
import re

import jax
import numpy as np
import pytest

import unclip_jax
from tests.conftest import ROOT
from unclip_jax import embed, evaluate, train
from unclip_jax.core.checks import UserError
from unclip_jax.experiment import fit_prior, loading
from unclip_jax.inference import embedding_prior as inference
from unclip_jax.inference.embedding_prior import EmbeddingPriorModel, conditions_of
from unclip_jax.models.condition_encoder import EncoderConfig
from unclip_jax.models.condition_tokens import ConditionConfig
from unclip_jax.objectives.gaussian import SamplingConfig

DOCUMENT = ROOT / "docs" / "your_embeddings.md"


@pytest.fixture(scope="module")
def tutorial(tmp_path_factory):
    """The names that the first Python block of the tutorial defines, and the folder it ran in."""
    block = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text("utf-8"), re.DOTALL)[0]
    folder, names = tmp_path_factory.mktemp("tutorial"), {}
    with contextlib.chdir(folder):
        exec(block, names)
    np.save(folder / "x.npy", names["x"])
    np.save(folder / "y.npy", names["y"])
    return folder, names


@pytest.fixture(scope="module")
def place(tutorial):
    return tutorial[0]


@pytest.fixture(scope="module")
def run(place):
    return place / "runs" / "mine"


@pytest.fixture(scope="module")
def arrays(tutorial):
    return tutorial[1]["x"].astype(np.float32), tutorial[1]["y"].astype(np.float32)


def test_the_tutorial_samples(tutorial):
    folder, names = tutorial
    assert names["samples"].shape == (8, 4, 16)
    again = unclip_jax.open_prior(folder / "mine").sample(names["x"][:8], num=4, guidance=1.0)
    np.testing.assert_array_equal(again, names["samples"])


@pytest.fixture(scope="module")
def prior(run):
    return unclip_jax.open_prior(run)


def test_the_model_is_of_the_shapes_of_the_data(prior):
    assert prior.cfg.model.conditions[0].shape == (24,) and prior.cfg.model.target == (16,)
    assert prior.manifest.data.startswith("512 pairs of ")
    assert prior.manifest.step == 20


def test_validation_reports_the_baseline(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    last = [line for line in lines if "val/loss" in line][-1]
    assert last["val/cosine_ridge"] > 0.9  # the relation is linear
    assert {"val/cosine", "val/rank", "val/sample_cosine"} <= last.keys()


def test_samples_are_addressed_by_row_and_number(prior, arrays):
    x, _ = arrays
    samples = prior.sample(x[:3], num=2, steps="4")
    assert samples.shape == (3, 2, 16) and samples.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(samples, axis=-1), 1.0, rtol=1e-5)
    in_parts = prior.sample(x[:3], num=2, steps="4", batch=5)
    np.testing.assert_allclose(in_parts, samples, rtol=1e-4, atol=1e-5)
    assert np.abs(prior.sample(x[:3], num=2, steps="4", seed=1) - samples).max() > 1e-3
    guided = prior.sample(x[:3], num=2, steps="4", guidance=2.0)
    assert np.abs(guided - samples).max() > 1e-4


def test_the_linear_prediction_and_the_mean(prior, arrays):
    x, y = arrays
    unit = y / np.linalg.norm(y, axis=1, keepdims=True)
    cosine = np.sum(prior.linear(x) * unit, axis=1).mean()
    assert cosine > 0.9
    assert np.linalg.norm(prior.mean()) == pytest.approx(1.0, rel=1e-5)


def test_the_mean_of_raw_targets_is_the_bias_of_a_ridge_of_vectors_or_unknown(prior):
    bias, fitted_params = np.linspace(-1, 1, 16, dtype=np.float32), prior.params["fitted"]
    plain = {"mean": np.zeros(16, np.float32), "std": np.ones(16, np.float32)}
    fitted_params = {**fitted_params, "y": plain, "ridge": {**fitted_params["ridge"], "bias": bias}}
    raw = dataclasses.replace(prior.cfg, scaling="raw")

    def mean(**changes):
        cfg = dataclasses.replace(raw, model=dataclasses.replace(raw.model, **changes))
        params = {**prior.params, "fitted": fitted_params}
        return dataclasses.replace(prior, cfg=cfg, params=params).mean()

    np.testing.assert_array_equal(mean(), bias)
    assert mean(ridge=False) is None
    assert mean(conditions=(ConditionConfig("x", (3, 8)),)) is None  # a mean over tokens


def test_the_linear_prediction_depends_neither_on_encoder_nor_on_guidance(prior, arrays):
    cfg = dataclasses.replace(
        prior.cfg,
        encoder=EncoderConfig(width=8, subjects=2),
        sampling=SamplingConfig(guidance_scale=2.0),
    )
    encoded = dataclasses.replace(prior, cfg=cfg)
    x = arrays[0][:3]
    guess = encoded.linear({"x": x, "subject": np.array([0, 1, 1])})
    np.testing.assert_array_equal(guess, prior.linear(x))
    with pytest.raises(UserError, match="ridge regression needs x too"):
        encoded.linear({"subject": np.array([0, 1, 1])})


def test_subjects_are_given_by_their_labels(prior, arrays):
    encoder = EncoderConfig(width=8, subjects=3, labels=("s1", "s10", "s2"))
    cfg, x = dataclasses.replace(prior.cfg, encoder=encoder), arrays[0][:3]
    fields, count = conditions_of(cfg, {"x": x, "subject": ["s2", "s1", "s10"]})
    assert count == 3 and fields["subject"].tolist() == [2, 0, 1]
    with pytest.raises(UserError, match=r"the subject 's3'; this prior has s1, s10, s2\.$"):
        conditions_of(cfg, {"x": x, "subject": ["s2", "s3", "s1"]})
    numbered = dataclasses.replace(cfg, encoder=EncoderConfig(width=8, subjects=3))
    fields, _ = conditions_of(numbered, {"x": x, "subject": np.array([2, 0, 1])})
    assert fields["subject"].tolist() == [2, 0, 1]
    with pytest.raises(UserError, match="give 'subject', one label per row .--subjects of `embed"):
        conditions_of(cfg, x)
    with pytest.raises(UserError, match="subject is 2; give one label per row, in a list"):
        conditions_of(cfg, {"x": x, "subject": 2})
    with pytest.raises(UserError, match="subject is 's1'; give one label per row, in a list"):
        conditions_of(cfg, {"x": x, "subject": "s1"})
    with pytest.raises(UserError, match="labels has 1 labels for 3 subjects"):
        EncoderConfig(width=8, subjects=3, labels=("s1",))


def test_conditions_may_be_left_out_as_they_were_in_training(prior, arrays, monkeypatch):
    monkeypatch.setattr(inference, "_sample", lambda *_: np.zeros((2, 16), np.float32))
    conditions = (ConditionConfig("x", (24,)), ConditionConfig("z", (2,)))
    model = dataclasses.replace(prior.cfg.model, conditions=conditions, ridge=False)
    cfg = dataclasses.replace(prior.cfg, model=model)
    trained_model = dataclasses.replace(prior, cfg=cfg)
    message = r"condition z is missing, and .* .config.model.drop_each=0.; give rows of z\."
    with pytest.raises(UserError, match=message):
        trained_model.sample({"x": arrays[0][:2]})
    with_drop = dataclasses.replace(trained_model, cfg=dataclasses.replace(cfg, drop_each=0.1))
    assert with_drop.sample({"x": arrays[0][:2]}).shape == (2, 1, 16)
    regression = dataclasses.replace(with_drop.cfg, method="mlp", sampling=SamplingConfig())
    with pytest.raises(UserError, match="condition z is missing"):
        dataclasses.replace(trained_model, cfg=regression).sample({"x": arrays[0][:2]})
    encoder = EncoderConfig(width=8, subjects=2)
    alone = dataclasses.replace(
        trained_model, cfg=dataclasses.replace(with_drop.cfg, encoder=encoder)
    )
    with pytest.raises(UserError, match="condition x, z is missing"):
        alone.sample({"subject": ["0", "1"]})


def test_a_model_is_described_in_one_line(prior):
    count = sum(leaf.size for leaf in jax.tree.leaves(prior.params))
    description = f"EmbeddingPriorModel(diffusion: x [24] -> [16], {count:,} parameters, step 20)"
    assert repr(prior) == description
    cfg = dataclasses.replace(prior.cfg, encoder=EncoderConfig(width=8, subjects=2))
    assert "x [24], subject -> [16]" in repr(dataclasses.replace(prior, cfg=cfg))


def test_an_export_is_replaced_on_request(prior, tmp_path):
    params = {
        **prior.params,
        "fitted": jax.tree.map(lambda leaf: leaf + 1, prior.params["fitted"]),
    }
    prior.save(tmp_path / "saved")
    with pytest.raises(UserError, match="saved holds an export already; give another folder, or o"):
        dataclasses.replace(prior, params=params).save(tmp_path / "saved")
    again = EmbeddingPriorModel.open(tmp_path / "saved")
    np.testing.assert_array_equal(again.mean(), prior.mean())
    dataclasses.replace(prior, params=params).save(tmp_path / "saved", overwrite=True)
    again = EmbeddingPriorModel.open(tmp_path / "saved")
    jax.tree.map(np.testing.assert_array_equal, again.params["fitted"], params["fitted"])


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
        "51",
    ]
    report = json.loads((tmp_path / "report" / "pairs.json").read_text())
    assert report["pairs"] == 51 and report["priors"]["mine"]["coverage"]["expected"] == 0.6
    assert (
        report["priors"]["ridge"]["cosine"]["value"] > report["priors"]["mean"]["cosine"]["value"]
    )
    assert (tmp_path / "report" / "pairs.png").is_file()


def test_the_command_samples_for_new_conditions(run, prior, arrays, tmp_path, capsys, monkeypatch):
    x, _ = arrays
    uses = []
    monkeypatch.setattr(embed.compilation_cache, "use", lambda: uses.append(True))
    np.save(tmp_path / "new.npy", x[:3])
    options = ["--num=2", "--steps=4", f"--out={tmp_path}/z.npy"]
    embed.main(["prior", str(run), f"--x={tmp_path}/new.npy", *options])
    assert capsys.readouterr().out == f"wrote {tmp_path}/z.npy: 3 rows, 2 samples each\n" and uses
    expected = prior.sample(x[:3], num=2, steps="4")
    np.testing.assert_allclose(np.load(tmp_path / "z.npy"), expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(UserError, match="--batch is 0; it must be greater than 0"):
        embed.main(["prior", str(run), f"--x={tmp_path}/new.npy", *options, "--batch=0"])
    with pytest.raises(UserError, match="unknown subcommand 'priro'. Did you mean 'prior'"):
        embed.main(["priro"])


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
    arguments = {}

    def remember(experiment, folder):
        arguments["experiment"] = experiment
        raise UserError("enough")

    monkeypatch.setattr(fit_prior.training_run, "train_and_export", remember)
    with pytest.raises(UserError, match="enough"):
        unclip_jax.fit_prior(
            {"brain": np.ones((10, 3)), "text": np.ones((10, 2))},
            np.ones((10, 4)),
            size="tiny",
            groups=np.arange(10) % 5,
            subjects=["a", "b"] * 5,
            settings={"model.scaling": "standardised", "model.encoder.width": 8},
            workdir=tmp_path,
        )
    experiment = arguments["experiment"]
    assert list(experiment.data.named()) == ["brain", "text"]
    assert experiment.model.scaling == "standardised" and experiment.data.groups.endswith(".npy")
    assert np.load(experiment.data.subjects).tolist() == ["a", "b"] * 5


def test_names_that_conditions_cannot_have_are_rejected(tmp_path):
    x = np.ones((10, 3))
    with pytest.raises(
        UserError, match="x has 'subject'; give the labels of subjects as subjects="
    ):
        unclip_jax.fit_prior({"x": x, "subject": ["a"] * 10}, x, workdir=tmp_path)
    with pytest.raises(
        UserError, match="x has the condition 'a b'; give an identifier that is none"
    ):
        unclip_jax.fit_prior({"a b": x}, x, workdir=tmp_path)


def test_labels_that_no_layer_reads_are_rejected(place):
    options = [f"--config.data.{name}={place}/{name}.npy" for name in "xy"]
    options.append(f"--config.data.subjects={place}/subjects.txt")
    message = "config.data.subjects is .* has no layers per subject; set config.model.encoder.width"
    with pytest.raises(UserError, match=message):
        loading.read("embedding_prior:tiny", overrides=options)
    with pytest.raises(UserError, match="config.model.method 'ridge' has none, so leave subjects"):
        loading.read("embedding_prior:ridge", overrides=options)
    for more in ("--config.model.encoder.width=8", "--config.data.repeats=mean"):
        assert loading.read("embedding_prior:tiny", overrides=[*options, more]).data.subjects


def test_settings_of_sampling_are_those_of_the_method(prior, arrays):
    x = arrays[0][:3]
    with pytest.raises(UserError, match="top_p is for method 'autoregressive', not for 'diffusion"):
        prior.sample(x, top_p=0.5)
    codes = dataclasses.replace(prior, cfg=dataclasses.replace(prior.cfg, method="autoregressive"))
    with pytest.raises(UserError, match="steps is for method 'diffusion', not for 'autoregressive"):
        codes.sample(x, steps="4")


@pytest.mark.nightly
def test_an_autoregressive_prior_learns_and_is_evaluated(arrays, place, tmp_path):
    x, y = arrays
    settings = {
        "model.method": "autoregressive",
        "model.model.codec.buckets": 16,
        "train.steps": 120,
    }
    prior = unclip_jax.fit_prior(x, y, size="tiny", settings=settings, workdir=tmp_path / "codes")
    assert 0 < prior.cfg.model.codec.components < 16  # counted
    lines = (tmp_path / "codes" / "metrics.jsonl").read_text().splitlines()
    last = [json.loads(line) for line in lines if "val/loss" in line][-1]
    assert last["val/loss"] < 0.75 * np.log(16) and last["val/cosine"] > 0.7
    likely, other = (prior.sample(x[:3], temperature=0.0, seed=seed) for seed in (0, 1))
    np.testing.assert_array_equal(likely, other)
    data = [f"--x={place}/x.npy", f"--y={place}/y.npy", f"--out={tmp_path}/report"]
    evaluate.main(["pairs", str(tmp_path / "codes"), *data, "--num=4", "--pool=10"])
    report = json.loads((tmp_path / "report" / "pairs.json").read_text())["priors"]["codes"]
    assert report["coverage"]["expected"] == 0.6 and report["energy"]["p_value"] > 0.05
    with pytest.raises(UserError, match="--steps is for diffusion, and none of these priors"):
        evaluate.main(["pairs", str(tmp_path / "codes"), *data, "--steps=4"])


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.ones((2, 5)), r"x has rows of shape \[5\]; this prior takes \[24\]"),
        ({"z": np.ones((2, 24))}, "this prior has the conditions x, not z"),
        ({}, "has the conditions x, not none"),
        (np.ones((0, 24)), r"different numbers of rows, or none \(x 0\)"),
        (np.ones(24), r"x is a single row; this prior takes rows of shape \[24\]. Give an array"),
        (np.array(1.0), r"x is array.1\..; give one array per row, in a list"),
        (np.full((2, 24), np.inf), "2 rows of x hold NaN or inf, first row 0"),
    ],
)
def test_conditions_that_do_not_fit_are_rejected(prior, x, message):
    with pytest.raises(UserError, match=message):
        prior.sample(x)


def test_data_of_other_shapes_than_the_export_are_rejected(run, place, tmp_path):
    np.save(tmp_path / "x.npy", np.load(place / "x.npy")[:, :4])
    data = [f"--x={tmp_path}/x.npy", f"--y={place}/y.npy", f"--out={tmp_path}/out"]
    with pytest.raises(UserError, match=r"x has rows \[4\] of float32; the model takes \[24\]"):
        evaluate.main(["pairs", str(run), *data])


def test_pairs_that_were_trained_on_are_not_taken_for_held_out_ones(run, place, tmp_path):
    for name in "xy":
        array = np.load(place / f"{name}.npy")
        array[3] = np.nan
        np.save(tmp_path / f"{name}.npy", array)
    data = [f"--x={tmp_path}/x.npy", f"--y={tmp_path}/y.npy", f"--out={tmp_path}/out"]
    options = ["--num=1", "--steps=2", "--pool=10", "--most=20", "--bad-rows=skip"]
    (tmp_path / "out").mkdir()  # as an earlier evaluation leaves it
    with pytest.raises(UserError, match="mine was trained on other pairs than this"):
        evaluate.main(["pairs", str(run), *data, *options])
    evaluate.main(["pairs", str(run), *data, *options, "--eval-share=1"])
    assert json.loads((tmp_path / "out" / "pairs.json").read_text())["pairs"] == 20


def test_a_rejected_fit_leaves_the_workdir_free(place, tmp_path):
    options = [f"--workdir={tmp_path}/run", "--config.model.scaling=standardised"]
    for dimension in (2, 5):
        y = np.load(place / "y.npy")
        y[:, dimension] = 1.0
        np.save(tmp_path / f"{dimension}.npy", y)
        data = [f"--config.data.x={place}/x.npy", f"--config.data.y={tmp_path}/{dimension}.npy"]
        with pytest.raises(UserError, match=f"dimension {dimension} of y is the same in all"):
            train.main(["--config=embedding_prior:tiny", *options, *data])


def test_arrays_are_needed():
    with pytest.raises(UserError, match="config.data.x is empty; give arrays, such as"):
        loading.read("embedding_prior:tiny", overrides=["--config.data.x="])
