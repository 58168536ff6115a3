"""Loading is strict and places leaves; what is missing is named with what to do about it."""

import argparse
import json
import os
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from unclip_jax.cli import flags
from unclip_jax.core import digests
from unclip_jax.core.checks import UserError
from unclip_jax.handoff import export, load, manifest
from unclip_jax.handoff.manifest import Manifest

UPSAMPLER = Manifest(
    stage="upsampler", size="tiny", step=1, config={}, image_size=8, low_res_size=4
)
PARAMS = {
    "dense": {"kernel": jnp.arange(128.0).reshape(8, 16), "bias": jnp.arange(16.0)},
    "scale": jnp.float32(3),
}
Leaf = jax.ShapeDtypeStruct


@pytest.fixture(scope="module")
def export_dir(tmp_path_factory) -> pathlib.Path:
    directory = tmp_path_factory.mktemp("exported") / "export"
    export.write_export(directory, params=PARAMS, manifest=UPSAMPLER, tokenizer_dir=None)
    return directory


def abstract() -> dict:
    return jax.tree.map(lambda leaf: Leaf(leaf.shape, leaf.dtype), PARAMS)


def test_leaves_take_the_sharding_and_dtype_they_are_asked_for(export_dir: pathlib.Path):
    mesh = jax.make_mesh((4, 2), ("fsdp", "tensor"), axis_types=(AxisType.Auto,) * 2)
    sharding = NamedSharding(mesh, PartitionSpec("fsdp", "tensor"))
    expected = abstract()
    expected["dense"]["kernel"] = Leaf((8, 16), jnp.bfloat16, sharding=sharding)
    params = load.read_params(export_dir, abstract=expected)
    kernel = params["dense"]["kernel"]
    assert kernel.sharding == sharding
    assert kernel.addressable_shards[0].data.shape == (2, 8)
    assert kernel.dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.asarray(kernel, np.float32), PARAMS["dense"]["kernel"])
    assert params["dense"]["bias"].sharding.device_set == {jax.local_devices()[0]}


def test_every_leaf_that_does_not_fit_is_listed_and_nothing_loaded(export_dir: pathlib.Path):
    expected = abstract() | {"head": {"kernel": Leaf((2,), jnp.float32)}}
    expected["dense"]["kernel"] = Leaf((8, 17), jnp.float32)
    del expected["scale"]
    with pytest.raises(UserError) as error:
        load.read_params(export_dir, abstract=expected)
    message = str(error.value)
    assert "in 3 parameters" in message
    assert "missing head/kernel (2,)" in message
    assert "extra scale ()" in message
    assert "dense/kernel: expected (8, 17), found (8, 16)" in message
    assert "Nothing was loaded" in message


@pytest.fixture
def lone(tmp_path: pathlib.Path) -> pathlib.Path:
    """An export of one array: Orbax leaves reads of further ones dangling after an error."""
    params = {"kernel": PARAMS["dense"]["kernel"]}
    export.write_export(tmp_path / "export", params=params, manifest=UPSAMPLER, tokenizer_dir=None)
    return tmp_path / "export"


def as_released(export: pathlib.Path) -> pathlib.Path:
    """The export as version 0.1.0 would have written it: without digests."""
    path = export / "manifest.json"
    fields = json.loads(path.read_text())
    del fields["files"], fields["digest"]
    path.write_text(json.dumps({**fields, "format_version": 1}))
    return export


def change_one_bit(path: pathlib.Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def parameter_files(export: pathlib.Path) -> list[str]:
    stored = manifest.file_digests((export / "manifest.json").read_bytes(), where="")
    assert stored
    return sorted(stored)


def test_a_changed_bit_in_any_file_is_rejected_by_name(lone: pathlib.Path):
    names = parameter_files(lone)
    assert {"params/manifest.ocdbt", "params/_METADATA"} < set(names)
    for name in names:
        content = (lone / name).read_bytes()
        change_one_bit(lone / name)
        with pytest.raises(UserError, match=rf"the digest of {name} differs from the stored one"):
            load.read_params(lone, abstract={"kernel": Leaf((8, 16), jnp.float32)})
        (lone / name).write_bytes(content)


def test_a_changed_bit_in_the_tokenizer_is_rejected(tmp_path: pathlib.Path):
    (tmp_path / "tok").mkdir()
    (tmp_path / "tok" / "tokenizer.json").write_text("{}")
    here = tmp_path / "export"
    tokenizer = tmp_path / "tok"
    export.write_export(here, params=PARAMS, manifest=UPSAMPLER, tokenizer_dir=tokenizer)
    change_one_bit(here / "tokenizer" / "tokenizer.json")
    with pytest.raises(UserError, match="the digest of tokenizer/tokenizer.json differs"):
        load.tokenizer_dir(here)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"step": 1', '"step": 2'),
        ('"image_size": 8', '"image_size": 9'),
        ('"digest": "', '"digest": "0'),
        ('"format_version": 2', '"format_version": 1'),
        ('"params/_METADATA"', '"params/_METADATB"'),
    ],
)
def test_a_changed_manifest_is_rejected(lone: pathlib.Path, old: str, new: str):
    path = lone / "manifest.json"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(UserError, match="manifest.json is damaged or was changed"):
        load.read_manifest(lone)


