"""Manifests survive JSON, and stages that do not fit are rejected by the field that differs."""

import dataclasses
import json

import pytest

from unclip_jax.core.checks import UserError
from unclip_jax.handoff import manifest as mf
from unclip_jax.handoff.manifest import Link, Manifest

COMMON = {"size": "tiny", "step": 3, "config": {"model": {"width": 8, "levels": [1, 2]}}}
TEXT = {"clip_id": "c1", "embed_dim": 16, "tokenizer_hash": "t1"}
CLIP = Manifest(stage="clip", **TEXT, **COMMON)
PRIOR = Manifest(stage="prior", z_scale=4.0, **TEXT, **COMMON)
PRIOR_AR = Manifest(stage="prior_ar", **TEXT, **COMMON)
DECODER = Manifest(stage="decoder", image_size=32, **TEXT, **COMMON)
UP_1 = Manifest(stage="upsampler", image_size=64, low_res_size=32, **COMMON)
UP_2 = Manifest(stage="upsampler", image_size=128, low_res_size=64, **COMMON)
SHARED = ("clip_id", "embed_dim", "tokenizer_hash", "z_scale", "embedding")


def check(*manifests: Manifest, shared: tuple[str, ...] = SHARED) -> None:
    mf.check_chain([Link(manifest, shared) for manifest in manifests])


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
    check(CLIP, PRIOR, DECODER, UP_1, UP_2)
    check(CLIP, PRIOR_AR, DECODER)
    check(CLIP, DECODER)
    check()
    check(UP_1, UP_2)


@pytest.mark.parametrize(
    ("upstream", "downstream", "field", "value"),
    [
        (CLIP, PRIOR, "clip_id", "c2"),
        (CLIP, DECODER, "embed_dim", 17),
        (PRIOR, DECODER, "tokenizer_hash", "t2"),
        (PRIOR, DECODER, "clip_id", "c2"),
    ],
)
def test_each_shared_field_is_rejected_by_name_with_both_values(upstream, downstream, field, value):
    other = dataclasses.replace(downstream, **{field: value})
    pattern = rf"{field} is {getattr(upstream, field)!r} in the {upstream.stage} and {value!r}"
    with pytest.raises(UserError, match=pattern):
        check(upstream, other)


def test_z_scale_is_compared_where_both_state_it():
    check(PRIOR, DECODER)
    with pytest.raises(UserError, match=r"z_scale is 4.0 in the prior and 2.0 in the decoder"):
        check(PRIOR, dataclasses.replace(DECODER, z_scale=2.0))


@pytest.mark.parametrize(("upstream", "downstream"), [(DECODER, UP_2), (UP_1, UP_1)])
def test_image_size_must_meet_low_res_size(upstream, downstream):
    image_size, low_res_size = upstream.image_size, downstream.low_res_size
    with pytest.raises(UserError, match=f"image_size {image_size} .* low_res_size {low_res_size}"):
        check(upstream, downstream)


@pytest.mark.parametrize(
    ("one", "other", "fits"),
    [
        ("p1+t1", "p1+t1", True),
        ("p1+t1", "p1", True),  # of an earlier version
        ("p1", "p1+t1", True),
        ("p1+t1", "p1+t2", False),
        ("p1+t1", "p2+t1", False),
        ("p2", "p1+t1", False),
        ("p1", "p2", False),
    ],
)
def test_text_encoders_are_compared_with_their_tokenizers(one, other, fits):
    base, upsampler = (dataclasses.replace(DECODER, text_encoder_id=x) for x in (one, other))
    upsampler = dataclasses.replace(upsampler, image_size=None)
    if fits:
        check(base, upsampler, shared=("text_encoder_id",))
        return
    with pytest.raises(UserError, match=f"text_encoder_id is '{one.replace('+', '.')}' in the"):
        check(base, upsampler, shared=("text_encoder_id",))


def test_a_chain_compares_stages_that_are_not_neighbours():
    stranger = dataclasses.replace(UP_2, clip_id="c2")
    check(UP_1, stranger)  # the neighbour between them records no CLIP
    with pytest.raises(UserError, match="clip_id is 'c1' in the decoder and 'c2' in the upsample"):
        check(DECODER, UP_1, stranger)
    with pytest.raises(UserError, match=r"image_size 32 .* low_res_size 64"):
        check(CLIP, DECODER, UP_2)


