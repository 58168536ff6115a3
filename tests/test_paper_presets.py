"""The `paper` presets hold every number that the paper states (Ramesh et al. 2022).

Table 3 is in appendix C; `SECTIONS` holds what the text states elsewhere.

The dash of a column is what the paper leaves out: no dropout, no weight decay.
"""

import jax
import pytest

from unclip_jax.experiment import files

ADAM = {"optim.name": "adamw", "optim.b1": 0.9}
TEXT = {"context": 256, "width": 2048, "depth": 24, "heads": 32}
PRIOR = {
    "model.diffusion.num_timesteps": 1000,
    "model.diffusion.schedule": "cosine",
    "model.sampling.steps": "64",
    "model.sampling.variance": "table",  # analytic
    **{f"model.model.{name}": value for name, value in TEXT.items()},
    "optim.weight_decay": 6.0e-2,
    "train.batch_size": 4096,
    "train.steps": 600_000,
    "optim.learning_rate": 1.1e-4,
    "optim.b2": 0.96,
    "optim.eps": 1.0e-6,
    "train.ema_decay": 0.9999,
}
PRIOR_AR = {
    "model.model.codec.components": 319,  # and 1,024 buckets, section 2.2
    "model.model.codec.buckets": 1024,
    "model.model.context": 256,
    **{f"model.model.text_{name}": TEXT[name] for name in ("width", "depth", "heads")},
    "model.model.latent_context": 384,
    "model.model.width": 1664,
    "model.model.depth": 24,
    "model.model.heads": 26,
    "model.drop_text": 0.1,
    "optim.weight_decay": 4.0e-2,
    "train.batch_size": 4096,
    "train.steps": 1_000_000,
    "optim.learning_rate": 1.6e-4,
    "optim.b2": 0.91,
    "optim.eps": 1.0e-10,
    "train.ema_decay": 0.999,
}
DECODER = {
    "model.diffusion.num_timesteps": 1000,
    "model.diffusion.schedule": "cosine",
    "model.sampling.steps": "250",
    "model.sampling.variance": "learned_range",
    "model.diffusion.learned_variance": True,
    "model.model.unet.channels": 512,
    "model.model.unet.depth": 3,
    "model.model.unet.multiples": (1, 2, 3, 4),
    "model.model.unet.head_channels": 64,
    "model.model.unet.attention_at": (32, 16, 8),
    "model.model.context": 256,
    **{f"model.model.text_{name}": TEXT[name] for name in ("width", "depth", "heads")},
    "model.model.unet.dropout": 0.1,
    "optim.weight_decay": 0.0,
    "train.batch_size": 2048,
    "train.steps": 800_000,
    "optim.learning_rate": 1.2e-4,
    "optim.b2": 0.999,
    "optim.eps": 1.0e-8,
    "train.ema_decay": 0.9999,
}
UPSAMPLER_256 = {
    "model.diffusion.num_timesteps": 1000,
    "model.diffusion.schedule": "cosine",
    "model.sampling.steps": "fast27",
    "model.sampling.sampler": "ddim",
    "model.crop": 256 // 4,
    "model.model.unet.channels": 320,
    "model.model.unet.depth": 3,
    "model.model.unet.multiples": (1, 2, 3, 4),
    "model.model.unet.attention_at": (),
    "model.model.unet.dropout": 0.1,
    "optim.weight_decay": 0.0,
    "train.batch_size": 1024,
    "train.steps": 1_000_000,
    "optim.learning_rate": 1.2e-4,
    "optim.b2": 0.999,
    "optim.eps": 1.0e-8,
    "train.ema_decay": 0.9999,
}
UPSAMPLER_1024 = {
    **UPSAMPLER_256,
    "model.diffusion.schedule": "linear",
    "model.sampling.steps": "15",
    "model.crop": 1024 // 4,
    "model.model.unet.channels": 192,
    "model.model.unet.depth": 2,
    "model.model.unet.multiples": (1, 1, 2, 2, 4, 4),
    "model.model.unet.dropout": 0.0,
    "train.batch_size": 512,
    "optim.learning_rate": 1.0e-4,
}
CLIP = {
    "model.model.image_size": 256,  # section 3, ViT-H/16
    "model.model.patch_size": 16,
    "model.model.image_width": 1280,
    "model.model.image_depth": 32,
    "model.model.text_width": 1024,
    "model.model.text_depth": 24,
    "model.model.embed_dim": 1024,  # section 2.2
    "optim.learning_rate": 3e-4,  # appendix C
    "optim.sam": 0.1,
    "optim.sam_batch": 64,
    "model.model.context": 77,  # from here on Radford et al. 2021, sections 2.4 and 2.5, table 18
    "model.model.vocab_size": 49_408,
    "optim.name": "adamw",
    "optim.b1": 0.9,
    "optim.b2": 0.98,
    "optim.eps": 1e-6,
    "optim.weight_decay": 0.2,
    "optim.warmup_steps": 2000,
    "optim.schedule": "cosine",
    "train.batch_size": 32_768,
    "train.steps": 32 * 650_000_000 // 32_768,
}
SECTIONS = {
    "clip": CLIP,
    "prior": {
        "model.drop_text": 0.1,  # section 2.2
        "model.num_candidates": 2,
        "model.diffusion.target": "x_0",
        "model.sampling.sampler": "ancestral",
        "model.sampling.guidance_scale": 1.0,  # section 5.3: guiding the prior hurts
        "model.model.embed_dim": 1024,
    },
    "prior_ar": {
        "model.num_candidates": 1,  # section 2.2: the dot-product token replaces the choice
        "model.sampling.dot_percentile": 50.0,
        "model.sampling.guidance_scale": 1.0,
        "model.sampling.temperature": 1.0,
        "model.model.embed_dim": 1024,
    },
    "decoder": {
        "model.drop_z": 0.1,  # section 2.1
        "model.drop_text": 0.5,
        "model.condition": "z_img",
        "model.model.num_z_tokens": 4,
        "model.model.z_dim": 1024,
        "model.model.unet.image_size": 64,
        "model.model.unet.in_channels": 3,
        "model.model.unet.out_channels": 6,  # eps and the learned variance
        "model.diffusion.target": "eps",  # GLIDE, section 2.2
        "model.sampling.sampler": "ancestral",
        "model.sampling.threshold": "static",  # ADM's code clips x_0
        "model.sampling.guidance_scale": 1.25,  # section 5.3, the best FID
    },
    "upsampler_256": {
        "model.model.factor": 4,  # section 2.1, from here on
        "model.model.unet.image_size": 256,
        "model.diffusion.target": "eps",
        "model.sampling.threshold": "static",
        "data.blur": 0.5,
    },
    "upsampler_1024": {
        "model.model.factor": 4,
        "model.model.unet.image_size": 1024,
        "model.diffusion.target": "eps",
        "model.sampling.sampler": "ddim",
        "model.sampling.threshold": "static",
        "data.blur": 0.0,
        "data.bsr": 1.0,
    },
}
# Where the paper is silent: the numbers of the sources named, and choices of this project. A change
# of one is meant to be seen here.
CHOICES = {
    "optim.warmup_steps": 5000,
    "optim.schedule": "constant",
    "optim.clip_norm": 1.0,
    "mesh.data": -1,  # all devices
    "mesh.fsdp": 1,
    "mesh.tensor": 1,
}
VOCABULARY = {"model.model.vocab_size": 49_408}  # CLIP's tokenizer
SILENT = {
    "clip": {
        "model.model.image_heads": 16,  # ViT-H/16 of open_clip
        "model.model.text_heads": 16,
        "data.load_size": 256,
        "train.ema_decay": 0.9999,
        **{name: CHOICES[name] for name in ("mesh.data", "mesh.fsdp", "mesh.tensor")},
    },
    "prior": {**CHOICES, **VOCABULARY, "data.load_size": 256},
    "prior_ar": {
        **CHOICES,
        **VOCABULARY,
        "data.load_size": 256,
        "model.model.codec.explained_variance": 0.0,
        "model.model.codec.dot_buckets": 1024,
        "model.sampling.top_p": 1.0,
    },
    "decoder": {**CHOICES, **VOCABULARY, "data.load_size": 64},
    "upsampler_256": {
        **CHOICES,
        "data.load_size": 256,
        "model.model.unet.in_channels": 6,  # the noised image and the enlarged low-res image
        "model.model.unet.out_channels": 3,
    },
    "upsampler_1024": {
        **CHOICES,
        "data.load_size": 1024,
        "model.model.unet.in_channels": 6,
        "model.model.unet.out_channels": 3,
    },
    "glide": {  # Nichol et al. 2021: section 4.1 and table 2
        "train.steps": 2_500_000,
        "model.sampling.guidance_scale": 1.5,
    },
}
DALLE = {  # Ramesh et al. 2021, sections 2 and A, B
    "dvae": {
        "model.model.image_size": 256,
        "model.model.quantizer": "gumbel",
        "model.model.code_count": 8192,
        "model.reconstruction": "logit_laplace",
        "model.gumbel.kl_weight": 6.6,
        "model.gumbel.kl_steps": 5000,
        "model.gumbel.temperature_start": 1.0,
        "model.gumbel.temperature": 1 / 16,
        "model.gumbel.temperature_steps": 150_000,
        "optim.name": "adamw",
        "optim.learning_rate": 1e-4,
        "optim.schedule": "cosine",
        "optim.decay_steps": 1_200_000,
        "optim.final_scale": 0.0125,  # to 1.25e-6
        "optim.b1": 0.9,
        "optim.b2": 0.999,
        "optim.eps": 1e-8,
        "optim.weight_decay": 1e-4,
        "train.steps": 3_000_000,
        "train.batch_size": 512,
        "train.ema_decay": 0.999,
        "data.flip": True,  # listing 1
    },
    "dalle": {
        "model.model.width": 3968,  # 62 heads of 64
        "model.model.depth": 64,
        "model.model.heads": 62,
        "model.model.context": 256,
        "model.model.vocab_size": 16_384,
        "model.model.grid": 32,
        "model.model.code_count": 8192,
        "model.model.attention": (),
        "model.model.kernel": 11,
        "model.text_weight": 1 / 8,
        "model.drop_text": 0.0,
        "model.sampling.temperature": 1.0,
        "optim.name": "adamw",
        "optim.learning_rate": 4.5e-4,
        "optim.warmup_steps": 5000,
        "optim.final_scale": 1 / 32,
        "optim.b1": 0.9,
        "optim.b2": 0.96,
        "optim.eps": 1e-8,
        "optim.weight_decay": 4.5e-2,
        "optim.clip_norm": 4.0,
        "train.steps": 430_000,
        "train.batch_size": 1024,
        "train.ema_decay": 0.9996,
        "data.bpe_dropout": 0.1,
    },
}
# Saharia et al. 2022 (Imagen): appendix F and sections 2.5, 4.1, Table 1.
IMAGEN = {
    "model.drop_text": 0.1,
    "model.diffusion.num_timesteps": 1000,
    "model.diffusion.target": "eps",
    "model.sampling.threshold": "dynamic",
    "model.sampling.percentile": 99.5,
    "model.model.text.pooling": "attention",
    "model.model.text.width": 4096,
    "model.model.unet.context_norm": "layer",
    "model.model.unet.dropout": 0.0,
    "optim.learning_rate": 1e-4,
    "optim.warmup_steps": 10_000,
    "optim.schedule": "cosine",
    "optim.weight_decay": 0.0,
    "train.steps": 2_500_000,
    "train.batch_size": 2048,
}
IMAGEN_BASE = {
    **IMAGEN,
    "model.diffusion.schedule": "cosine",
    "model.sampling.guidance_scale": 1.35,
    "model.model.unet.channels": 512,
    "model.model.unet.multiples": (1, 2, 3, 4),
    "model.model.unet.depth": 3,
    "model.model.unet.attention_at": (32, 16, 8),
    "model.model.unet.head_channels": 64,
    "optim.name": "adafactor",
}
IMAGEN_SR = {
    **IMAGEN,
    "model.sampling.guidance_scale": 8.0,
    "model.model.factor": 4,
    "model.model.unet.topology": "efficient",
    "model.model.unet.channels": 128,
    "model.model.unet.attention_width": 2,
    "model.model.unet.residual_scale": 2**-0.5,
    "model.augment.most": 1.0,
    **ADAM,
    "optim.b2": 0.999,
    "optim.eps": 1e-8,
}
SECTIONS |= {
    "imagen_base": IMAGEN_BASE,
    "imagen_sr256": {
        **IMAGEN_SR,
        "model.diffusion.schedule": "cosine",
        "model.crop": 256,
        "model.model.unet.multiples": (1, 2, 4, 8, 8),  # the fifth is ours: 600M parameters
        "model.model.unet.depth": (2, 4, 8, 8, 2),
        "model.model.unet.attention": "joint",
    },
    "imagen_sr1024": {
        **IMAGEN_SR,
        "model.diffusion.schedule": "linear",
        "model.crop": 256,
        "model.model.unet.image_size": 1024,
        "model.model.unet.multiples": (1, 2, 4, 8),
        "model.model.unet.depth": (2, 4, 8, 8),
        "model.model.unet.attention": "cross",
    },
}
SILENT |= {  # numbers of public ports, and choices
    "imagen_base": {
        "model.model.text.context": 128,
        "model.model.text.project": 2048,
        "model.model.text.pool_heads": 64,
        "model.sampling.steps": "256",
        "model.sampling.gamma": 0.0,
        "optim.clip_norm": None,
        "optim.final_scale": 0.0,
        "train.ema_decay": 0.9999,
    },
    "imagen_sr256": {
        "model.model.text.context": 128,
        "model.model.text.project": 1024,
        "model.model.unet.emb_channels": 512,
        "model.augment.level": 0.2,
        "model.sampling.steps": "128",
    },
    "imagen_sr1024": {
        "model.model.text.context": 128,
        "model.model.text.project": 1024,
        "model.sampling.steps": "32",
        "model.model.unet.emb_channels": 512,
    },
}
COLUMNS = {
    "prior": PRIOR,
    "prior_ar": PRIOR_AR,
    "decoder": DECODER,
    "upsampler_256": UPSAMPLER_256,
    "upsampler_1024": UPSAMPLER_1024,
}


