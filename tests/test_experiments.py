"""Every experiment in every size parses, builds, and documents what a lab note should."""

import ast
import pathlib

import flax.linen as nn
import jax
import pytest

from unclip_jax.core import batch as batches
from unclip_jax.core import trees
from unclip_jax.core.checks import UserError
from unclip_jax.diffusion import respace
from unclip_jax.experiment import files
from unclip_jax.experiment.config import from_config

ROOT = pathlib.Path(__file__).parents[1]
NOTES = sorted((ROOT / "experiments").glob("*.py"))
FROM_EXPORTS = ("finetune", "distill")  # whose model is that of an export
FILES = [path for path in NOTES if path.stem not in FROM_EXPORTS]
IMAGES = [path for path in FILES if path.stem != "embedding_prior"]
SIZES = ("paper", "shapes", "emoji", "tiny")
EXPORTED = ("clip", "prior", "decoder", "upsampler_256")  # what diffusers has classes for
CASES = [(path.stem, size) for path in IMAGES for size in SIZES]
CASES.remove(("classifier", "emoji"))  # whose captions name no classes
PAIRED = ("large", "small", "tiny", "autoregressive", "mlp", "ridge")
CASES += [("embedding_prior", size) for size in PAIRED]
CASES += [(name, size) for name in EXPORTED for size in ("portraits", "karlo")]


def config(name, size):
    return files.get_config(f"{name}:{size}")


@pytest.mark.parametrize(("name", "size"), CASES)
def test_an_experiment_builds_and_its_loss_traces_to_a_scalar(name, size):
    experiment = from_config(config(name, size))
    assert (experiment.name, experiment.size) == (name, size)
    stage = experiment.build_stage()
    params = nn.meta.unbox(jax.eval_shape(stage.init, jax.random.key(0)))
    assert trees.count(params) > 0
    loss, metrics = jax.eval_shape(
        stage.loss, params, batches.abstract(stage.batch_spec, 4), jax.random.key(0)
    )
    assert loss.shape == () and loss.dtype == "float32"
    assert "loss" in metrics


@pytest.mark.parametrize("path", NOTES, ids=lambda p: p.stem)
def test_an_experiment_file_is_a_lab_note(path):
    note = ast.get_docstring(ast.parse(path.read_text()))
    for line in ("Paper:", "Run:", "Cost:", "Expect:", "Needs:"):
        assert line in note


@pytest.mark.parametrize("name", [path.stem for path in IMAGES])
def test_an_unknown_size_is_rejected_with_the_known_ones(name):
    with pytest.raises(UserError, match=f"unknown size of experiments/{name}.py 'shape'.*shapes"):
        config(name, "shape")


def test_a_misspelt_key_is_rejected_with_a_suggestion():
    mistaken = config("prior", "tiny").to_dict()
    mistaken["optim"]["learning_rat"] = 1.0
    with pytest.raises(UserError, match="config.optim has no key 'learning_rat'. Did you mean"):
        from_config(mistaken)


def test_a_prior_without_embeddings_is_asked_to_embed():
    mistaken = config("prior", "tiny").to_dict()
    mistaken["data"]["embeddings"] = ""
    with pytest.raises(UserError, match="config.data.embeddings is empty.*unclip_jax.embed"):
        from_config(mistaken)


def test_captions_are_taken_away_only_where_clip_tells_them():
    mistaken = config("prior", "tiny").to_dict()
    mistaken["data"]["empty_captions"] = 0.1
    with pytest.raises(UserError, match="empty_captions is 0.1, but this prior does not read CLIP"):
        from_config(mistaken)


def test_components_that_no_embedding_has_are_rejected():
    mistaken = config("prior_ar", "tiny").to_dict()
    mistaken["model"]["model"]["codec"]["components"] = 33
    with pytest.raises(UserError, match=r"components is 33, but CLIP embeddings have 32 dim"):
        from_config(mistaken)


@pytest.mark.parametrize("name", ["tokenizer", "text_features"])
def test_settings_that_take_no_url(name):
    mistaken = config("prior", "tiny").to_dict()
    mistaken["data"] |= {"path": "gs://bucket/data", name: "gs://bucket/x"}
    with pytest.raises(
        UserError, match=rf"config.data.{name} is 'gs://bucket/x'; expected a local"
    ):
        from_config(mistaken)


def test_replicas_of_sam_exclude_microbatches():
    mistaken = config("clip", "tiny").to_dict()
    mistaken["train"]["accumulate"] = 2
    assert from_config(mistaken).train.accumulate == 2  # they share one contrastive loss
    mistaken["optim"] |= {"sam": 0.1, "sam_batch": 4}
    with pytest.raises(UserError, match="accumulate is 2, but the replicas of .*sam_batch"):
        from_config(mistaken)


def test_images_are_loaded_at_the_size_the_model_takes():
    mistaken = config("decoder", "tiny").to_dict()
    mistaken["data"]["load_size"] = 24
    with pytest.raises(UserError, match="load_size is 24; the model takes 16-pixel images"):
        from_config(mistaken)


def test_identity_ignores_what_may_change_on_resume():
    one, other = config("prior", "tiny"), config("prior", "tiny")
    other.train.steps = 7
    other.mesh.fsdp = 2
    other.model.sampling.steps = "7"
    assert from_config(one).identity() == from_config(other).identity()
    other.optim.learning_rate = 0.5
    assert from_config(one).identity() != from_config(other).identity()