def test_digests_can_be_skipped(lone: pathlib.Path, monkeypatch):
    path = lone / "manifest.json"
    path.write_text(path.read_text().replace('"step": 1', '"step": 2'))
    monkeypatch.setenv(digests.SKIP, "1")
    assert load.read_manifest(lone).step == 2
    load.read_params(lone, abstract={"kernel": Leaf((8, 16), jnp.float32)})


def test_a_flag_skips_digests(lone: pathlib.Path, monkeypatch):
    monkeypatch.delenv(digests.SKIP, raising=False)
    parser = argparse.ArgumentParser()
    flags.add_skip_digests(parser)
    assert not parser.parse_args([]).skip_digests and not digests.skipped()
    monkeypatch.setenv(digests.SKIP, "0")  # restored after the test
    assert parser.parse_args(["--skip-digests"]).skip_digests and digests.skipped()


def test_an_export_of_version_0_1_0_loads_without_digests(lone: pathlib.Path):
    as_released(lone)
    assert load.read_manifest(lone).stage == "upsampler"
    params = load.read_params(lone, abstract={"kernel": Leaf((8, 16), jnp.float32)})
    np.testing.assert_array_equal(params["kernel"], PARAMS["dense"]["kernel"])
    export.replace_manifest(lone, load.read_manifest(lone))
    assert len(parameter_files(lone)) > 5


def test_shapes_are_read_without_the_arrays(export_dir: pathlib.Path):
    assert load.stored_shapes(export_dir) == abstract()


def test_the_digest_of_the_content_is_that_of_version_0_1_0_too(lone: pathlib.Path):
    """Though its manifest lists none: they are computed."""
    before = load.content_digest(lone)
    assert load.content_digest(as_released(lone)) == before
    change_one_bit(lone / "params" / "_METADATA")
    assert load.content_digest(lone) != before


@pytest.mark.parametrize("released", [False, True])
def test_a_named_pipe_in_an_export_stops_nobody(lone: pathlib.Path, released: bool):
    if released:
        as_released(lone)
    path = lone / "params" / "_METADATA"
    path.unlink()
    os.mkfifo(path)
    for read in (lambda: load.read_params(lone, abstract={}), lambda: load.stored_shapes(lone)):
        with pytest.raises(UserError, match="_METADATA is a named pipe; expected a regular file"):
            read()


def test_damaged_parameters_are_rejected_without_digests_too(lone: pathlib.Path):
    data = sorted((as_released(lone) / "params").rglob("d/*"))
    assert data
    for path in data:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match=r"cannot be read .*damaged or incomplete"):
        load.read_params(lone, abstract={"kernel": Leaf((8, 16), jnp.float32)})


@pytest.mark.parametrize("name", ["_METADATA", "manifest.ocdbt"])
def test_missing_files_are_rejected(lone: pathlib.Path, name: str):
    (lone / "params" / name).unlink()
    with pytest.raises(UserError, match=rf"export is incomplete: it lacks params/{name}; copy"):
        load.read_params(lone, abstract={"kernel": Leaf((8, 16), jnp.float32)})
    as_released(lone)
    with pytest.raises(UserError, match=r"cannot be read .*damaged or incomplete"):
        load.read_params(lone, abstract={"kernel": Leaf((8, 16), jnp.float32)})


def test_no_export_is_rejected(tmp_path: pathlib.Path):
    with pytest.raises(UserError, match=r"not a finished export \(there is no .*manifest.json\)"):
        load.read_manifest(tmp_path / "export")
    with pytest.raises(UserError, match="holds no params folder"):
        load.read_params(tmp_path / "export", abstract=abstract())


def test_a_half_written_export_is_rejected_as_such(tmp_path: pathlib.Path):
    (tmp_path / "export.tmp").mkdir()
    with pytest.raises(UserError, match="begun there but not finished"):
        load.read_manifest(tmp_path / "export")


def test_a_manifest_that_is_not_text_is_rejected(tmp_path: pathlib.Path):
    (tmp_path / "manifest.json").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(UserError, match=r"manifest.json cannot be read as JSON"):
        load.read_manifest(tmp_path)


