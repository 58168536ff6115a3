"""Stages that read embeddings train on several data sets, each with its own."""

import dataclasses

import numpy as np
import pytest

from tests.stages import tiny
from unclip_jax import prepare
from unclip_jax.core.checks import UserError
from unclip_jax.data import sources
from unclip_jax.data.embedding_writer import EmbeddingWriter
from unclip_jax.experiment import input_pipeline, training_embeddings

SIZES, NORMS, WEIGHTS = (24, 9), (2.0, 4.0), (0.25, 0.75)


def write_embeddings(path, source, *, number, clip="c"):
    """z_img is the number of the set, that of the record, and what makes its norm NORMS[number]."""
    z = np.zeros((len(source), 32), np.float32)
    z[:, 0], z[:, 1] = number, np.arange(len(source)) / 1024
    z[:, 2] = np.sqrt(NORMS[number] ** 2 - (z**2).sum(axis=1))
    writer = EmbeddingWriter(path / "train", info={"clip_id": clip}, dtype="float32")
    rows = [source[i] for i in range(len(source))]
    keys, captions = ([row[name] for row in rows] for name in ("key", "caption"))
    writer.add(keys, captions, z_img=z, z_txt=-z)
    writer.finish()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sets")
    for number, size in enumerate(SIZES):
        place = folder / f"data{number}"
        prepare.main([f"shapes:train={size}", f"--seed={number}", f"--out={place}"])
        source = sources.open_source(str(place), split="train")
        write_embeddings(folder / f"z{number}", source, number=number)
        write_embeddings(folder / "other" / f"z{number}", source, number=number, clip=f"c{number}")
    return folder


def experiment(folder, *, embeddings=None):
    case = tiny.experiment("prior")
    places = embeddings or [folder / "z0", folder / "z1"]
    data = dataclasses.replace(
        case.data,
        path=str(folder / "data0"),
        mixture=(str(folder / "data1"),),
        embeddings=str(places[0]),
        mixture_embeddings=(str(places[1]),),
        weights=WEIGHTS,
        eval_split="",
    )
    train = dataclasses.replace(case.train, batch_size=16)
    return dataclasses.replace(case, data=data, train=train)


def test_every_example_has_the_embedding_of_its_record(folder):
    mine = experiment(folder)
    inputs = input_pipeline.open_inputs(mine, mine.build_stage())
    records = [sources.open_source(str(folder / f"data{n}"), split="train") for n in (0, 1)]
    counts = np.zeros(2, int)
    for _ in range(3):
        batch = next(inputs.train)
        numbers = batch["z_img"][:, 0].astype(int)
        rows = np.rint(batch["z_img"][:, 1] * 1024).astype(int)
        captions = [
            records[n][row]["caption"]
            for n, row in zip(numbers.tolist(), rows.tolist(), strict=True)
        ]
        tokens, _ = inputs.tokenizer.encode(captions, length=batch["tokens"].shape[1])
        np.testing.assert_array_equal(batch["tokens"], tokens)
        np.testing.assert_array_equal(batch["z_txt"], -batch["z_img"])
        counts += np.bincount(numbers, minlength=2)
    assert counts.tolist() == [12, 36]


def test_statistics_have_the_weights_of_training(folder):
    mine = experiment(folder)
    facts = training_embeddings.facts(mine, mine.build_stage(), None)
    assert facts["clip_id"] == "c"
    assert facts["embed_stats"]["count"] == 33
    assert facts["embed_stats"]["mean_norm"] == pytest.approx(0.25 * 2 + 0.75 * 4)


@pytest.mark.parametrize(("most", "counts"), [(10_000, (24, 72)), (40, (10, 30)), (4, (1, 3))])
def test_rows_have_the_shares_of_training(folder, most, counts):
    """Those of the small set come several times."""
    blocks = list(training_embeddings.rows(experiment(folder))(most))
    z = np.concatenate([block["z_img"] for block in blocks])
    assert np.bincount(z[:, 0].astype(int)).tolist() == [*counts]
    assert len(np.unique(z[z[:, 0] == 1, 1])) == min(counts[1], SIZES[1])


def test_sets_of_equal_shares():
    assert training_embeddings.shares((), 4) == [0.25] * 4
    assert training_embeddings.shares((3.0, 1.0), 2) == [0.75, 0.25]


def test_embeddings_of_two_clips_are_rejected(folder):
    places = [folder / "other" / f"z{number}" for number in (0, 1)]
    mine = experiment(folder, embeddings=places)
    with pytest.raises(UserError, match=r"other/z1/train are of c1, those in .*z0/train of c0"):
        input_pipeline.open_inputs(mine, mine.build_stage())


def test_embeddings_of_another_set_are_rejected(folder):
    mine = experiment(folder, embeddings=[folder / "z0", folder / "z0"])
    with pytest.raises(UserError, match="z0/train holds 24 embeddings for 9 records"):
        input_pipeline.open_inputs(mine, mine.build_stage())


def test_missing_embeddings_come_with_the_command_for_their_set(folder):
    mine = experiment(folder, embeddings=[folder / "z0", folder / "none"])
    match = "no embeddings in .*none/train.*--data=.*data1 --out=.*none"
    with pytest.raises(UserError, match=match):
        input_pipeline.open_inputs(mine, mine.build_stage())