def test_settings_that_earlier_versions_lacked_are_no_part_of_their_runs():
    unet = from_config(config("decoder", "tiny")).identity()["model"]["model"]["unet"]
    assert "depth" in unet and not {"topology", "activation", "residual_scale"} & unet.keys()
    facts = from_config(config("upsampler_256", "tiny")).identity()["model"]
    assert "drop_text" not in facts and "text" not in facts["model"]
    imagen = from_config(config("imagen_sr256", "tiny")).identity()["model"]
    assert imagen["drop_text"] == 0.1 and imagen["model"]["unet"]["topology"] == "efficient"


def test_stages_that_read_a_text_encoder_name_it():
    mistaken = config("imagen_base", "tiny").to_dict()
    mistaken["data"]["text_encoder"] = ""
    with pytest.raises(UserError, match="data.text_encoder is empty, but this text_base reads the"):
        from_config(mistaken)


def test_stored_features_end_with_the_caption():
    """A model that sees all slots, as DeepFloyd IF's stages do, would read zeros behind it."""
    for name in ("imagen_base", "imagen_sr256"):
        mistaken = config(name, "tiny").to_dict()
        mistaken["data"]["text_features"] = "runs/features"
        from_config(mistaken)
        mistaken["model"]["model"]["text"]["padding"] = "seen"
        with pytest.raises(UserError, match="text_features is 'runs/features'.* Leave text_featur"):
            from_config(mistaken)


def test_low_res_images_are_corrupted_in_one_way():
    mistaken = config("upsampler_256", "tiny").to_dict()
    mistaken["data"]["bsr"] = 1.0
    with pytest.raises(UserError, match="data.blur is 0.25 and config.data.bsr is 1.0; .* to 0"):
        from_config(mistaken)
    mistaken["data"] |= {"blur": 0.0, "bsr": 1.5}
    with pytest.raises(UserError, match="config.data.bsr is 1.5; it must lie in"):
        from_config(mistaken)


@pytest.mark.parametrize(
    ("name", "steps", "crop", "low_res", "schedule", "corruption"),
    [
        ("upsampler_256", 27, 64, 64, "cosine", (0.5, 0.0)),
        ("upsampler_1024", 15, 256, 256, "linear", (0.0, 1.0)),
    ],
)
def test_the_upsamplers_are_trained_and_sampled_as_in_table_3(
    name, steps, crop, low_res, schedule, corruption
):
    experiment = from_config(config(name, "paper"))
    model = experiment.model
    grid = respace.timesteps(model.sampling.steps, num_timesteps=1000)
    assert (len(grid), model.sampling.sampler, model.sampling.eta) == (steps, "ddim", 0.0)
    assert (model.crop, model.crop * 4) == (crop, model.model.unet.image_size)
    assert model.low_res_size == low_res
    assert model.diffusion.schedule == schedule and model.diffusion.target == "eps"
    assert (experiment.data.blur, experiment.data.bsr) == corruption


@pytest.mark.parametrize(("sets", "folders"), [(1, 0), (2, 1), (0, 1)])
def test_every_data_set_has_its_embeddings(sets, folders):
    mistaken = config("prior", "tiny").to_dict()
    mistaken["data"]["mixture"] = ("elsewhere",) * sets
    mistaken["data"]["mixture_embeddings"] = ("z",) * folders
    match = f"mixture names {sets} data sets, and config.data.mixture_embeddings {folders} folders"
    with pytest.raises(UserError, match=match):
        from_config(mistaken)
    mistaken["data"]["mixture_embeddings"] = ("z",) * sets
    assert len(from_config(mistaken).data.mixture) == sets


def test_clip_is_trained_as_in_both_papers():
    """unCLIP, section 3 and appendix C; Radford et al. 2021, section 2.5 and tables 18 to 20."""
    run = from_config(config("clip", "paper"))
    net, optim = run.model.model, run.optim
    assert (net.image_size, net.patch_size, net.image_width, net.image_depth) == (256, 16, 1280, 32)
    assert (net.text_width, net.text_depth, net.embed_dim, net.context) == (1024, 24, 1024, 77)
    assert (optim.name, optim.learning_rate, optim.schedule, optim.warmup_steps) == (
        *("adamw", 3e-4, "cosine"),
        2000,
    )
    assert (optim.b1, optim.b2, optim.eps, optim.weight_decay) == (0.9, 0.98, 1e-6, 0.2)
    assert (optim.sam, optim.sam_batch, run.train.batch_size) == (0.1, 64, 32_768)
    assert len((run.data.path, *run.data.mixture)) == 2


@pytest.mark.parametrize("size", ["shapes", "emoji", "tiny"])
def test_glide_and_the_decoder_differ_in_the_condition_alone(size):
    glide, decoder = (config(name, size).to_dict() for name in ("glide", "decoder"))
    own = {"drop_text": glide["model"].pop("drop_text"), "name": glide.pop("name")}
    assert own == {"drop_text": 0.2, "name": "glide"}  # section 4.2 of GLIDE
    assert glide["model"]["model"].pop("reads_z") is False
    for name in ("drop_z", "drop_text", "condition"):
        decoder["model"].pop(name)
    decoder.pop("name")
    assert glide["data"].pop("embeddings") == "" != decoder["data"].pop("embeddings")
    assert glide == decoder
