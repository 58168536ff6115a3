"""PyTorch's own files: the same tensors, and nothing but tensors."""

import os

import ml_dtypes
import numpy as np
import pytest

from unclip_jax.core.checks import UserError
from unclip_jax.weight_files import tensor_source

torch = pytest.importorskip("torch")


def test_state_dicts_of_every_precision(tmp_path):
    state = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor([1.5]).bfloat16()}
    for name, value in (("bare.bin", state), ("nested.ckpt", {"state_dict": state, "epoch": 3})):
        torch.save(value, tmp_path / name)
        tensors = tensor_source.open_tensors(tmp_path / name)
        assert tensors.shapes == {"a": (2, 3), "b": (1,)}
        np.testing.assert_array_equal(tensors.read("a"), np.arange(6.0).reshape(2, 3))
        assert tensors.read("b").dtype == ml_dtypes.bfloat16


class Payload:
    """Unpickling it makes a folder."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def test_a_payload_is_rejected_and_not_run(tmp_path):
    harm = tmp_path / "executed"
    torch.save({"a": Payload(harm)}, tmp_path / "m.pt")
    with pytest.raises(
        UserError, match=r"its pickle holds more than tensors \(it names 'posix.mkdir'\)"
    ):
        tensor_source.open_tensors(tmp_path / "m.pt")
    assert not harm.exists()
    torch.load(tmp_path / "m.pt", weights_only=False)
    assert harm.exists(), "a payload that does nothing would prove nothing"


def test_tensors_stay_on_disk_until_they_are_read(tmp_path, monkeypatch):
    calls, load = [], torch.load

    def recording_load(*args, mmap, **options):
        calls.append(mmap)
        return load(*args, mmap=mmap, **options)

    monkeypatch.setattr(torch, "load", recording_load)
    for new in (True, False):  # the older format cannot be mapped
        torch.save({"a": torch.ones(3)}, tmp_path / "m.pt", _use_new_zipfile_serialization=new)
        np.testing.assert_array_equal(
            tensor_source.open_tensors(tmp_path / "m.pt").read("a"), np.ones(3)
        )
    assert calls == [True, False]


def test_damaged_files_and_other_contents(tmp_path):
    torch.save({"a": torch.ones(500)}, tmp_path / "m.pt")
    whole = (tmp_path / "m.pt").read_bytes()
    (tmp_path / "half.pt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="is damaged or incomplete|was rejected"):
        tensor_source.open_tensors(tmp_path / "half.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(UserError, match="holds a list; expected tensors by name"):
        tensor_source.open_tensors(tmp_path / "list.pt")
    torch.save({"lr": 0.1}, tmp_path / "numbers.pt")
    with pytest.raises(UserError, match="holds no tensors by name, only lr"):
        tensor_source.open_tensors(tmp_path / "numbers.pt")


def test_numbers_of_a_training_checkpoint_are_left_out(tmp_path):
    torch.save({"a": torch.ones(1), "lr": 0.1}, tmp_path / "mixed.pt")
    assert list(tensor_source.open_tensors(tmp_path / "mixed.pt").shapes) == ["a"]
