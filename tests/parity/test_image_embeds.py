"""Embeddings of a prior as `image_embeds` of diffusers' pipelines, with random weights."""

import numpy as np
import pytest

from tests.parity.originals import diffusers, perturb, torch, transformers
from unclip_jax.inference.embedding_files import write_embeddings

safetensors = pytest.importorskip("safetensors.torch")

pytestmark = pytest.mark.filterwarnings("ignore")
ROWS, Z, SIDE = 2, 12, 8
SAMPLES = np.random.default_rng(0).normal(0.1, 1.5, (ROWS, 1, Z)).astype(np.float32)
BLOCKS = {
    "sample_size": SIDE,
    "in_channels": 4,
    "layers_per_block": 1,
    "block_out_channels": (8, 16),
    "norm_num_groups": 4,
    "cross_attention_dim": 16,
    "attention_head_dim": 4,
}


@pytest.fixture
def embeds(tmp_path):
    """The tensor of a file that `write_embeddings` wrote."""
    write_embeddings(SAMPLES, tmp_path / "z.safetensors")
    return safetensors.load_file(tmp_path / "z.safetensors")["image_embeds"]


@pytest.fixture(scope="module")
def stable():
    """A tiny `StableUnCLIPImg2ImgPipeline`."""
    torch.manual_seed(0)
    vision = transformers.CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=SIDE,
        patch_size=4,
        projection_dim=Z,
    )
    unet = diffusers.UNet2DConditionModel(
        **BLOCKS,
        out_channels=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        class_embed_type="projection",
        projection_class_embeddings_input_dim=2 * Z,
    )
    vae = diffusers.AutoencoderKL(
        latent_channels=4, block_out_channels=(8,), norm_num_groups=4, sample_size=SIDE
    )
    parts = {
        "image_encoder": transformers.CLIPVisionModelWithProjection(vision),
        "image_normalizer": diffusers.pipelines.stable_diffusion.StableUnCLIPImageNormalizer(Z),
        "unet": unet,
        "vae": vae,
    }
    parts = {name: perturb(part) for name, part in parts.items()}
    with torch.no_grad():
        parts["image_normalizer"].std.abs_().add_(0.5)
    pipe = diffusers.StableUnCLIPImg2ImgPipeline(
        **parts,
        feature_extractor=None,
        image_noising_scheduler=diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2"),
        tokenizer=None,
        text_encoder=None,
        scheduler=diffusers.DDIMScheduler(),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def run_stable(pipe, **options):
    """Images, and the class labels that the U-Net received."""
    labels = []
    hook = pipe.unet.register_forward_pre_hook(
        lambda _, __, inputs: labels.append(inputs["class_labels"]), with_kwargs=True
    )
    try:
        images = pipe(
            prompt_embeds=torch.ones(ROWS, 3, 16),
            guidance_scale=1.0,
            num_inference_steps=2,
            height=SIDE,
            width=SIDE,
            output_type="np",
            generator=torch.Generator().manual_seed(0),
            **options,
        ).images
    finally:
        hook.remove()
    return images, labels[0].numpy()


@pytest.mark.parametrize("level", [0, 300])
def test_stable_unclip_standardises_noises_and_scales_back(stable, embeds, level):
    images, labels = run_stable(stable, image_embeds=embeds, noise_level=level)
    assert images.shape == (ROWS, SIDE, SIDE, 3) and images.std() > 0
    eps = torch.randn(ROWS, Z, generator=torch.Generator().manual_seed(0)).numpy()
    normalizer = stable.image_normalizer
    mean, std = normalizer.mean.detach().numpy(), normalizer.std.detach().numpy()
    alpha_bar = stable.image_noising_scheduler.alphas_cumprod[level].item()
    standardised = (SAMPLES[:, 0] - mean) / std
    noised = np.sqrt(alpha_bar) * standardised + np.sqrt(1 - alpha_bar) * eps
    np.testing.assert_allclose(labels[:, :Z], noised * std + mean, rtol=1e-4, atol=1e-5)
    frequencies = level * np.exp(-np.log(10000) * np.arange(Z // 2) / (Z // 2))
    waves = np.concatenate([np.cos(frequencies), np.sin(frequencies)])
    np.testing.assert_allclose(labels[:, Z:], np.stack([waves] * ROWS), rtol=1e-4, atol=1e-4)


def test_stable_unclip_reads_embeddings_as_clip_computes_them(stable):
    """An image has the same result as the output of its encoder, whose norm is not 1."""
    pixels = torch.randn(ROWS, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        z = stable.image_encoder(pixels).image_embeds
    assert (z.norm(dim=1) - 1).abs().min() > 0.1
    one, _ = run_stable(stable, image=pixels)
    other, _ = run_stable(stable, image_embeds=z)
    np.testing.assert_allclose(one, other, atol=1e-6)
    unit, _ = run_stable(stable, image_embeds=z / z.norm(dim=1, keepdim=True))
    assert np.abs(one - unit).max() > 1e-3


def test_kandinsky_reads_embeddings_as_they_are(embeds):
    torch.manual_seed(0)
    unet = diffusers.UNet2DConditionModel(
        **{**BLOCKS, "cross_attention_dim": 16},
        out_channels=8,
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        addition_embed_type="image",
        encoder_hid_dim_type="image_proj",
        encoder_hid_dim=Z,
        resnet_time_scale_shift="scale_shift",
        class_embed_type=None,
    )
    movq = diffusers.VQModel(
        latent_channels=4,
        num_vq_embeddings=8,
        block_out_channels=(8,),
        norm_num_groups=4,
        vq_embed_dim=4,
    )
    pipe = diffusers.KandinskyV22Pipeline(
        unet=perturb(unet), scheduler=diffusers.DDIMScheduler(clip_sample=False), movq=perturb(movq)
    )
    pipe.set_progress_bar_config(disable=True)
    embeddings = []
    unet.register_forward_pre_hook(
        lambda _, __, inputs: embeddings.append(inputs["added_cond_kwargs"]["image_embeds"]),
        with_kwargs=True,
    )
    negative = torch.zeros_like(embeds)
    options = {"num_inference_steps": 2, "height": 16, "width": 16, "output_type": "np"}
    images = pipe(image_embeds=embeds, negative_image_embeds=negative, **options).images
    assert images.shape[0] == ROWS and images.std() > 0
    np.testing.assert_array_equal(embeddings[0], torch.cat([negative, embeds]))
    with pytest.raises(TypeError, match="negative_image_embeds"):
        pipe(image_embeds=embeds, **options)
