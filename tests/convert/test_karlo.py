"""Karlo's networks against recordings of diffusers and transformers, from the same files."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.convert import walks
from unclip_jax.backbones.unet import UNet
from unclip_jax.conditioning import captions
from unclip_jax.convert import assembly, karlo, original, prior_tensors
from unclip_jax.core import config as typed
from unclip_jax.core.checks import UserError
from unclip_jax.models.decoder import Decoder
from unclip_jax.models.prior import Prior
from unclip_jax.models.upsampler import Upsampler
from unclip_jax.stages import prior
from unclip_jax.stages.registry import stage_entry
from unclip_jax.weight_files import tensor_source

EXACT = jax.default_matmul_precision("highest")


class Loaded:
    """One stage: its typed config and parameters."""

    def __init__(self, part):
        kind = stage_entry(part.stage).config
        self.cfg = typed.build(kind, typed.as_dict(part.config), where=part.name)
        self.params = jax.tree.map(jnp.asarray, part.params())


@functools.cache
def stages(folder):
    folders = karlo.components([folder])
    expected = [s for s in karlo.STAGES if s != "upsampler_256" or "medium" not in folder.name]
    return {part.name: Loaded(part) for part in karlo.read_stages(folders, stages=expected)}


def run(module, params, *inputs, **options):
    with EXACT:
        return jax.jit(lambda p: module.apply({"params": p}, *inputs, **options))(params)


def prior_forward(loaded, case, **changes):
    inputs = {"x": case.argument("x"), "t": case.argument("t"), "mask": case.argument("mask")}
    inputs |= {"emb": case.argument("text_emb"), "enc": case.argument("text_enc"), **changes}
    return run(
        Prior(loaded.cfg.model),
        loaded.params,
        inputs["x"],
        inputs["t"],
        tokens=jnp.zeros(inputs["mask"].shape, jnp.int32),
        token_mask=inputs["mask"],
        z_txt=inputs["emb"],
        text_seq=inputs["enc"],
    )


@functools.cache
def kandinsky(folder):
    """Kandinsky's prior, whose files come without the pipeline around them."""
    folder, where = folder / "prior", "config.json"
    cfg = prior_tensors.config(tensor_source.read_json(folder / where), vocab_size=650, where=where)
    tensors = tensor_source.open_tensors(folder)
    statistics = tuple(tensors.read(name) for name in prior_tensors.STATISTICS)
    rest = tensors.without(prior_tensors.STATISTICS)
    scheduler = {"prediction_type": "sample", "clip_sample_range": 5.0}
    return Loaded(assembly.prior_stage(cfg, rest, statistics=statistics, scheduler=scheduler))


