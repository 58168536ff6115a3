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
    ("text", "message"), [("{", "could not read"), ("[1]", "holds list, not an object")]
)
def test_a_damaged_file_is_refused(tmp_path, text, message):
    (tmp_path / sidecar.VARIANCE).write_text(text)
    with pytest.raises(UserError, match=message):
        sidecar.read(tmp_path, sidecar.VARIANCE)


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    with pytest.raises(UserError, match="cannot write .*variance.json: No such file"):
        sidecar.write(tmp_path / "absent", sidecar.VARIANCE, {})
