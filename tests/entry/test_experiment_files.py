"""Experiments are found by name and by path; their files may share settings."""

import pathlib

import pytest

from unclip_jax.core.checks import UserError
from unclip_jax.experiment import files, loading

ROOT = pathlib.Path(__file__).parents[2]


def test_every_file_of_the_folder_has_a_name():
    assert files.names() == sorted(path.stem for path in (ROOT / "experiments").glob("*.py"))


@pytest.mark.parametrize("name", ["prior", "glide"])
def test_a_name_and_a_path_give_the_same_config(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # names do not depend on where a command runs
    config = files.get_config(f"{name}:tiny")
    assert config == files.get_config(f"{ROOT}/experiments/{name}.py:tiny")
    assert (config.name, config.size) == (name, "tiny")


def test_a_file_of_the_working_directory_is_not_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "prior.py").write_text("")
    (tmp_path / "prior").mkdir()
    assert files.find("prior") == ROOT / "experiments" / "prior.py"


def test_installed_experiments_are_inside_of_the_package(tmp_path, monkeypatch):
    inside, beside = tmp_path / "package" / "experiments", tmp_path / "experiments"
    monkeypatch.setattr(files, "FOLDERS", (inside, beside))
    beside.mkdir()
    assert files.folder() == beside
    inside.mkdir(parents=True)
    assert files.folder() == inside


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("priro:tiny", "there is no experiment 'priro'. Did you mean 'prior'?"),
        ("prior:tinny", "unknown size of experiments/prior.py 'tinny'. Did you mean 'tiny'?"),
        ("nowhere/prior.py", "no experiment file 'nowhere/prior.py'. Did you mean 'prior'?"),
        (
            "nothing_like_it",
            "there is no experiment 'nothing_like_it'. Known: classifier, clip, dalle, decoder",
        ),
    ],
)
def test_a_mistake_is_one_line_with_a_suggestion(spec, message):
    with pytest.raises(UserError, match=message):
        files.get_config(spec)


def test_experiments_of_two_folders_do_not_share_modules(tmp_path):
    for number in (1, 2):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "base.py").write_text(f"NUMBER = {number}\n")
        text = "from .base import NUMBER\n\n\ndef get_config():\n    return NUMBER\n"
        (folder / "mine.py").write_text(text)
    assert [files.get_config(f"{tmp_path}/{number}/mine.py") for number in (1, 2)] == [1, 2]


def test_keys_are_listed_as_they_are_overridden():
    keys = loading.list_keys("prior:tiny", overrides=["--config.train.steps=7"])
    assert "--config.train.steps=7" in keys
    assert "--config.model.sampling.steps=8" in keys
    assert "--config.train.eval_batches=8" in keys  # which the file does not mention
    assert loading.read("prior:tiny", overrides=[key for key in keys if not key.endswith("=")])