def prior_stage(folder):
    return kandinsky(folder) if "kandinsky" in folder.name else stages(folder)["prior"]


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("prior_forward", "karlo_tiny"),
        ("kandinsky_prior_forward", "kandinsky_tiny_prior"),
        pytest.param("medium_prior_forward", "medium", marks=pytest.mark.nightly),
    ],
)
def test_prior_agrees_with_diffusers(recordings, name, model):
    case = recordings.case(name)
    folder = {"medium": "karlo_medium_fp16"}.get(model, model)
    loaded = prior_stage(recordings.model(folder))
    out = prior_forward(loaded, case)
    case.check("pred", out)
    case.check("post_processed", prior.from_latent(loaded.cfg, out))
    everything = jnp.ones_like(case.argument("mask"))
    case.check("pred_all_true_mask", prior_forward(loaded, case, mask=everything))
    half = jnp.full_like(case.argument("t"), 500)
    case.check("pred_scalar_t500", prior_forward(loaded, case, t=half))


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("prior_sample25_cfg4", "karlo_tiny"),
        ("prior_sample7_nocfg", "karlo_tiny"),
        ("kandinsky_prior_sample5_cfg4", "kandinsky_tiny_prior"),
    ],
)
def test_prior_chain_agrees_with_diffusers(recordings, name, model):
    case = recordings.case(name)
    loaded = prior_stage(recordings.model(model))
    scale, count = case.config["guidance_scale"], case.argument("x_T").shape[0]
    text = captions.ClipText(
        case.argument("text_emb"), case.argument("text_enc"), case.argument("mask")
    )
    batch = jax.tree.map(lambda x: x[-count:], text)
    sampling = dataclasses.replace(
        loaded.cfg.sampling, steps=str(case.config["steps"]), guidance_scale=scale
    )
    condition = {"tokens": jnp.zeros(batch.mask.shape, jnp.int32), "token_mask": batch.mask}
    condition |= {"z_txt": batch.z_txt, "text_seq": batch.sequence}
    empty = jax.tree.map(lambda x: x[:count], text)  # of one row per caption here
    with EXACT:
        denoise = prior.denoiser(
            loaded.cfg, loaded.params, batch=condition, scale=scale, empty=empty
        )
        chain = walks.chain(loaded.cfg.diffusion, sampling)
        path = walks.walk(denoise, case.argument("x_T"), case.argument("noises"), chain)
        case.check("latents_per_step", path)
        case.check("image_embedding", prior.from_latent(loaded.cfg, path[-1]))
        exact = dataclasses.replace(loaded.cfg.diffusion, tables="float64")
        cfg = dataclasses.replace(loaded.cfg, diffusion=exact)
        denoise = prior.denoiser(cfg, loaded.params, batch=condition, scale=scale, empty=empty)
        chain = walks.chain(exact, sampling)
        path = walks.walk(denoise, case.argument("x_T"), case.argument("noises"), chain)
        case.check("image_embedding_float64_tables", prior.from_latent(cfg, path[-1]))


@pytest.mark.parametrize(("name", "folder"), [("text_proj", "karlo_tiny")])
def test_text_projection_agrees_with_diffusers(recordings, name, folder):
    case = recordings.case(name)
    loaded = stages(recordings.model(folder))["decoder"]
    z_img, z_txt, seq = (
        case.argument(n) for n in ("image_embeddings", "prompt_embeds", "text_hidden")
    )
    arguments = {}

    def watch(self, x, emb, *, context, context_mask, deterministic):
        arguments.update(tokens=context, emb=emb, mask=context_mask)
        return x

    count = len(z_img)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(UNet, "__call__", watch)
        for suffix, z, keep, rows in (
            ("_cfg", jnp.concatenate([z_img, z_img]), jnp.arange(2 * count) >= count, slice(None)),
            ("", z_img, None, slice(count, None)),
        ):
            args = {"z_img": z, "keep_z": keep, "text_seq": seq[rows], "z_txt": z_txt[rows]}
            tokens = jnp.zeros(seq[rows].shape[:2], jnp.int32)
            size = loaded.cfg.model.unet.image_size
            with EXACT:
                Decoder(loaded.cfg.model).apply(
                    {"params": loaded.params},
                    jnp.zeros((len(tokens), size, size, 3)),
                    jnp.zeros(len(tokens), jnp.int32),
                    tokens=tokens,
                    token_mask=tokens == 0,
                    **args,
                )
                time = walks.time_embedding(loaded, jnp.zeros(len(tokens), jnp.int32))
            case.check(f"tokens{suffix}", arguments["tokens"])
            case.check(f"additive_time{suffix}", arguments["emb"] - time)


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("decoder_forward", "karlo_tiny"),
        pytest.param("medium_decoder_forward", "karlo_medium_fp16", marks=pytest.mark.nightly),
    ],
)
def test_decoder_unet_agrees_with_diffusers(recordings, name, folder):
    case = recordings.case(name)
    loaded = stages(recordings.model(folder))["decoder"]
    emb = walks.time_embedding(loaded, case.argument("t")) + case.argument("additive_time")
    inputs = {"context": case.argument("tokens"), "context_mask": case.argument("mask")}
    network = UNet(loaded.cfg.model.unet)
    got = run(network, loaded.params["unet"], case.images("x"), emb, **inputs)
    case.check("pred", got, image=True)


