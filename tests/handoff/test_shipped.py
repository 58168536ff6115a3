"""Installed models are found by name or by default; a missing one is named with its remedy."""

import pathlib

import pytest

from unclip_jax.core.checks import UserError
from unclip_jax.handoff import shipped


def export(folder: pathlib.Path) -> pathlib.Path:
    (folder / "decoder" / "export").mkdir(parents=True)
    (folder / "decoder" / "export" / "manifest.json").write_text("{}")
    return folder


@pytest.fixture
def weights(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(shipped, "WEIGHTS", tmp_path / "weights")
    return tmp_path / "weights"


def test_the_default_is_the_installed_models(weights):
    export(weights / shipped.DEFAULT)
    export(shipped.TRAINED)
    assert shipped.run_directory() == weights / shipped.DEFAULT


def test_without_installed_models_trained_ones_are_taken(weights):
    export(shipped.TRAINED)
    assert shipped.run_directory() == shipped.TRAINED


def test_all_installed_models_are_listed_the_default_first(weights):
    export(weights / "a")
    export(weights / shipped.DEFAULT)
    export(weights / "shapes")
    names = [run.name for run in shipped.run_directories()]
    assert names == [shipped.DEFAULT, "a", "shapes"]


def test_trained_models_are_listed_where_none_are_installed(weights):
    export(shipped.TRAINED)
    assert shipped.run_directories() == [shipped.TRAINED]


def test_without_any_it_says_what_to_do(weights):
    message = "no trained models .*/weights/portraits is missing.*or train them with `make train-"
    with pytest.raises(UserError, match=message):
        shipped.run_directory()


def test_installed_models_have_names_that_folders_hide(weights):
    export(weights / "shapes")
    assert shipped.names() == ["shapes"]
    assert shipped.run_directory("shapes") == weights / "shapes"
    assert shipped.run_directory("emoji") == pathlib.Path("emoji")
    export(pathlib.Path("shapes"))
    assert shipped.run_directory(pathlib.Path("shapes")) == pathlib.Path("shapes")
    assert shipped.run_directory("runs/shapes") == pathlib.Path("runs/shapes")
