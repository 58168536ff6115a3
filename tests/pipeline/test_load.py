import dataclasses

import pytest

from tests import cascades
from unclip_jax.core.checks import UserError
from unclip_jax.handoff import load as handoff
from unclip_jax.handoff.manifest import to_json
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


def test_a_prior_of_another_clip_is_refused_by_name(run_dir):
    path = run_dir / "prior" / "export"
    card = handoff.read_manifest(path)
    right = (path / "manifest.json").read_text()
    (path / "manifest.json").write_text(to_json(dataclasses.replace(card, clip_id="f" * 64)))
    with pytest.raises(UserError, match="the clip and the prior do not fit: clip_id"):
        load.load_cascade(run_dir)
    (path / "manifest.json").write_text(right)


def test_a_clip_alone_loads_and_other_stages_do_not_pass_for_one(run_dir):
    cfg, _, card = load.load_clip(run_dir / "clip" / "export")
    assert cfg.model.embed_dim == card.embed_dim
    with pytest.raises(UserError, match="is a prior; give the export of a CLIP"):
        load.load_clip(run_dir / "prior" / "export")
