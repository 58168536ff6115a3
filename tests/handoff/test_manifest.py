"""Manifests survive JSON, and stages that do not fit are refused by the field that differs."""

import dataclasses
import json

import pytest

from unclip_jax.core.checks import UserError
from unclip_jax.handoff import manifest as mf
from unclip_jax.handoff.manifest import Manifest

COMMON = {"size": "tiny", "step": 3, "config": {"model": {"width": 8, "levels": [1, 2]}}}
TEXT = {"clip_id": "c1", "embed_dim": 16, "tokenizer_hash": "t1"}
CLIP = Manifest(stage="clip", **TEXT, **COMMON)
PRIOR = Manifest(stage="prior", z_scale=4.0, **TEXT, **COMMON)
PRIOR_AR = Manifest(stage="prior_ar", **TEXT, **COMMON)
DECODER = Manifest(stage="decoder", image_size=32, **TEXT, **COMMON)
UP_1 = Manifest(stage="upsampler", image_size=64, low_res_size=32, **COMMON)
UP_2 = Manifest(stage="upsampler", image_size=128, low_res_size=64, **COMMON)


@pytest.mark.parametrize("manifest", [CLIP, PRIOR, DECODER, UP_1])
def test_json_round_trip_is_identity(manifest: Manifest):
    assert mf.from_json(mf.to_json(manifest), where="m") == manifest


def test_json_is_readable_by_field_name():
    fields = json.loads(mf.to_json(dataclasses.replace(PRIOR, licence="CC0", data="shapes")))
    assert fields["stage"] == "prior"
    assert fields["config"]["model"]["levels"] == [1, 2]
    assert (fields["licence"], fields["data"]) == ("CC0", "shapes")
    assert fields["format_version"] == mf.FORMAT_VERSION
    assert len(fields["created"].split("-")) == 3


def test_matching_chains_pass():
    mf.check_chain([CLIP, PRIOR, DECODER, UP_1, UP_2])
    mf.check_chain([CLIP, PRIOR_AR, DECODER])
    mf.check_chain([CLIP, DECODER])
    mf.check_chain([])
    mf.check_pair(UP_1, UP_2)


@pytest.mark.parametrize(
    ("upstream", "downstream", "field", "value"),
    [
        (CLIP, PRIOR, "clip_id", "c2"),
        (CLIP, DECODER, "embed_dim", 17),
        (PRIOR, DECODER, "tokenizer_hash", "t2"),
        (PRIOR, DECODER, "clip_id", "c2"),
    ],
)
def test_each_shared_field_is_refused_by_name_with_both_values(upstream, downstream, field, value):
    other = dataclasses.replace(downstream, **{field: value})
    pattern = rf"{field} is {getattr(upstream, field)!r} in the {upstream.stage} and {value!r}"
    with pytest.raises(UserError, match=pattern):
        mf.check_pair(upstream, other)


def test_z_scale_is_compared_where_both_state_it():
    mf.check_pair(PRIOR, DECODER)
    with pytest.raises(UserError, match=r"z_scale is 4.0 in the prior and 2.0 in the decoder"):
        mf.check_pair(PRIOR, dataclasses.replace(DECODER, z_scale=2.0))


@pytest.mark.parametrize(("upstream", "downstream"), [(DECODER, UP_2), (UP_1, UP_1)])
def test_image_size_must_meet_low_res_size(upstream, downstream):
    drawn, taken = upstream.image_size, downstream.low_res_size
    with pytest.raises(UserError, match=f"image_size {drawn} .* low_res_size {taken}"):
        mf.check_pair(upstream, downstream)


def test_a_chain_compares_stages_that_are_not_neighbours():
    stranger = dataclasses.replace(UP_2, clip_id="c2")
    mf.check_pair(UP_1, stranger)  # the neighbour between them says nothing about a CLIP
    with pytest.raises(UserError, match="clip_id is 'c1' in the decoder and 'c2' in the upsample"):
        mf.check_chain([DECODER, UP_1, stranger])
    with pytest.raises(UserError, match=r"image_size 32 .* low_res_size 64"):
        mf.check_chain([CLIP, DECODER, UP_2])


def test_a_chain_in_another_order_is_refused():
    with pytest.raises(UserError, match="order decoder, prior; expected clip, prior, prior_ar, de"):
        mf.check_chain([DECODER, PRIOR])


@pytest.mark.parametrize(
    ("stage", "absent"), [(s, f) for s, names in mf.REQUIRED.items() for f in names]
)
def test_a_manifest_without_what_later_stages_need_is_refused(stage: str, absent: str):
    whole = {each.stage: each for each in (CLIP, PRIOR, PRIOR_AR, DECODER, UP_1)}[stage]
    with pytest.raises(UserError, match=f"manifest of a {stage} lacks {absent}"):
        dataclasses.replace(whole, **{absent: None})


def test_an_unknown_stage_is_refused_with_a_suggestion():
    with pytest.raises(UserError, match=r"unknown stage 'decodr'. Did you mean 'decoder'"):
        dataclasses.replace(DECODER, stage="decodr")


def test_broken_json_is_refused():
    with pytest.raises(UserError, match=r"m.json is not valid JSON"):
        mf.from_json(mf.to_json(CLIP)[:-5], where="m.json")
    with pytest.raises(UserError, match=r"m.json holds list; expected an object"):
        mf.from_json("[]", where="m.json")


def test_another_format_version_is_refused():
    newer = json.dumps(json.loads(mf.to_json(CLIP)) | {"format_version": 99})
    with pytest.raises(UserError, match=r"format_version 99; this unclip_jax .* reads 1"):
        mf.from_json(newer, where="m.json")


def test_an_unknown_field_is_refused():
    odd = json.dumps(json.loads(mf.to_json(CLIP)) | {"embed_dims": 3})
    with pytest.raises(UserError, match=r"m.json has no key 'embed_dims'. Did you mean 'embed_di"):
        mf.from_json(odd, where="m.json")


@pytest.mark.parametrize("value", [object(), float("nan")])
def test_a_config_that_json_cannot_say_is_refused(value):
    with pytest.raises(UserError, match="manifest of this clip is not plain JSON"):
        mf.to_json(dataclasses.replace(CLIP, config={"model": value}))
