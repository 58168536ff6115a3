"""The analytic command on a prior that predicts zero, for which every number has a closed form."""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import cascades
from tests.stages import tiny
from unclip_jax import analytic, prepare
from unclip_jax.core import rng
from unclip_jax.core.checks import UserError
from unclip_jax.data import sources
from unclip_jax.data.embedding_writer import EmbeddingWriter
from unclip_jax.experiment import analytic_variance, loading
from unclip_jax.handoff import export
from unclip_jax.handoff.manifest import Manifest
from unclip_jax.inference import load
from unclip_jax.stages import prior
from unclip_jax.stages.distillation import DistillConfig

ROOT = pathlib.Path(__file__).parents[2]
CLIP = "c" * 64


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Prepared data, random unit embeddings of it, and the export of a prior that is all zeros."""
    folder = tmp_path_factory.mktemp("run")
    words = cascades.tokenizer()
    words.save(folder / "tokenizer")
    prepare.main(
        ["shapes:train=40,validation=10", f"--out={folder}/data", f"--tokenizer={folder}/tokenizer"]
    )
    stage = tiny.experiment("prior").build_stage()
    draws = np.random.default_rng(0)
    for split in ("train", "validation"):
        source = sources.open_source(folder / "data", split=split)
        info = {"clip_id": CLIP, "tokenizer_hash": words.hash, "data": split}
        writer = EmbeddingWriter(folder / "embeddings" / split, info=info)
        records = [source[i] for i in range(len(source))]
        keys, captions = ([record[name] for record in records] for name in ("key", "caption"))
        z_img, z_txt = draws.normal(size=(2, len(records), 32)).astype(np.float32)
        writer.add(keys, captions, z_img=z_img, z_txt=z_txt)
        writer.finish()
    card = Manifest(
        stage="prior",
        size="tiny",
        step=0,
        clip_id=CLIP,
        tokenizer_hash=words.hash,
        **stage.describe,
    )
    export.write_export(
        folder / "prior" / "export",
        params=jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), tiny.abstract(stage)),
        manifest=card,
        tokenizer_dir=folder / "tokenizer",
    )
    return folder


def arguments(place, *more):
    config = f"--config={ROOT}/experiments/prior.py:tiny"
    data = [f"--config.data.path={place}/data", "--config.train.batch_size=32"]
    embeddings = f"--config.data.embeddings={place}/embeddings"
    return [config, f"--workdir={place}/prior", *data, embeddings, *more]


def test_the_prior_is_traced_on_the_mesh(place, monkeypatch):
    """Kernels are divided over the devices of the mesh that a function is traced on."""
    meshes, power = [], prior.eps_power

    def record(*args, **options):
        meshes.append(jax.sharding.get_abstract_mesh())
        return power(*args, **options)

    monkeypatch.setattr(prior, "eps_power", record)
    analytic.main(arguments(place, "--examples=32", "--steps=2"))
    assert meshes and all(mesh.axis_names == ("data", "fsdp", "tensor") for mesh in meshes)


def test_the_table_of_a_prior_that_says_nothing_is_the_closed_form(place, capsys):
    analytic.main(arguments(place, "--examples=500"))
    assert "8 steps, 512 examples" in capsys.readouterr().out
    cfg, _, _ = load.load_prior(place / "prior" / "export")
    table = load.load_variance_table(place / "prior" / "export")
    assert table is not None and table.origin == cfg.origin
    assert len(table.timesteps) == 8 and table.timesteps[-1] == 999
    # x_0 = 0, so eps is x_t / noise: its power is 1 plus that of the data behind the noise
    alpha_bar = cfg.diffusion.chain().alpha_bar[list(table.timesteps)]
    power = 1 + alpha_bar / (1 - alpha_bar) * cfg.scale**2 / cfg.model.embed_dim
    np.testing.assert_allclose(table.eps_power, power, rtol=4 * np.sqrt(4 / (512 * 32)))


def test_a_prior_worse_than_saying_nothing_is_drawn_from_with_the_small_variance(place):
    # eps^2 above 1 would mean a negative variance of x_0; clipped to zero, that is beta_tilde
    analytic.main(arguments(place, "--examples=64"))
    cfg, params, _ = load.load_prior(place / "prior" / "export")
    table = load.load_variance_table(place / "prior" / "export")
    z = jnp.ones((2, 32))
    text = {"tokens": jnp.zeros((2, 24), int), "token_mask": jnp.ones((2, 24), bool), "z_txt": z}
    keys = rng.per_example(jax.random.key(0), jnp.arange(2))

    def sample(variance):
        sampling = dataclasses.replace(cfg.sampling, variance=variance)
        options = {"keys": keys, "sampling": sampling, "table": table}
        return prior.sample_latent(cfg, params, batch=text, **options)

    np.testing.assert_allclose(sample("table"), sample("small"), atol=1e-5)


def test_other_strides_are_measured_on_request(place):
    analytic.main(arguments(place, "--examples=32", "--steps=ddim5"))
    table = load.load_variance_table(place / "prior" / "export")
    assert table is not None and table.timesteps == (0, 200, 400, 600, 800)


def test_embeddings_of_another_clip_are_rejected(place, tmp_path):
    source = sources.open_source(place / "data", split="train")
    writer = EmbeddingWriter(tmp_path / "train", info={"clip_id": "d" * 64})
    rows = np.ones((40, 32), np.float32)
    writer.add([source[i]["key"] for i in range(40)], [""] * 40, z_img=rows, z_txt=rows)
    writer.finish()
    with pytest.raises(UserError, match=f"embeddings of CLIP {'c' * 12}; .* those of {'d' * 12}"):
        analytic.main(arguments(place, f"--config.data.embeddings={tmp_path}"))


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--examples=0", "--examples is 0; it must be greater than 0"),
        ("--exampels=5", "unknown argument '--exampels=5'; overrides begin with --config."),
        ("--workdir=/nowhere", "/nowhere/export is not a finished export"),
    ],
)
def test_mistakes_are_one_line(place, argument, message):
    with pytest.raises(UserError, match=message):
        analytic.main(arguments(place, argument))


def test_training_measures_the_same_on_all_its_devices(place, monkeypatch):
    monkeypatch.setattr(analytic_variance, "EXAMPLES", 64)
    analytic.main(arguments(place, "--examples=64"))  # on one device
    alone = load.load_variance_table(place / "prior" / "export")
    data = [a for a in arguments(place) if a.startswith("--config.")]
    table = "--config.model.sampling.variance=table"
    config = f"{ROOT}/experiments/prior.py:tiny"
    experiment = loading.read(config, overrides=[*data, table])
    _, params, _ = load.load_prior(place / "prior" / "export")
    (place / "prior" / "export" / "variance.json").unlink()
    params = jax.tree.map(np.asarray, params)
    analytic_variance.after_training(experiment, params, workdir=place / "prior")
    together = load.load_variance_table(place / "prior" / "export")
    assert alone and together and together.timesteps == alone.timesteps
    np.testing.assert_allclose(together.eps_power, alone.eps_power, rtol=1e-5)


def test_training_measures_it_only_for_a_prior_that_samples_with_it(place):
    experiment = tiny.experiment("prior")
    analytic_variance.after_training(experiment, {}, workdir=place / "none")  # samples with "small"
    analytic_variance.after_training(tiny.experiment("decoder"), {}, workdir=place / "none")
    sampling = dataclasses.replace(experiment.model.sampling, variance="table")
    teacher = dataclasses.replace(experiment.model, sampling=sampling)
    student = dataclasses.replace(experiment, model=teacher, distill=DistillConfig())
    analytic_variance.after_training(student, {}, workdir=place / "none")
    assert not (place / "none").exists()
