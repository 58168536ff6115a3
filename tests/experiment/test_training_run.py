"""Averaged parameters leave training: for the export and for the variance table."""

import dataclasses
import types
from unittest import mock

import jax
import numpy as np
import pytest

from tests.stages import tiny
from unclip_jax.core.types import Params
from unclip_jax.data.loader import Loader
from unclip_jax.experiment import input_pipeline, training_run
from unclip_jax.experiment.input_pipeline import Inputs
from unclip_jax.training.state import TrainState

RAW, AVERAGED = {"w": np.float32(1.0)}, {"w": np.float32(2.0)}
FACTS = {"tokenizer_hash": "t" * 16, "clip_id": "c" * 16}


@pytest.fixture
def outputs(monkeypatch) -> dict[str, Params]:
    """Parameters that a run passes on, by what becomes of them; nothing is trained or written."""
    results = {}
    state = TrainState(
        step=np.int32(7), params=RAW, ema_params=AVERAGED, opt_state=(), bad_steps=np.int32(0)
    )
    loader = mock.Mock(spec=Loader)
    inputs = Inputs(loader, held_out=None, tokenizer=None, tokenizer_dir=None, facts=FACTS)

    def train(experiment, workdir, **_):
        return state, experiment.build_stage(), inputs

    def write_export(folder, *, params, manifest, **_):
        results["export"], results["manifest"] = params, manifest
        return types.SimpleNamespace(parameters=1)

    def after_training(experiment, params, *, workdir):
        results["variance table"] = params

    monkeypatch.setattr(training_run, "train", train)
    monkeypatch.setattr(training_run.export, "write_export", write_export)
    monkeypatch.setattr(training_run.analytic_variance, "after_training", after_training)
    return results


def test_a_run_passes_on_its_averaged_parameters(outputs, tmp_path):
    training_run.train_and_export(tiny.experiment("prior"), tmp_path)
    assert outputs["export"] is AVERAGED
    assert outputs["variance table"] is AVERAGED
    assert outputs["manifest"].step == 7
    assert outputs["manifest"].z_scale == pytest.approx(tiny.experiment("prior").model.scale)
    assert jax.tree.leaves(outputs["export"]) != jax.tree.leaves(RAW)


@pytest.mark.parametrize(
    ("null", "share", "init_from", "stated"),
    [
        ("empty", 0.1, "", 0.1),
        ("empty", 0.0, "", 0.0),
        ("empty", 0.0, "RUN/imagen_base/export", None),  # whose training may have had them
        ("empty", 0.2, "RUN/imagen_base/export", 0.2),
        ("zero", 0.0, "", None),
    ],
)
def test_training_states_its_share_of_empty_captions(null, share, init_from, stated):
    own = tiny.experiment("imagen_base")
    model = own.model
    text = dataclasses.replace(model.model.text, null=null)
    model = dataclasses.replace(
        model,
        model=dataclasses.replace(model.model, text=text),
        drop_text=0.1 if null == "zero" else 0.0,
        sampling=dataclasses.replace(model.sampling, guidance_scale=1.0),
    )
    data = dataclasses.replace(own.data, empty_captions=share)
    own = dataclasses.replace(own, model=model, data=data, init_from=init_from)
    resolved = input_pipeline.resolve(own)
    assert resolved.model.empty_captions == stated
    assert resolved.identity() == own.identity()
