"""Exports are whole or absent, identical when read back, and never cost what was there before."""

import dataclasses
import errno
import os
import pathlib
import pickletools
import resource
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from safetensors.numpy import load_file

from unclip_jax.core.checks import UserError
from unclip_jax.handoff import export, load
from unclip_jax.handoff.manifest import Manifest

CLIP = Manifest(stage="clip", size="tiny", step=1, config={}, embed_dim=4, tokenizer_hash="t")
UPSAMPLER = Manifest(
    stage="upsampler", size="tiny", step=1, config={}, image_size=8, low_res_size=4
)


def make_params(seed: int = 0) -> dict:
    draw = np.random.default_rng(seed).standard_normal
    kernel, bias = draw((8, 16)).astype(np.float32), draw(16).astype(np.float32)
    return {
        "dense": {"kernel": jnp.asarray(kernel), "bias": jnp.asarray(bias)},
        "count": jnp.asarray(seed, jnp.int32),
    }


def abstract(params: dict) -> dict:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), params)


def assert_same(a: dict, b: dict) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def manifest_with(**fields) -> Manifest:
    return dataclasses.replace(UPSAMPLER, **fields)


def write(directory: pathlib.Path, params: dict, **keywords) -> Manifest:
    keywords = {"manifest": UPSAMPLER, "tokenizer_dir": None} | keywords
    return export.write_export(directory, params=params, **keywords)


@pytest.mark.parametrize("layout", export.LAYOUTS)
def test_write_then_read_is_identity(tmp_path: pathlib.Path, layout: str):
    params = make_params()
    manifest = write(tmp_path / "a" / "export", params, layout=layout)
    assert_same(load.read_params(tmp_path / "a" / "export", abstract=abstract(params)), params)
    assert load.read_manifest(tmp_path / "a" / "export") == manifest
    assert manifest.parameters == 8 * 16 + 16 + 1
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["export"]


@pytest.mark.parametrize("layout", export.LAYOUTS)
def test_bfloat16_rounds_to_nearest_and_leaves_integers(tmp_path: pathlib.Path, layout: str):
    params = make_params(7)
    write(tmp_path / "export", params, dtype="bfloat16", layout=layout)
    back = load.read_params(tmp_path / "export", abstract=abstract(params))
    bits = np.asarray(params["dense"]["kernel"]).view(np.uint32)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).view(np.float32)
    np.testing.assert_array_equal(back["dense"]["kernel"], rounded)
    assert int(back["count"]) == 7


def test_unknown_dtype_is_rejected(tmp_path: pathlib.Path):
    with pytest.raises(UserError, match="unknown export dtype 'bf16'"):
        write(tmp_path / "export", make_params(), dtype="bf16")


def test_unknown_layout_is_rejected(tmp_path: pathlib.Path):
    with pytest.raises(UserError, match="unknown export layout 'npz'"):
        write(tmp_path / "export", make_params(), layout="npz")


def test_a_single_file_holds_the_parameters(tmp_path: pathlib.Path):
    """As the safetensors package reads it, by the paths of the parameters."""
    write(tmp_path / "export", make_params(3), dtype="bfloat16", layout="safetensors")
    names = sorted(path.name for path in (tmp_path / "export").iterdir())
    assert names == ["manifest.json", "params.safetensors"]
    tensors = load_file(tmp_path / "export" / "params.safetensors")
    assert {name: (str(t.dtype), t.shape) for name, t in tensors.items()} == {
        "count": ("int32", ()),
        "dense/bias": ("bfloat16", (16,)),
        "dense/kernel": ("bfloat16", (8, 16)),
    }
    shapes = load.stored_shapes(tmp_path / "export")
    assert shapes["dense"]["kernel"] == jax.ShapeDtypeStruct((8, 16), jnp.bfloat16)


