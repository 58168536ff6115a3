"""Karlo's classes in diffusers and transformers, built on the spot with random weights."""

import contextlib

import pytest

from unclip_jax.tokenization import caption_tokenizer
from unclip_jax.weight_files import clip_tokenizer

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")
pipelines = pytest.importorskip("diffusers.pipelines")
unclip = pytest.importorskip("diffusers.pipelines.deprecated.unclip")
scheduling = pytest.importorskip("diffusers.schedulers.scheduling_unclip")

pipelines.unclip = unclip  # which its own files name, and where it lay before 0.38
CAPTIONS = ["a red circle", "a blue square above a green star", "three pink rings"]
SIZES = {
    "tiny": {
        "z": 32,
        "text_depth": 2,
        "prior": {"num_attention_heads": 4, "attention_head_dim": 8, "num_layers": 2},
        "decoder": {"sample_size": 16, "block_out_channels": (16, 32), "layers_per_block": 1},
        "cross": 24,
        "head": 8,
        "super_res": {"sample_size": 64, "block_out_channels": (16, 32), "layers_per_block": 1},
        "groups": 4,
    },
    "medium": {
        "z": 64,
        "text_depth": 4,
        "prior": {"num_attention_heads": 4, "attention_head_dim": 32, "num_layers": 5},
        "decoder": {
            "sample_size": 32,
            "block_out_channels": (32, 64, 96, 128),
            "layers_per_block": 2,
        },
        "cross": 96,
        "head": 16,
        "super_res": {
            "sample_size": 64,
            "block_out_channels": (32, 64, 96, 128),
            "layers_per_block": 1,
        },
        "groups": 32,
    },
}
SCHEDULERS = {
    "prior": {"prediction_type": "sample", "clip_sample_range": 5.0},
    "decoder": {"variance_type": "learned_range"},
    "super_res": {},
}


def perturb(module, scale=0.05):
    """The module with noise on every parameter, so that no gain is 1 and no offset 0."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(scale * torch.randn_like(parameter))
    return module.eval()


def pipeline(sizes, folder):
    """An UnCLIPPipeline of one of SIZES, or the like; its tokenizer is written into `folder`."""
    torch.manual_seed(0)
    words = _words(folder)
    parts = {
        "tokenizer": words,
        "text_encoder": _text_encoder(sizes, words),
        "prior": _prior(sizes),
        "text_proj": unclip.UnCLIPTextProjModel(
            clip_embeddings_dim=sizes["z"],
            time_embed_dim=4 * sizes["decoder"]["block_out_channels"][0],
            cross_attention_dim=sizes["cross"],
        ),
        "decoder": _decoder(sizes),
        "super_res_first": _super_res(sizes),
        "super_res_last": _super_res(sizes),
    }
    parts = {name: part if name == "tokenizer" else perturb(part) for name, part in parts.items()}
    with torch.no_grad():
        parts["prior"].clip_std.copy_(0.5 + torch.rand(1, sizes["z"]))
    for name, settings in SCHEDULERS.items():
        parts[f"{name}_scheduler"] = diffusers.UnCLIPScheduler(**settings)
    pipe = unclip.UnCLIPPipeline(**parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@contextlib.contextmanager
def recorded_noise(seed=1):
    """Records the noise that schedulers draw, in order, by shape, which no two stages share."""
    generator, noises = torch.Generator().manual_seed(seed), {}

    def draw(shape, **unused):
        noise = torch.randn(tuple(shape), generator=generator)
        noises.setdefault(tuple(shape), []).append(noise)
        return noise

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scheduling, "randn_tensor", draw)
        yield noises


def load(folder):
    """A pipeline directory as diffusers loads it."""
    pipe = unclip.UnCLIPPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _words(folder):
    caption_tokenizer.train(CAPTIONS, vocab_size=600).save(folder / "ours")
    clip_tokenizer.write(folder / "ours", folder / "theirs", context=77)
    return transformers.CLIPTokenizer.from_pretrained(folder / "theirs")


def _text_encoder(sizes, words):
    config = transformers.CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=sizes["z"],
        intermediate_size=4 * sizes["z"],
        projection_dim=sizes["z"],
        num_hidden_layers=sizes["text_depth"],
        num_attention_heads=sizes.get("text_heads", 4),
        hidden_act=sizes.get("activation", "quick_gelu"),
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        pad_token_id=0,
    )
    return transformers.CLIPTextModelWithProjection(config)


def _prior(sizes):
    return diffusers.PriorTransformer(**sizes["prior"], embedding_dim=sizes["z"])


def _decoder(sizes):
    levels = len(sizes["decoder"]["block_out_channels"]) - 1
    down = ("ResnetDownsampleBlock2D", *["SimpleCrossAttnDownBlock2D"] * levels)
    up = (*["SimpleCrossAttnUpBlock2D"] * levels, "ResnetUpsampleBlock2D")
    return diffusers.UNet2DConditionModel(
        **sizes["decoder"],
        in_channels=3,
        out_channels=6,
        down_block_types=down,
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        up_block_types=up,
        cross_attention_dim=sizes["cross"],
        attention_head_dim=sizes["head"],
        class_embed_type="identity",
        resnet_time_scale_shift="scale_shift",
        norm_num_groups=sizes["groups"],
    )


def _super_res(sizes):
    levels = len(sizes["super_res"]["block_out_channels"])
    return diffusers.UNet2DModel(
        **sizes["super_res"],
        in_channels=6,
        out_channels=3,
        down_block_types=("ResnetDownsampleBlock2D",) * levels,
        up_block_types=("ResnetUpsampleBlock2D",) * levels,
        add_attention=False,
        norm_num_groups=sizes["groups"],
    )
