"""Features of the frozen text encoder join the batches of stages that read them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import cascades
from tests.stages import tiny
from unclip_jax import embed, prepare
from unclip_jax.conditioning.captions import TokenIds
from unclip_jax.core import batch as batches
from unclip_jax.core.checks import UserError
from unclip_jax.data import sources
from unclip_jax.data.text_features import TextFeatureStore
from unclip_jax.experiment import frozen_text, input_pipeline
from unclip_jax.handoff import export
from unclip_jax.handoff import load as handoff
from unclip_jax.inference import caption_features
from unclip_jax.inference.load import load_text_encoder
from unclip_jax.stages import text_encoder

SIZES = {"context": 24, "width": 32}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A text encoder, a data set, and the features of its captions."""
    path = tmp_path_factory.mktemp("run")
    encoder = cascades.write(path, names=("text_encoder",)) / "text_encoder" / "export"
    prepare.main(["shapes:train=40,validation=8", f"--out={path}/data"])
    embed.main(
        [
            "text",
            f"--encoder={encoder}",
            f"--data={path}/data",
            f"--out={path}/features",
            "--batch=32",
        ]
    )
    return path


def experiment(folder, **data):
    own = tiny.experiment("imagen_base")
    paths = {"path": str(folder / "data"), "text_encoder": f"{folder}/text_encoder/export"}
    train = dataclasses.replace(own.train, batch_size=8)
    data = dataclasses.replace(own.data, **{**paths, **data})
    return dataclasses.replace(own, data=data, train=train)


def test_a_batch_gets_the_features_in_place_of_its_tokens(folder):
    encoder = folder / "text_encoder" / "export"
    ids, mask = cascades.tokenizer().encode(cascades.CAPTIONS, length=24)
    batch = {"tokens": ids, "token_mask": mask, "caption": np.array(cascades.CAPTIONS)}
    out = frozen_text.reader(encoder, **SIZES)(batch)
    assert set(out) == {"caption", "text_features", "text_mask"}
    cfg, params, _ = load_text_encoder(encoder)
    captions = TokenIds(jnp.asarray(ids), jnp.asarray(mask))
    expected = jax.jit(lambda p: text_encoder.encode(cfg, p, captions).sequence)(params)
    np.testing.assert_array_equal(out["text_features"], expected.astype("bfloat16"))


def test_stored_features_make_the_same_batches(folder):
    """Slots behind the last token differ, but this stage does not read them."""
    computed = experiment(folder)
    stored = experiment(folder, text_features=str(folder / "features"))
    assert computed.identity() == stored.identity()
    stage = computed.build_stage()
    one, other = (input_pipeline.open_inputs(e, stage) for e in (computed, stored))
    rows, again = next(one.train), next(other.train)
    batches.check(stage.batch_spec, rows)
    mask = rows["text_mask"][..., None]
    assert rows["text_mask"].sum() > 0
    np.testing.assert_array_equal(rows["text_mask"], again["text_mask"])
    ours, theirs = (np.float32(b["text_features"]) * mask for b in (rows, again))
    np.testing.assert_allclose(ours, theirs, rtol=2**-7, atol=1e-3)  # one bit of bfloat16
    identity = handoff.read_manifest(folder / "text_encoder" / "export").text_encoder_id
    assert one.facts["text_encoder_id"] == identity == one.facts["inputs"]["text_encoder"]
    assert one.tokenizer_dir is None and "tokenizer_hash" not in one.facts


def test_other_encoders_and_features_are_rejected(folder):
    encoder = folder / "text_encoder" / "export"
    with pytest.raises(
        UserError, match="text.context is 20, but the text encoder in .* has context"
    ):
        frozen_text.reader(encoder, context=20, width=32)
    with pytest.raises(UserError, match="text.width is 48, but the text encoder in .* width 32"):
        _stored(folder, width=48)
    with pytest.raises(
        UserError, match="features of the text encoder .*, but config.data.text_enc"
    ):
        _stored(folder, encoder_id="0" * 64)
    with pytest.raises(UserError, match="token ids of the tokenizer .* is 000000000000; make them"):
        _stored(folder, tokenizer_hash="0" * 64)
    cascades.write(folder / "other", names=("clip",))
    mistaken = experiment(folder, text_encoder=f"{folder}/other/clip/export")
    with pytest.raises(UserError, match="the export of a clip; give that of a text_encoder"):
        input_pipeline.open_inputs(mistaken, mistaken.build_stage())


def test_an_earlier_version_named_the_encoder_by_its_parameters_alone(folder):
    parameters = _manifest(folder).text_encoder_id.split("+")[0]
    assert len(parameters) == 64
    _stored(folder, encoder_id=parameters)


def test_training_goes_on_with_the_encoder_that_it_began_with(folder, tmp_path):
    """Another encoder of equal sizes, and the same one behind another tokenizer, are others."""
    run = cascades.write(tmp_path / "run", names=("text_encoder", "imagen_base"))
    base, encoder = run / "imagen_base" / "export", run / "text_encoder" / "export"
    own = dataclasses.replace(experiment(folder, text_encoder=str(encoder)), init_from=str(base))
    stage = own.build_stage()
    facts = input_pipeline.open_inputs(own, stage).facts
    assert facts["text_encoder_id"] == handoff.read_manifest(base).text_encoder_id
    for identity in ("0" * 64, facts["text_encoder_id"][:65] + "0" * 64):
        card = dataclasses.replace(handoff.read_manifest(base), text_encoder_id=identity)
        export.replace_manifest(base, card)
        with pytest.raises(UserError, match="init_from is .* name the encoder that it was trained"):
            input_pipeline.open_inputs(own, stage)


def _stored(folder, **changes):
    """Opens the stored features as those of the text encoder, but for `changes`."""
    card = _manifest(folder)
    names = {"encoder_id": card.text_encoder_id, "tokenizer_hash": card.tokenizer_hash}
    return frozen_text.stored(folder / "features", **{**names, **SIZES, **changes})


def _manifest(folder):
    return handoff.read_manifest(folder / "text_encoder" / "export")


def test_jobs_write_whole_shards_of_the_same_features(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(caption_features, "SHARD", 7)
    command = [
        "text",
        f"--encoder={folder}/text_encoder/export",
        f"--data={folder}/data",
        f"--out={tmp_path}/out",
        "--batch=32",
    ]
    embed.main([*command, "--shard=1/2"])
    with pytest.raises(UserError, match="is half-written"):
        TextFeatureStore(tmp_path / "out")
    embed.main([*command, "--shard=0/2"])
    names = sorted(path.name for path in (tmp_path / "out").glob("digests_*"))
    assert names == [f"digests_000{i}.npy" for i in range(8)]  # 6 of 40 records, 2 of 8
    expected, parts = (TextFeatureStore(p) for p in (folder / "features", tmp_path / "out"))
    tokens, mask = cascades.tokenizer().encode(["", *captions(folder)], length=24)
    for one, other in zip(expected.batch(tokens, mask), parts.batch(tokens, mask), strict=True):
        np.testing.assert_array_equal(one, other)
    with pytest.raises(UserError, match="holds features with data = .* now it is"):
        embed.main([*command, "--splits", "train"])


def captions(folder) -> list[str]:
    source = sources.open_source(folder / "data", split="train")
    return [source[i]["caption"] for i in range(len(source))]
