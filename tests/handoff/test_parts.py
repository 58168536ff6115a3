import pytest

from unclip_jax.core.checks import UserError
from unclip_jax.handoff import sidecar


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
def test_a_damaged_file_is_refused(tmp_path, text, message):
    (tmp_path / sidecar.VARIANCE).write_text(text)
    with pytest.raises(UserError, match=message):
        sidecar.read(tmp_path, sidecar.VARIANCE)


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    with pytest.raises(UserError, match="cannot write .*variance.json: No such file"):
        sidecar.write(tmp_path / "absent", sidecar.VARIANCE, {})


def test_a_changed_value_is_refused_and_a_file_of_version_0_1_0_is_read(tmp_path):
    path = sidecar.write(tmp_path, sidecar.VARIANCE, {"timesteps": [0, 16], "examples": 64})
    path.write_text(path.read_text().replace("64", "65", 1))
    with pytest.raises(UserError, match="variance.json is damaged or was changed"):
        sidecar.read(tmp_path, sidecar.VARIANCE)
    path.write_text('{"timesteps": [0]}')
    assert sidecar.read(tmp_path, sidecar.VARIANCE) == {"timesteps": [0]}
