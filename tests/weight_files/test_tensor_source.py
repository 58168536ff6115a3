"""Tensors of files and folders, and those that are rejected before anything is loaded."""

import json
import pathlib

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from unclip_jax.core.checks import UserError
from unclip_jax.weight_files import tensor_source, tensor_table
from unclip_jax.weight_files.tensor_table import FORMS, Entry, from_external, to_external

MAPS = pathlib.Path("/proc/self/maps")
TENSORS = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b.bias": np.ones(3, np.float16)}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_undone_exactly(form):
    rank = len(FORMS[form].axes or (0,))
    array = np.arange(2 * 3 * 4 * 5)[: np.prod((2, 3, 4, 5)[:rank])].reshape((2, 3, 4, 5)[:rank])
    np.testing.assert_array_equal(from_external(form, to_external(form, array)), array)


def test_a_linear_map_is_the_transposed_one_and_a_convolution_moves_its_channels():
    kernel = np.arange(6).reshape(2, 3)
    assert to_external("linear", kernel)[2, 1] == kernel[1, 2]
    conv = np.arange(120).reshape(2, 3, 4, 5)
    assert to_external("conv", conv)[4, 3, 1, 2] == conv[1, 2, 3, 4]
    assert to_external("conv_1x1", kernel).shape == (3, 2, 1, 1)
    assert to_external("row_of_row", kernel[0]).shape == (1, 1, 3)


def test_one_file_several_files_and_half_precision(tmp_path):
    bf16 = {"c": np.array([1.5, -2.0]).astype(ml_dtypes.bfloat16)}
    save_file(TENSORS, tmp_path / "m-00001-of-00002.safetensors")
    save_file(bf16, tmp_path / "m-00002-of-00002.safetensors")
    places = dict.fromkeys(TENSORS, "m-00001-of-00002.safetensors")
    index = {"weight_map": {**places, "c": "m-00002-of-00002.safetensors"}}
    (tmp_path / "m.safetensors.index.json").write_text(json.dumps(index))
    source = tensor_source.open_tensors(tmp_path)
    assert source.shapes == {"a": (2, 3), "b.bias": (3,), "c": (2,)}
    np.testing.assert_array_equal(source.read("a"), TENSORS["a"])
    np.testing.assert_array_equal(source.read("c").astype(np.float32), [1.5, -2.0])
    index["weight_map"]["d"] = "m-00002-of-00002.safetensors"
    (tmp_path / "m.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="lists 1 tensors that its files lack: d"):
        tensor_source.open_tensors(tmp_path)


def test_the_plain_file_is_preferred_to_its_half_precision_copy(tmp_path):
    save_file(TENSORS, tmp_path / "model.safetensors")
    save_file({"a": TENSORS["a"]}, tmp_path / "model.fp16.safetensors")
    assert tensor_source.open_tensors(tmp_path).shapes.keys() == TENSORS.keys()
    save_file(TENSORS, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="several files of weights"):
        tensor_source.open_tensors(tmp_path)


@pytest.mark.skipif(not MAPS.is_file(), reason="needs Linux's list of what is in memory")
def test_a_file_does_not_stay_in_memory(tmp_path):
    save_file(TENSORS, tmp_path / "weights.safetensors")
    source = tensor_source.open_tensors(tmp_path)
    array = source.read("a")
    assert str(tmp_path / "weights.safetensors") not in MAPS.read_text()
    np.testing.assert_array_equal(array, TENSORS["a"])
    (tmp_path / "weights.safetensors").unlink()
    with pytest.raises(UserError, match="is damaged or incomplete"):
        source.read("a")


def test_a_truncated_file_is_rejected(tmp_path):
    path = tmp_path / "m.safetensors"
    save_file(TENSORS, path)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(UserError, match="is damaged or incomplete"):
        tensor_source.open_tensors(path)


def test_an_index_may_not_point_elsewhere(tmp_path):
    index = tmp_path / "m.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "../m.safetensors"}}))
    with pytest.raises(UserError, match="expected a plain file name"):
        tensor_source.open_tensors(tmp_path)
    index.write_text("{}")
    with pytest.raises(UserError, match="holds no weight_map"):
        tensor_source.open_tensors(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("m.pkl", b"\x80\x04N.", "Pickles of other kinds are never opened"),
        ("m.npz", b"", "ends in '.npz'"),
    ],
)
def test_other_files_are_not_opened(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        tensor_source.open_tensors(tmp_path / name)


def test_a_torch_file_without_torch_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    (tmp_path / "m.bin").write_bytes(b"\x80\x04N.")
    with pytest.raises(UserError, match=r"unclip_jax\[convert\]"):
        tensor_source.open_tensors(tmp_path)


def test_nothing_there(tmp_path):
    with pytest.raises(UserError, match="holds no weights"):
        tensor_source.open_tensors(tmp_path)
    with pytest.raises(UserError, match="there is no file"):
        tensor_source.open_tensors(tmp_path / "x.safetensors")
    with pytest.raises(UserError, match="copy it from where the weights came"):
        tensor_source.read_json(tmp_path / "config.json")
    (tmp_path / "config.json").write_text("[1")
    with pytest.raises(UserError, match="cannot be read as JSON"):
        tensor_source.read_json(tmp_path / "config.json")
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(UserError, match="holds a list, not an object"):
        tensor_source.read_json(tmp_path / "config.json")


def test_every_tensor_that_does_not_fit_is_listed_and_none_is_read():
    def read(name):
        raise AssertionError(name)

    shapes = {"w.weight": (3, 2), "w.bias": (4,), "more": (1,)}
    there = tensor_source.TensorSource("here", shapes, read)
    table = [*tensor_table.linear("w", "w"), Entry("v", "v")]
    abstract = {"w": {"kernel": np.empty((2, 3)), "bias": np.empty(3)}, "v": np.empty(2)}
    message = r"3 tensors: missing v \(2,\); extra more \(1,\); w.bias: expected \(3,\), found"
    with pytest.raises(UserError, match=message):
        tensor_table.fill(there, table, abstract)
