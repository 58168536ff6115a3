"""Averaged parameters leave training: for the export and for the variance table."""

import types
from unittest import mock

import jax
import numpy as np
import pytest

from tests.stages import tiny
from unclip_jax.core.types import Params
from unclip_jax.data.loader import Loader
from unclip_jax.experiment import training_run
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
