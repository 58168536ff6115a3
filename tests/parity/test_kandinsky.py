"""Priors of Kandinsky 2.1 and 2.2: their pipelines, converted, draw the same embeddings here."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.convert import walks
from tests.convert.test_clip import run
from tests.parity import originals
from tests.parity.drawing import random, relative, theirs
from tests.parity.originals import CAPTIONS, diffusers, perturb, torch, transformers
from unclip_jax.conditioning import captions
from unclip_jax.convert import importing
from unclip_jax.handoff import load as handoff
from unclip_jax.inference import load
from unclip_jax.models.clip import Clip
from unclip_jax.objectives import gaussian
from unclip_jax.stages import prior
from unclip_jax.tokenization import caption_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore")
# class -> width of the embeddings, activation: those of ViT-L/14, and those of LAION's bigG
KINDS = {"KandinskyPriorPipeline": (32, "quick_gelu"), "KandinskyV22PriorPipeline": (48, "gelu")}
STEPS, SCALE, LIMIT = 5, 3.0, 10.0


def pipeline(kind, folder):
    z, activation = KINDS[kind]
    torch.manual_seed(0)
    sizes = {**originals.SIZES["tiny"], "z": z, "activation": activation}
    words = originals._words(folder)
    vision = transformers.CLIPVisionConfig(
        hidden_size=40,
        intermediate_size=160,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=32,
        patch_size=8,
        projection_dim=z,
        hidden_act=activation,
    )
    parts = {
        "prior": originals._prior(sizes),
        "text_encoder": originals._text_encoder(sizes, words),
        "image_encoder": transformers.CLIPVisionModelWithProjection(vision),
    }
    parts = {name: perturb(part) for name, part in parts.items()}
    with torch.no_grad():
        parts["prior"].clip_std.copy_(0.5 + torch.rand(1, z))
    pipe = getattr(diffusers, kind)(
        **parts,
        tokenizer=words,
        scheduler=diffusers.UnCLIPScheduler(prediction_type="sample", clip_sample_range=LIMIT),
        image_processor=transformers.CLIPImageProcessor(
            size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
        ),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize("kind", KINDS)
def test_a_prior_draws_the_same_embeddings(kind, tmp_path):
    pipe = pipeline(kind, tmp_path)
    pipe.save_pretrained(tmp_path / "theirs")
    assert importing.convert([tmp_path / "theirs"], tmp_path / "run") == ["clip", "prior"]
    x_T = random(len(CAPTIONS), KINDS[kind][0])
    with originals.recorded_noise() as noise:
        expected = pipe(
            CAPTIONS, latents=theirs(x_T), num_inference_steps=STEPS, guidance_scale=SCALE
        )
    noises = np.stack([n.numpy() for n in noise[x_T.shape]])

    clip_cfg, clip_params, _ = load.load_clip(tmp_path / "run" / "clip" / "export")
    cfg, params, card = load.load_prior(tmp_path / "run" / "prior" / "export")
    assert (cfg.sampling.limit, card.embedding) == (LIMIT, "raw")
    words = caption_tokenizer.load(handoff.tokenizer_dir(tmp_path / "run" / "clip" / "export"))

    def read(message):
        ids, mask = map(jnp.asarray, words.encode(message, length=77))
        output = run(clip_cfg.model, clip_params, Clip.encode_text, ids, mask)
        return ids, captions.ClipText(output.pooled, output.sequence, mask)

    (ids, text), (_, empty) = read(CAPTIONS), read([""])
    replay = walks.Recorded((jnp.asarray(x_T), jnp.asarray(noises)))
    with pytest.MonkeyPatch.context() as patch, jax.default_matmul_precision("highest"):
        patch.setattr(gaussian.samplers, "run", replay)
        got = prior.sample(
            cfg,
            params,
            tokens=ids,
            token_mask=text.mask,
            z_txt=text.z_txt,
            keys=jax.random.split(jax.random.key(0), len(CAPTIONS)),
            sampling=dataclasses.replace(cfg.sampling, steps=str(STEPS), guidance_scale=SCALE),
            text=text,
            empty=empty,
        )
    assert expected.image_embeds.std() > 0.1
    assert relative(got, expected.image_embeds) <= 1e-4
    # their decoder's input for "no image": pixels that are all zero once standardised
    cfg = clip_cfg.model
    grey = jnp.broadcast_to(jnp.asarray(cfg.image_mean) * 2 - 1, (1, 32, 32, 3))
    zero = run(cfg, clip_params, Clip.encode_image, grey)
    assert relative(zero, expected.negative_image_embeds[:1]) <= 1e-5