def test_content_digest_covers_the_single_file(tmp_path: pathlib.Path):
    write(tmp_path / "a", make_params(1), layout="safetensors")
    write(tmp_path / "b", make_params(1), layout="safetensors", manifest=manifest_with(step=2))
    write(tmp_path / "c", make_params(2), layout="safetensors")
    first, same, other = (load.content_digest(tmp_path / name) for name in "abc")
    assert first == same != other


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), "export is incomplete: it lacks params.safetensors; copy"),
        (lambda path: path.write_bytes(path.read_bytes()[:-9]), "digest of params.safetensors"),
        (lambda path: path.write_bytes(b""), "digest of params.safetensors differs"),
    ],
    ids=["missing", "truncated", "empty"],
)
def test_damage_of_the_single_file_is_named(tmp_path: pathlib.Path, damage, message: str):
    params = make_params()
    write(tmp_path / "export", params, layout="safetensors")
    damage(tmp_path / "export" / "params.safetensors")
    with pytest.raises(UserError, match=message):
        load.read_params(tmp_path / "export", abstract=abstract(params))


def test_a_truncated_single_file_is_rejected_without_digests(tmp_path: pathlib.Path, monkeypatch):
    params = make_params()
    write(tmp_path / "export", params, layout="safetensors")
    path = tmp_path / "export" / "params.safetensors"
    path.write_bytes(path.read_bytes()[:-9])
    monkeypatch.setenv("UNCLIP_SKIP_DIGESTS", "1")
    with pytest.raises(UserError, match="cannot be read .*Copy or export the stage again"):
        load.read_params(tmp_path / "export", abstract=abstract(params))
    with pytest.raises(UserError, match="holds no readable params.safetensors"):
        load.stored_shapes(tmp_path / "export")


def test_other_shapes_in_the_single_file_are_listed(tmp_path: pathlib.Path):
    write(tmp_path / "export", make_params(), layout="safetensors")
    expected = abstract(make_params())
    expected["dense"]["bias"] = jax.ShapeDtypeStruct((17,), jnp.float32)
    with pytest.raises(UserError, match=r"dense/bias: expected \(17,\), found \(16,\)"):
        load.read_params(tmp_path / "export", abstract=expected)


def test_tokenizer_files_come_along(tmp_path: pathlib.Path):
    (tmp_path / "tok").mkdir()
    (tmp_path / "tok" / "tokenizer.json").write_text("{}")
    write(tmp_path / "export", make_params(), tokenizer_dir=tmp_path / "tok")
    folder = load.tokenizer_dir(tmp_path / "export")
    assert (folder / "tokenizer.json").read_text() == "{}"