def test_an_export_survives_a_crash_between_the_renames(
    export_dir: pathlib.Path, tmp_path: pathlib.Path
):
    shutil.copytree(export_dir, tmp_path / "export.old")
    assert load.read_manifest(tmp_path / "export").stage == "upsampler"
    params = load.read_params(tmp_path / "export", abstract=abstract())
    np.testing.assert_array_equal(params["dense"]["bias"], PARAMS["dense"]["bias"])
    export.write_export(tmp_path / "export", params=PARAMS, manifest=UPSAMPLER, tokenizer_dir=None)
    assert [p.name for p in tmp_path.iterdir()] == ["export"]


def test_an_export_without_tokenizer_says_so(export_dir: pathlib.Path):
    with pytest.raises(UserError, match="holds no tokenizer"):
        load.tokenizer_dir(export_dir)


NAMES = ("clip", "prior", "decoder", "upsampler_256", "upsampler_1024")
REQUIRED = ("clip", "prior", "decoder")


def find(run: pathlib.Path, required: tuple[str, ...] = REQUIRED) -> dict[str, pathlib.Path]:
    return load.find_stages(run, names=NAMES, required=required)


def plant(run: pathlib.Path, *names: str) -> None:
    for name in names:
        (run / name / "export").mkdir(parents=True)
        (run / name / "export" / "manifest.json").write_text("{}")


def test_stages_are_found_in_cascade_order(tmp_path: pathlib.Path):
    plant(tmp_path, "upsampler_256", "decoder", "prior", "clip")
    (tmp_path / "upsampler_1024" / "checkpoints").mkdir(parents=True)
    result = find(tmp_path)
    assert list(result) == ["clip", "prior", "decoder", "upsampler_256"]
    assert result["prior"] == tmp_path / "prior" / "export"


def test_a_missing_stage_is_named_with_its_command(tmp_path: pathlib.Path):
    plant(tmp_path, "clip", "prior")
    with pytest.raises(UserError, match=r"no export of the decoder \(it has clip, prior\)") as info:
        find(tmp_path)
    assert f"--config=experiments/decoder.py --workdir={tmp_path / 'decoder'}" in str(info.value)
    assert list(find(tmp_path, required=("clip",))) == ["clip", "prior"]
    with pytest.raises(UserError, match="no export of the upsampler_256"):
        find(tmp_path, required=("upsampler_256",))


def test_a_run_directory_that_is_not_there_is_rejected(tmp_path: pathlib.Path):
    with pytest.raises(UserError, match="not a folder; give a run directory"):
        find(tmp_path / "runs")
    with pytest.raises(UserError, match=r"no export of the clip \(it has none\)"):
        find(tmp_path)


def test_run_directories_near_a_folder_that_is_none_are_suggested(tmp_path: pathlib.Path):
    plant(tmp_path / "runs" / "shapes", "clip", "decoder")
    with pytest.raises(UserError, match=r"/runs is no run directory. Did you mean '.*/shapes'\?$"):
        find(tmp_path / "runs")
    with pytest.raises(UserError, match=r"/decoder is no run .* Did you mean '.*/runs/shapes'\?$"):
        find(tmp_path / "runs" / "shapes" / "decoder")
    plant(tmp_path / "runs" / "emoji", "clip")
    with pytest.raises(UserError, match=r"Did you mean '.*/emoji'\? Others: .*/shapes\.$"):
        find(tmp_path / "runs")


def test_a_kernel_that_may_grow_reads_nothing_from_its_new_channels(tmp_path: pathlib.Path):
    """Two groups of two inputs become two of three: y(old, anything new) = y(old)."""
    kernel = jax.random.normal(jax.random.key(0), (3, 3, 4, 5))
    params = {"stem": {"kernel": kernel, "bias": jnp.arange(5.0)}}
    export.write_export(tmp_path / "export", params=params, manifest=UPSAMPLER, tokenizer_dir=None)
    expected = jax.tree.map(lambda leaf: Leaf(leaf.shape, leaf.dtype), params)
    expected["stem"]["kernel"] = Leaf((3, 3, 6, 5), jnp.float32)
    grown = load.read_params(tmp_path / "export", abstract=expected, grows={"stem/kernel": 2})
    result = np.asarray(grown["stem"]["kernel"])
    np.testing.assert_array_equal(result[:, :, [0, 1, 3, 4]], kernel)
    np.testing.assert_array_equal(result[:, :, [2, 5]], 0.0)
    np.testing.assert_array_equal(grown["stem"]["bias"], params["stem"]["bias"])
    with pytest.raises(UserError, match=r"does not fit this model in 1 parameters: stem/kernel"):
        load.read_params(tmp_path / "export", abstract=expected)
    expected["stem"]["kernel"] = Leaf((3, 3, 3, 5), jnp.float32)  # never narrower
    with pytest.raises(UserError, match="does not fit this model in 1 parameters"):
        load.read_params(tmp_path / "export", abstract=expected, grows={"stem/kernel": 1})