def test_a_field_is_compared_only_between_stages_that_share_it():
    other = dataclasses.replace(DECODER, tokenizer_hash="t2")
    own = Link(other, tuple(name for name in SHARED if name != "tokenizer_hash"))
    mf.check_chain([Link(CLIP, SHARED), own])
    with pytest.raises(UserError, match="tokenizer_hash is 't1' in the clip and 't2'"):
        mf.check_chain([Link(CLIP, SHARED), own, Link(other, SHARED)])


@pytest.mark.parametrize("absent", ["clip_id", "tokenizer_hash"])
def test_a_manifest_without_a_required_field_is_rejected(absent: str):
    incomplete = dataclasses.replace(PRIOR, **{absent: None})
    mf.require(incomplete, ["embed_dim", "z_scale"])
    with pytest.raises(UserError, match=f"manifest of a prior lacks {absent};"):
        mf.require(incomplete, ["embed_dim", absent])


def released_json(manifest: Manifest, **changes: object) -> str:
    """The manifest as version 0.1.0 wrote it, without digests."""
    fields = dataclasses.asdict(manifest) | {"format_version": 1} | changes
    return json.dumps(fields)


def test_broken_json_is_rejected():
    with pytest.raises(UserError, match=r"m.json cannot be read as JSON"):
        mf.from_json(mf.to_json(CLIP)[:-5], where="m.json")
    with pytest.raises(UserError, match=r"m.json holds a list, not an object"):
        mf.from_json("[]", where="m.json")


@pytest.mark.parametrize("version", [99, 0, True, "1", None])
def test_another_format_version_is_rejected(version):
    newer = json.dumps(json.loads(mf.to_json(CLIP)) | {"format_version": version})
    message = rf"format_version {version!r}; this unclip_jax .* reads 1 and 2"
    with pytest.raises(UserError, match=message):
        mf.from_json(newer, where="m.json")


def test_a_manifest_of_version_0_1_0_has_no_digests():
    assert mf.from_json(released_json(CLIP), where="m") == dataclasses.replace(
        CLIP, format_version=1
    )
    assert mf.file_digests(released_json(CLIP), where="m") is None


def test_digests_of_files_are_read_back():
    files = {"params/a": "0" * 64, "tokenizer/b": "1" * 64}
    assert mf.file_digests(mf.to_json(CLIP, files), where="m") == files
    assert mf.from_json(mf.to_json(CLIP, files), where="m") == CLIP


@pytest.mark.parametrize("change", [{"embed_dim": 17}, {"extra": 1}, {"files": {"a": "b"}}])
def test_every_change_of_an_entry_is_seen(change):
    text = json.dumps(json.loads(mf.to_json(CLIP)) | change)
    for read in (mf.from_json, mf.file_digests):
        with pytest.raises(UserError, match="m is damaged or was changed: its digest does not"):
            read(text, where="m")


@pytest.mark.parametrize("entry", [*json.loads(mf.to_json(CLIP))])
def test_no_entry_can_be_removed(entry):
    fields = json.loads(mf.to_json(CLIP))
    del fields[entry]
    with pytest.raises(UserError, match="is damaged or was changed|has format_version None"):
        mf.from_json(json.dumps(fields), where="m")


def test_an_unknown_field_is_rejected():
    odd = released_json(CLIP, embed_dims=3)
    with pytest.raises(UserError, match=r"m.json has no key 'embed_dims'. Did you mean 'embed_di"):
        mf.from_json(odd, where="m.json")
    with pytest.raises(UserError, match=r"m.json.config is 5 .int.; expected a group of keys"):
        mf.from_json(released_json(CLIP, config=5), where="m.json")


@pytest.mark.parametrize("value", [object(), float("nan")])
def test_a_config_that_json_cannot_say_is_rejected(value):
    with pytest.raises(UserError, match="manifest of this clip is not plain JSON"):
        mf.to_json(dataclasses.replace(CLIP, config={"model": value}))
