import dataclasses
import json

import jax
import jax.numpy as jnp
import pytest

from tests import cascades
from unclip_jax.core.checks import UserError
from unclip_jax.handoff import load as handoff
from unclip_jax.handoff.export import replace_manifest
from unclip_jax.inference import load


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    return cascades.write(tmp_path_factory.mktemp("run"))


def test_a_cascade_comes_back_typed_with_all_its_stages(run_dir):
    loaded = load.load_cascade(run_dir)
    assert set(loaded.manifests) == set(cascades.NAMES)
    assert set(loaded.params) == set(cascades.NAMES)
    assert len(loaded.cascade.upsamplers) == 1
    assert loaded.cascade.image_size == 32


def test_a_prior_of_another_clip_is_rejected_by_name(run_dir):
    path = run_dir / "prior" / "export"
    card = handoff.read_manifest(path)
    right = (path / "manifest.json").read_text()
    replace_manifest(path, dataclasses.replace(card, clip_id="f" * 64))
    with pytest.raises(UserError, match="the clip and the prior do not fit: clip_id"):
        load.load_cascade(run_dir)
    (path / "manifest.json").write_text(right)


def test_a_clip_alone_loads_and_other_stages_do_not_pass_for_one(run_dir):
    cfg, _, card = load.load_clip(run_dir / "clip" / "export")
    assert cfg.model.embed_dim == card.embed_dim
    with pytest.raises(UserError, match="is a prior; give the export of a CLIP"):
        load.load_clip(run_dir / "prior" / "export")


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("model", "image_width"), 10**9, "image_width is 1000000000; it must lie in"),
        (("model", "image_depth"), 10**6, "image_depth is 1000000; it must lie in"),
        (("model", "text_width"), -48, "text_width is -48; it must lie in"),
        (("model", "text_heads"), 7, "config describes no network|does not divide"),
        (("model", "text_heads"), 0, "config describes no network|does not divide"),
        (("model", "image_size"), 2**14, "clip.*does not fit this model"),
        (("model", "vocab_size"), "600", "vocab_size is '600' .str.; expected int"),
        (("model", "image_mean"), 3, "image_mean is 3 .int.; expected a list"),
        (("model",), [1], "model is .*; expected a group of keys"),
        ((), [1], "config is .*; expected a group of keys"),
    ],
)
def test_a_config_of_no_network_is_rejected_before_it_is_built(run_dir, path, value, message):
    export = run_dir / "clip" / "export"
    text = (export / "manifest.json").read_text()
    entries = json.loads(text)
    del entries["files"], entries["digest"]  # as version 0.1.0
    entries["format_version"] = 1
    group = entries
    for name in ("config", *path)[:-1]:
        group = group[name]
    group[("config", *path)[-1]] = value
    (export / "manifest.json").write_text(json.dumps(entries))
    try:
        with pytest.raises(UserError, match=message):
            load.load_clip(export)
    finally:
        (export / "manifest.json").write_text(text)


def test_parameters_stored_in_bfloat16_are_read_so_if_the_tree_fits():
    def tree(**types):
        return {"a": {n: jax.ShapeDtypeStruct((2, len(n)), types[n]) for n in types}}

    float32, bfloat16 = jnp.dtype("float32"), jnp.dtype("bfloat16")
    shapes, stored = tree(bias=float32, scale=float32), tree(bias=bfloat16, scale=float32)
    assert load._as_stored(shapes, stored) == stored
    assert load._as_stored(shapes, tree(scale=bfloat16)) == shapes
