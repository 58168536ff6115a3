"""Fields that a stage takes from its training embeddings before the first step."""

import contextlib
import dataclasses
import logging
import re
import shlex
import shutil
from unittest import mock

import jax.numpy as jnp
import numpy as np
import pytest

from tests.stages import tiny
from unclip_jax import embed, prepare
from unclip_jax.core.checks import UserError
from unclip_jax.data import sources
from unclip_jax.data.embedding_writer import EmbeddingWriter
from unclip_jax.data.embeddings import EmbeddingSource
from unclip_jax.experiment import input_pipeline, training_embeddings, training_run
from unclip_jax.stages import prior
from unclip_jax.tokenization import caption_tokenizer

CONSTANT = np.where(np.arange(32) == 2, 1.0, np.random.default_rng(0).normal(size=(4, 32)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Embeddings of 500 examples, the first directions holding most of the variance."""
    path = tmp_path_factory.mktemp("embeddings")
    draws = np.random.default_rng(0)
    z = draws.normal(size=(2, 500, 32)) * 0.8 ** np.arange(32)
    words = [str(i) for i in range(500)]
    writer = EmbeddingWriter(path / "train", info={"clip_id": "c"}, shard_size=200)
    writer.add(words, words, z_img=np.float32(z[0]), z_txt=np.float32(z[1]))
    writer.finish()
    return path


def experiment(name, folder):
    case = tiny.experiment(name)
    return dataclasses.replace(case, data=dataclasses.replace(case.data, embeddings=str(folder)))


def test_a_share_of_variance_is_counted_in_the_training_split(folder):
    mine = experiment("prior_ar", folder)
    codec = dataclasses.replace(mine.model.model.codec, components=0, explained_variance=0.8)
    model = dataclasses.replace(mine.model.model, codec=codec)
    mine = dataclasses.replace(mine, model=dataclasses.replace(mine.model, model=model))
    resolved = input_pipeline.resolve(mine)
    values = input_pipeline.fit_params(resolved, resolved.build_stage())()["codec"]["eigenvalues"]
    share = np.cumsum(values) / values.sum()
    count = resolved.model.model.codec.components
    assert share[count - 2] < 0.8 <= share[count - 1]
    assert resolved.identity() != mine.identity()  # the number of components is part of the run


def test_what_the_config_says_alone_is_left_as_it_is(folder):
    for name in ("prior", "prior_ar"):
        mine = experiment(name, folder)
        assert input_pipeline.resolve(mine).identity() == mine.identity()
    assert input_pipeline.fit_params(mine, experiment("prior", folder).build_stage()) is None


def test_a_fit_says_what_the_codes_keep(folder, caplog):
    mine = experiment("prior_ar", folder)
    with caplog.at_level(logging.INFO, logger="unclip_jax"):
        result = input_pipeline.fit_params(mine, mine.build_stage())()
    assert result["codec"]["basis"].shape == (16, 32)
    assert "prior_ar: 16 of 32 principal components explain" in caplog.text


def test_embeddings_that_are_not_there_are_named(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "half")
    shutil.rmtree(tmp_path / "half" / "train" / "text_emb")
    mine = experiment("prior_ar", tmp_path / "half")
    with pytest.raises(UserError, match=r"is incomplete: it lacks text_emb/text_emb_0000\.npy"):
        input_pipeline.fit_params(mine, mine.build_stage())()
    mine = experiment("prior_ar", tmp_path / "nowhere")
    with pytest.raises(UserError, match="no embeddings in .*nowhere"):
        input_pipeline.fit_params(mine, mine.build_stage())()


def advice(text):
    """Commands between backticks, as a shell would split them."""
    return [shlex.split(command) for command in re.findall("`([^`]+)`", text)]


def test_missing_embeddings_come_with_the_commands_that_make_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mine = tiny.experiment("prior")
    with pytest.raises(UserError, match="no embeddings in runs/tiny/embeddings/train") as error:
        training_embeddings.open_embeddings(mine, "train")
    by_hand, cascade = advice(str(error.value))
    args = embed.parser().parse_args(by_hand[3:])
    assert by_hand[:3] == ["python", "-m", "unclip_jax.embed"]
    assert str(args.clip) == "runs/tiny/clip/export"
    assert (str(args.data), str(args.out)) == (mine.data.path, mine.data.embeddings)
    assert cascade == ["launch/cascade", "tiny", "--until=embed"]
    data_config = dataclasses.replace(mine.data, embeddings="my runs/z", clip="openai/export")
    with pytest.raises(UserError, match="no embeddings in my runs/z") as error:
        training_embeddings.open_embeddings(dataclasses.replace(mine, data=data_config), "train")
    (by_hand,) = advice(str(error.value))  # the cascade would put them elsewhere
    args = embed.parser().parse_args(by_hand[3:])
    assert (str(args.clip), str(args.out)) == ("openai/export", "my runs/z")


def test_what_is_missing_is_the_data_set_not_its_tokenizer(tmp_path):
    """Every command that is advised works as it stands."""
    mine = tiny.experiment("clip")
    mine = dataclasses.replace(mine, data=dataclasses.replace(mine.data, path=f"{tmp_path}/a b"))
    with pytest.raises(UserError, match="no data set at .*a b; make one") as error:
        input_pipeline.open_inputs(mine, mine.build_stage())
    words = advice(str(error.value))[0]
    assert words[:3] == ["python", "-m", "unclip_jax.prepare"]
    few = "shapes:train=8,validation=4"  # the whole world takes its time
    small = [few if word == "shapes" else word for word in words[3:]]
    prepare.main([*small, "--tokenizer=none"])
    with pytest.raises(UserError, match="a b has no tokenizer") as error:
        input_pipeline.open_inputs(mine, mine.build_stage())
    prepare.main(advice(str(error.value))[0][3:])
    shutil.rmtree(tmp_path / "a b" / "tokenizer")
    with pytest.raises(UserError, match="a b has no tokenizer; .* --vocab-size=1024`") as error:
        input_pipeline.open_inputs(mine, mine.build_stage())
    prepare.main(advice(str(error.value))[0][3:])
    assert input_pipeline.open_inputs(mine, mine.build_stage()).tokenizer


def clip_run(path):
    mine = tiny.experiment("clip")
    return dataclasses.replace(mine, data=dataclasses.replace(mine.data, path=str(path)))


def identity(path):
    mine = clip_run(path)
    return training_run.identity(mine, input_pipeline.open_inputs(mine, mine.build_stage()))


def test_a_run_knows_its_data_by_content(tmp_path):
    prepare.main(["shapes:train=40", f"--out={tmp_path}/data"])
    before = identity(tmp_path / "data")
    assert identity(f"{tmp_path}/data/") == before
    shutil.copytree(tmp_path / "data", tmp_path / "elsewhere" / "data")
    assert identity(tmp_path / "elsewhere" / "data") == before
    words = ["shapes:train=40", "--vocab-size=520"]
    for seed, same in ((0, {"data"}), (1, set())):
        shutil.rmtree(tmp_path / "data")
        prepare.main([*words, f"--seed={seed}", f"--out={tmp_path}/data"])
        other = identity(tmp_path / "data")
        assert {
            name for name, value in other["inputs"].items() if value == before["inputs"][name]
        } == same
        assert {**other, "inputs": {}} == {**before, "inputs": {}}


def test_exports_state_the_digests_of_what_they_were_trained_on(uneven):
    inputs = held_out(uneven, "")
    digest = sources.open_source(uneven, split="train").digest
    assert inputs.tokenizer is not None
    assert inputs.facts["inputs"] == {"data": digest, "tokenizer": inputs.tokenizer.hash}
    assert inputs.train.get_state()["data"] == digest


@pytest.mark.parametrize("info", [{"clip_id": "a" * 8}, {"clip_id": "b" * 8}, {"embedding": "raw"}])
def test_a_run_knows_the_clip_behind_its_embeddings(folder, info):
    source = EmbeddingSource(folder / "train")
    before = training_embeddings.describe(source)
    source.info = lambda: {"clip_id": "c", "image_size": 64, **info}
    assert before == "c"
    assert training_embeddings.describe(source) == " ".join(dict({"clip_id": "c"}, **info).values())


def test_a_tokenizer_that_is_not_the_one_of_the_data_is_rejected(tmp_path):
    prepare.main(["shapes:train=40", f"--out={tmp_path}/data"])
    caption_tokenizer.train(["a red fox"] * 3, vocab_size=530).save(tmp_path / "data" / "tokenizer")
    with pytest.raises(UserError, match="the tokenizer beside .* has hash .* manifest of the data"):
        identity(tmp_path / "data")


@pytest.mark.parametrize(
    ("name", "entries", "message"),
    [
        ("clip", 1024, None),
        ("clip", 1025, "has 1025 entries, .* 1024 rows; set .*vocab_size to 1025 or more"),
        ("text_encoder", 1024, None),
        ("text_encoder", 1025, "1025 rows, 1 of them for the mask; .*vocab_size to 1026 or more"),
    ],
)
def test_the_token_table_has_a_row_for_each_entry_and_the_mask(name, entries, message):
    """Else masked tokens would be the tokenizer's last entry, which ends captions."""
    mine = tiny.experiment(name)
    words = mock.Mock(spec=caption_tokenizer.Tokenizer, vocab_size=entries)
    with pytest.raises(UserError, match=message) if message else contextlib.nullcontext():
        input_pipeline._check_vocabulary(words, mine.build_stage(), mine)


@pytest.fixture(scope="module")
def uneven(tmp_path_factory):
    """Splits of several sizes."""
    folder = tmp_path_factory.mktemp("uneven")
    prepare.main(["shapes:train=40,validation=3,compositional=21", f"--out={folder}/data"])
    return folder / "data"


def held_out(path, split, **changes):
    """Returns the held-out batches that training checks before its first step."""
    mine = clip_run(path)
    train = dataclasses.replace(mine.train, **changes)
    data = dataclasses.replace(mine.data, eval_split=split)
    mine = dataclasses.replace(mine, data=data, train=train)
    inputs = input_pipeline.open_inputs(mine, mine.build_stage())
    input_pipeline.check_held_out(mine, inputs)
    return inputs


@pytest.mark.parametrize(
    ("split", "message"),
    [
        (
            "validation",
            "has 3 examples, but a batch is split over 8 devices; .*eval_split is 'vali",
        ),
        (
            "vali",
            "no split 'vali'. Known: .*name another split, or none to train",
        ),
        ("test", "evaluation split cannot be used: the data set has no split 'test'"),
        ("TRAIN", "no split 'TRAIN'"),
        ("train ", "no split 'train '. Did you mean 'train'"),
    ],
)
def test_evaluation_splits_that_cannot_be_used_are_rejected_before_the_first_step(
    uneven, split, message
):
    with pytest.raises(UserError, match=message):
        held_out(uneven, split)
    held_out(uneven, split, eval_every=0, sample_every=0)


def test_a_small_evaluation_split_is_rounded_down_to_the_mesh(uneven):
    (batch,) = held_out(uneven, "compositional", batch_size=64).held_out()
    assert len(batch["image"]) == 16  # of 21, on eight devices
    assert held_out(uneven, "").held_out is None


def test_evaluations_share_the_open_split_and_what_adds_to_batches(uneven, monkeypatch):
    """CLIP's features, for example, would be loaded and compiled again for every evaluation."""
    calls = []
    for module, name in ((sources, "open_source"), (input_pipeline, "_finish")):
        function = getattr(module, name)
        monkeypatch.setattr(
            module,
            name,
            lambda *args, f=function, n=name, **kw: calls.append(n) or f(*args, **kw),
        )
    inputs = held_out(uneven, "compositional")
    passes = [list(inputs.held_out()) for _ in range(2)]
    assert sorted(calls) == ["_finish", "open_source", "open_source"]  # of two splits
    assert len(passes[0]) == len(passes[1]) > 0
    for first, second in zip(*passes, strict=True):
        assert {name: np.array_equal(first[name], second[name]) for name in first} == (
            dict.fromkeys(first, True)
        )


@pytest.mark.parametrize(("share", "name"), [("blur", "blur"), ("bsr", "bsr")])
def test_held_out_low_res_images_are_only_shrunk(share, name):
    """unCLIP, section 2.1: corrupted in training, clean at inference."""
    mine = tiny.experiment("upsampler_256")
    shares = {"blur": 0.0, "bsr": 0.0, share: 0.7}
    mine = dataclasses.replace(mine, data=dataclasses.replace(mine.data, **shares))
    training, held_out = (
        input_pipeline._example(mine, mine.build_stage(), captions=held_out).degrade
        for held_out in (False, True)
    )
    assert (training.name, training.probability) == (name, 0.7)
    assert held_out.probability == 0.0


def test_a_prior_measures_the_embeddings_that_it_standardises(folder):
    mine = experiment("prior", folder)
    mine = dataclasses.replace(mine, model=dataclasses.replace(mine.model, standardise=True))
    resolved = input_pipeline.resolve(mine).model
    z_img = EmbeddingSource(folder / "train").vectors("z_img", 0, 500)
    latent = np.asarray(prior.to_latent(resolved, jnp.asarray(z_img)))
    np.testing.assert_allclose(latent.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(latent.std(0), 1, atol=1e-5)
    assert resolved == input_pipeline.resolve(dataclasses.replace(mine, model=resolved)).model
    with pytest.raises(UserError, match="dimension 2 of z_img is the same in all 4 training"):
        prior.resolve_from_data(mine.model, lambda most: [{"z_img": CONSTANT}])


def test_raw_embeddings_are_distinguished_from_those_of_norm_1(folder):
    mine = experiment("prior", folder)
    model = dataclasses.replace(mine.model, standardise=True)
    stage = dataclasses.replace(mine, model=model).build_stage()
    source = EmbeddingSource(folder / "train")
    training_embeddings._check_norm({"embedding": "raw"}, stage, source)
    training_embeddings._check_norm({}, mine.build_stage(), source)
    with pytest.raises(
        UserError, match=r"this prior takes embeddings as CLIP computes.*embed --raw"
    ):
        training_embeddings._check_norm({}, stage, source)


@pytest.mark.parametrize("shares_ids", [True, False])
def test_tokenizers_must_agree_only_where_a_stage_reads_the_ids_of_clip(folder, shares_ids):
    source = EmbeddingSource(folder / "train")
    source.info = lambda: {"clip_id": "c" * 64, "tokenizer_hash": "a" * 64}
    rejected = pytest.raises(
        UserError, match="computed with tokenizer aaaaaaaaaaaa, the data has bb"
    )
    with rejected if shares_ids else contextlib.nullcontext():
        own = "b" * 64 if shares_ids else None
        training_embeddings._check_origin(source, own, command="`embed`")
