import dataclasses

import numpy as np
import pytest

from unclip_jax.core.checks import UserError
from unclip_jax.handoff import export, load, sidecar
from unclip_jax.handoff.manifest import Manifest


def test_what_is_written_is_read(tmp_path):
    value = {"timesteps": [0, 16], "eps_power": [0.25, 1e-9]}
    path = sidecar.write(tmp_path, sidecar.VARIANCE, value)
    assert sidecar.read(tmp_path, sidecar.VARIANCE) == value
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


def test_nothing_there_is_none(tmp_path):
    assert sidecar.read(tmp_path, sidecar.VARIANCE) is None


@pytest.mark.parametrize(
    ("text", "message"), [("{", "cannot be read as JSON"), ("[1]", "holds a list, not an object")]
)
def test_a_damaged_file_is_rejected(tmp_path, text, message):
    (tmp_path / sidecar.VARIANCE).write_text(text)
    with pytest.raises(UserError, match=message):
        sidecar.read(tmp_path, sidecar.VARIANCE)


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    with pytest.raises(UserError, match="cannot write .*variance.json: No such file"):
        sidecar.write(tmp_path / "absent", sidecar.VARIANCE, {})


def test_a_changed_value_is_rejected_and_a_file_of_version_0_1_0_is_read(tmp_path):
    path = sidecar.write(tmp_path, sidecar.VARIANCE, {"timesteps": [0, 16], "examples": 64})
    path.write_text(path.read_text().replace("64", "65", 1))
    with pytest.raises(UserError, match="variance.json is damaged or was changed"):
        sidecar.read(tmp_path, sidecar.VARIANCE)
    path.write_text('{"timesteps": [0]}')
    assert sidecar.read(tmp_path, sidecar.VARIANCE) == {"timesteps": [0]}


def test_the_manifest_notices_the_loss_of_a_sidecar(tmp_path):
    card = Manifest(stage="upsampler", size="tiny", step=1, config={})
    here = tmp_path / "export"
    export.write_export(here, params={"a": np.ones(3)}, manifest=card, tokenizer_dir=None)
    before = load.content_digest(here)
    path = sidecar.write(here, sidecar.VARIANCE, {"examples": 64})
    assert sidecar.read(here, sidecar.VARIANCE) == {"examples": 64}
    assert load.read_manifest(here) == dataclasses.replace(card, parameters=3)
    assert load.content_digest(here) == before
    path.write_text('{"examples": 64}')
    assert sidecar.read(here, sidecar.VARIANCE) == {"examples": 64}
    path.write_text('{"examples": 65}')
    with pytest.raises(UserError, match="variance.json is damaged or was changed"):
        sidecar.read(here, sidecar.VARIANCE)
    path.unlink()
    with pytest.raises(UserError, match="could not read .*variance.json"):
        sidecar.read(here, sidecar.VARIANCE)
    path.mkdir()
    with pytest.raises(UserError, match="variance.json is a folder; expected a regular file"):
        sidecar.read(here, sidecar.VARIANCE)


@pytest.mark.parametrize("target", ["nowhere", "/dev/zero"])
def test_a_link_to_no_file_is_rejected(tmp_path, target):
    (tmp_path / sidecar.VARIANCE).symlink_to(target)
    with pytest.raises(UserError, match="could not read|is a device; expected a regular file"):
        sidecar.read(tmp_path, sidecar.VARIANCE)


def test_what_json_cannot_hold_is_never_written(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        sidecar.write(tmp_path, sidecar.VARIANCE, {"eps_power": [float("nan")]})
    assert not list(tmp_path.iterdir())