def preset(name):
    return files.get_config(f"{name}:paper")


def value_at(config, path):
    for part in path.split("."):
        config = config[part]
    return config


@pytest.mark.parametrize("name", COLUMNS)
def test_the_paper_preset_is_its_column_of_table_3(name):
    config = preset(name)
    for path, value in {**COLUMNS[name], **ADAM}.items():
        assert value_at(config, path) == value, path


@pytest.mark.parametrize("name", DALLE)
def test_the_paper_preset_of_dalle_has_the_numbers_of_its_paper(name):
    config = preset(name)
    for path, value in DALLE[name].items():
        assert value_at(config, path) == value, path
    assert not value_at(config, "data").get("flip") or name == "dvae"  # images hold text


@pytest.mark.parametrize("name", SECTIONS)
def test_the_paper_preset_has_the_numbers_of_the_text(name):
    config = preset(name)
    for path, value in SECTIONS[name].items():
        assert value_at(config, path) == value, path


@pytest.mark.parametrize("name", SILENT)
def test_the_paper_preset_has_the_numbers_of_other_sources_and_of_choice(name):
    config = preset(name)
    for path, value in SILENT[name].items():
        assert value_at(config, path) == value, path


@pytest.mark.parametrize(
    ("name", "count", "paper"),
    [
        ("imagen_base", 2_233e6, 2e9),  # the paper rounds
        ("imagen_sr256", 600e6, 600e6),
        ("imagen_sr1024", 463e6, 400e6),  # of the levels that the paper prints; it says 400M
    ],
)
def test_imagens_u_nets_have_the_parameters_of_their_levels(name, count, paper):
    from unclip_jax.experiment.config import from_config

    stage = from_config(preset(name)).build_stage()
    unet = jax.eval_shape(stage.init, jax.random.key(0))["unet"]
    total = sum(leaf.size for leaf in jax.tree.leaves(unet))
    assert abs(total / count - 1) < 0.01
    assert abs(total / paper - 1) < 0.17


def test_the_classifier_is_trained_on_all_devices():
    mesh = files.get_config("classifier:paper").mesh
    assert (mesh.data, mesh.fsdp, mesh.tensor) == (-1, 1, 1)