def test_super_resolution_agrees_with_diffusers(recordings):
    case = recordings.case("super_res")
    loaded = stages(recordings.model("karlo_tiny"))["upsampler_256"]
    low_res, x_T = case.images("low_res"), case.images("x_T")
    upsampler = Upsampler(loaded.cfg.model)
    t = case.argument("t_forward")
    case.check(
        "eps_first",
        run(upsampler, loaded.params["first"], x_T, t, low_res=low_res),
        image=True,
    )
    zero = jnp.zeros_like(t)
    case.check(
        "eps_last_t0",
        run(upsampler, loaded.params["last"], x_T, zero, low_res=low_res),
        image=True,
    )


def test_enlarging_agrees_with_the_antialiased_bicubic_of_torch(recordings):
    case = recordings.case("bicubic_antialias")
    for i in range(4):
        expected = case.arrays[f"out_y{i}"].shape
        x = case.images(f"x{i}")
        got = jax.image.resize(x, (*expected[:1], *expected[2:], 3), "cubic", antialias=True)
        case.check(f"y{i}", got, image=True)


def test_unknown_pipelines_are_rejected_by_name(tmp_path):
    (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    with pytest.raises(UserError, match="is a StableDiffusionPipeline; supported pipelines are"):
        karlo.components([tmp_path])


def test_a_listed_component_that_is_not_there_is_named(recordings):
    folders = karlo.components([recordings.model("karlo_medium_fp16")])
    with pytest.raises(UserError, match="component super_res_first is missing"):
        karlo.read_stages(folders)


def test_statistics_must_fit(recordings):
    part = stages(recordings.model("karlo_tiny"))["prior"]
    nothing = tensor_source.in_memory("here", {})
    with pytest.raises(UserError, match=r"statistics have shapes \(3,\) and \(3,\)"):
        assembly.prior_stage(
            part.cfg.model, nothing, statistics=(np.ones(3), np.ones(3)), scheduler={}
        )


def test_karlos_own_decoder_file_agrees_with_its_own_code(recordings):
    folder = recordings.model("karlo_tiny_original")
    (part,) = original.read_stages(folder, stages=("decoder",), vocab_size=650)
    loaded, case = Loaded(part), recordings.case("orig_decoder_fp16weights")
    emb = walks.time_embedding(loaded, case.argument("t")) + case.argument("additive_time")
    network = UNet(loaded.cfg.model.unet)
    inputs = {"context": case.argument("tokens"), "context_mask": case.argument("mask")}
    got = run(network, loaded.params["unet"], case.images("x"), emb, **inputs)
    case.check("pred", got, image=True)


def test_karlos_own_super_resolution_file_agrees_with_its_own_code(recordings):
    folder = recordings.model("karlo_tiny_original")
    (part,) = original.read_stages(folder, stages=("upsampler_256",), vocab_size=650)
    loaded, case = Loaded(part), recordings.case("orig_super_res_fp16weights")
    for name, t in (("first", 333), ("last", 0)):
        params = loaded.params[name]
        emb = walks.time_embedding(loaded, jnp.array([t]), params=params)
        got = run(UNet(loaded.cfg.model.unet), params["unet"], case.images("x"), emb)
        case.check(f"eps_{name}", got, image=True)


def test_karlos_own_prior_file_gives_the_recorded_forward(recordings):
    pytest.importorskip("torch")
    folder = recordings.model("karlo_tiny_original")
    assert original.is_original(folder)
    (part,) = original.read_stages(folder, stages=("prior",), vocab_size=650)
    case, loaded = recordings.case("prior_forward"), Loaded(part)
    out = prior_forward(loaded, case)
    case.check("pred", out)
    case.check("post_processed", prior.from_latent(loaded.cfg, out))


def test_an_original_folder_that_lacks_a_file_says_which(tmp_path):
    with pytest.raises(UserError, match=r"has no file decoder\*"):
        original.read_stages(tmp_path, stages=("decoder",))