def test_clip_id_is_the_parameters_identity(tmp_path: pathlib.Path):
    first, again, other = (
        write(tmp_path / name, make_params(seed), manifest=CLIP, identity="clip_id")
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    assert first.clip_id == again.clip_id != other.clip_id
    back = load.read_params(tmp_path / "a", abstract=abstract(make_params()))
    assert export.params_id(back) == first.clip_id


def test_text_encoder_id_is_that_of_parameters_and_tokenizer(tmp_path: pathlib.Path):
    cards = [dataclasses.replace(CLIP, tokenizer_hash=name) for name in ("t1", "t2", None)]
    first, other, without = (
        write(tmp_path / str(i), make_params(), manifest=card, identity="text_encoder_id")
        for i, card in enumerate(cards)
    )
    own = export.params_id(make_params())
    assert (first.text_encoder_id, other.text_encoder_id) == (f"{own}+t1", f"{own}+t2")
    assert without.text_encoder_id == own


def test_params_id_sees_every_change_and_nothing_else():
    base = make_params()
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
    sharded = jax.device_put(base["dense"]["kernel"], NamedSharding(mesh, PartitionSpec("x")))
    same = {"count": base["count"], "dense": {**base["dense"], "kernel": sharded}}
    assert export.params_id(same) == export.params_id(base)
    flipped = base["dense"]["kernel"].at[0, 0].multiply(-1)
    changes = [
        {**base, "dense": {**base["dense"], "kernel": flipped}},
        {**base, "dense": {**base["dense"], "kernel": base["dense"]["kernel"].T}},
        {**base, "dense_2": base["dense"]},
        {**base, "count": base["count"].astype(jnp.int16)},
    ]
    assert len({export.params_id(tree) for tree in [base, *changes]}) == 5


def test_an_export_is_replaced_by_a_complete_one(tmp_path: pathlib.Path):
    write(tmp_path / "export", make_params(0))
    write(tmp_path / "export", make_params(1))
    back = load.read_params(tmp_path / "export", abstract=abstract(make_params()))
    assert_same(back, make_params(1))
    assert [p.name for p in tmp_path.iterdir()] == ["export"]


@pytest.mark.parametrize("stage", ["params", "manifest", "rename"])
def test_a_full_disk_loses_nothing(tmp_path: pathlib.Path, monkeypatch, stage: str):
    write(tmp_path / "export", make_params(0))

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    target = {
        "params": (export.ocp.StandardCheckpointer, "save"),
        "manifest": (export, "_write_durably"),
        "rename": (export.os, "fsync"),
    }[stage]
    monkeypatch.setattr(*target, full)
    with pytest.raises(UserError, match=r"could not write the export .*No space left.*Free some"):
        write(tmp_path / "export", make_params(1))
    monkeypatch.undo()
    assert [p.name for p in tmp_path.iterdir()] == ["export"]
    back = load.read_params(tmp_path / "export", abstract=abstract(make_params()))
    assert_same(back, make_params(0))


def test_a_write_the_kernel_rejects_is_one_line(tmp_path: pathlib.Path):
    """A real failing write, inside Orbax: the process may write files of 64 kB at most."""
    script = f"""
        import pathlib, resource
        import jax.numpy as jnp, numpy as np
        from unclip_jax.core.checks import UserError
        from unclip_jax.handoff import export
        from tests_manifest import UPSAMPLER
        noise = np.random.default_rng(0).standard_normal((256, 1024)).astype(np.float32)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))
        try:
            export.write_export(pathlib.Path({str(tmp_path / "export")!r}), params={{"a": noise}},
                                manifest=UPSAMPLER, tokenizer_dir=None)
        except UserError as error:
            assert "could not write the export" in str(error), error
            assert "\\n" not in str(error), error
            raise SystemExit(7)
    """
    manifest = "from unclip_jax.handoff.manifest import Manifest\nUPSAMPLER = " + repr(UPSAMPLER)
    (tmp_path / "tests_manifest.py").write_text(manifest)
    env = os.environ | {"PYTHONPATH": f"{tmp_path}:{pathlib.Path(__file__).parents[2]}"}
    command = [sys.executable, "-c", textwrap.dedent(script)]
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
    run = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    assert run.returncode == 7, run.stderr
    assert not (tmp_path / "export").exists()
    assert not (tmp_path / "export.tmp").exists()


def test_an_unwritable_place_is_one_line(tmp_path: pathlib.Path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"could not write the export .*File exists"):
        write(tmp_path / "file" / "export", make_params())
    assert (tmp_path / "file").read_text() == "in the way"


def test_a_folder_that_is_not_an_export_is_not_replaced(tmp_path: pathlib.Path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match=r"holds files but no manifest.json"):
        write(tmp_path / "home", make_params())
    assert (tmp_path / "home" / "thesis.tex").read_text() == "years of work"


def test_a_draft_left_by_a_killed_run_is_cleared(tmp_path: pathlib.Path):
    (tmp_path / "export.tmp" / "params").mkdir(parents=True)
    (tmp_path / "export.tmp" / "params" / "half").write_text("half")
    write(tmp_path / "export", make_params())
    assert [p.name for p in tmp_path.iterdir()] == ["export"]
    assert not list((tmp_path / "export").rglob("half"))


def test_no_file_of_an_export_is_a_pickle(tmp_path: pathlib.Path):
    write(tmp_path / "export", make_params())
    for path in (tmp_path / "export").rglob("*"):
        if path.is_file():
            with pytest.raises(ValueError):
                list(pickletools.genops(path.read_bytes()))
