"""Karlo as diffusers runs it: blocks, networks and the whole pipeline, imported and written back.

Limits are relative to the greatest value: 1e-5 for one block, 1e-4 for a network, 1e-3 for the
picture that a whole pipeline draws.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.convert import test_karlo as recorded
from tests.convert.test_karlo import Loaded
from tests.parity import drawing, originals
from tests.parity.drawing import random, relative, theirs
from tests.parity.originals import CAPTIONS, torch
from unclip_jax.backbones.unet import UNetBlock, plan
from unclip_jax.convert import diffusers as ours
from unclip_jax.convert import importing, karlo, unet_tensors
from unclip_jax.handoff import load as handoff
from unclip_jax.models.clip import Clip
from unclip_jax.models.decoder import Decoder
from unclip_jax.models.prior import Prior
from unclip_jax.models.upsampler import Upsampler
from unclip_jax.tokenization import caption_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore")


class Both(NamedTuple):
    """One pipeline there and here: theirs, its folder, our run directory, our stages."""

    pipe: Any
    folder: Any
    run: Any
    stages: dict[str, Loaded]


@pytest.fixture(scope="module", params=list(originals.SIZES))
def both(request, tmp_path_factory):
    root = tmp_path_factory.mktemp(request.param)
    pipe = originals.pipeline(originals.SIZES[request.param], root)
    pipe.save_pretrained(root / "karlo")
    importing.convert([root / "karlo"], root / "run")
    stages = {
        part.name: Loaded(part) for part in karlo.read_stages(karlo.components([root / "karlo"]))
    }
    return Both(pipe, root / "karlo", root / "run", stages)


def run(module, params, *inputs, **options):
    """Our network on numpy's arrays."""
    arrays = jax.tree.map(
        lambda x: jnp.asarray(x) if isinstance(x, np.ndarray) else x, (inputs, options)
    )
    return recorded.run(module, params, *arrays[0], **arrays[1])


def captions(both):
    """Ids, mask and outputs of their text encoder for CAPTIONS."""
    message = both.pipe.tokenizer(
        CAPTIONS, padding="max_length", max_length=77, truncation=True, return_tensors="pt"
    )
    with torch.no_grad():
        output = both.pipe.text_encoder(message.input_ids)
    return message.input_ids.numpy(), message.attention_mask.numpy().astype(bool), output


def test_captions(both):
    ids, mask, text = captions(both)
    tokenizer = caption_tokenizer.load(handoff.tokenizer_dir(both.run / "clip" / "export"))
    for got, expected in zip(tokenizer.encode(CAPTIONS, length=77), (ids, mask), strict=True):
        np.testing.assert_array_equal(got, expected)
    loaded = both.stages["clip"]
    inputs = (jnp.asarray(ids, jnp.int32), mask)
    got = run(Clip(loaded.cfg.model), loaded.params, *inputs, method=Clip.encode_text)
    assert relative(got.pooled, text.text_embeds) <= 1e-5
    assert relative(got.sequence, text.last_hidden_state) <= 1e-5


@pytest.mark.parametrize("stage", ["decoder", "upsampler_256"])
def test_every_block_of_a_unet(both, stage):
    loaded = both.stages[stage]
    cfg = loaded.cfg.model.unet
    network = {"decoder": both.pipe.decoder, "upsampler_256": both.pipe.super_res_first}[stage]
    tree = loaded.params["unet"] if stage == "decoder" else loaded.params["first"]["unet"]
    emb = random(2, cfg.emb_width)
    context = random(2, 9, cfg.context_width) if stage == "decoder" else None
    steps = plan(cfg)
    for step in (*steps.down, *steps.middle, *steps.up):
        residual, attention = unet_tensors.names(step.name, len(cfg.multiples))
        residual = network.get_submodule(residual)
        x = random(2, 8, 8, residual.in_channels)
        inputs = (jnp.asarray(x), jax.nn.silu(emb), context, None, True)
        got = run(UNetBlock(cfg, step), tree[step.name], *inputs)
        with torch.no_grad():
            expected = residual(theirs(x), theirs(emb))
            if step.attention:
                attend = network.get_submodule(attention)
                expected = attend(expected, encoder_hidden_states=theirs(context))
        assert relative(got, expected) <= 1e-5, step.name


def test_prior(both):
    loaded, (ids, mask, text) = both.stages["prior"], captions(both)
    x, t = random(3, loaded.cfg.model.embed_dim), np.array([0, 417, 999], np.int32)
    inputs = {"tokens": jnp.asarray(ids, jnp.int32), "token_mask": mask}
    inputs |= {"z_txt": text.text_embeds.numpy(), "text_seq": text.last_hidden_state.numpy()}
    got = run(Prior(loaded.cfg.model), loaded.params, x, t, **inputs)
    with torch.no_grad():
        expected = both.pipe.prior(
            theirs(x),
            timestep=theirs(t),
            proj_embedding=text.text_embeds,
            encoder_hidden_states=text.last_hidden_state,
            attention_mask=theirs(mask),
        ).predicted_image_embedding
    assert relative(got, expected) <= 1e-4


@pytest.mark.parametrize("guided", [False, True])
def test_decoder_with_its_projection(both, guided):
    loaded, (ids, mask, text) = both.stages["decoder"], captions(both)
    cfg = loaded.cfg.model
    z_img, keep = random(3, cfg.z_dim), None
    rows = np.concatenate([[1, 1, 1], np.arange(3)]) if guided else np.arange(3)
    t = np.array([0, 417, 999], np.int32)[rows % 3]
    x = random(len(rows), cfg.unet.image_size, cfg.unet.image_size, 3)
    with torch.no_grad():
        context, emb = both.pipe.text_proj(
            image_embeddings=theirs(z_img),
            prompt_embeds=text.text_embeds[rows],
            text_encoder_hidden_states=text.last_hidden_state[rows],
            do_classifier_free_guidance=guided,
        )
        attention_mask = torch.nn.functional.pad(theirs(mask[rows]), (4, 0), value=True)
        expected = both.pipe.decoder(
            theirs(x),
            theirs(t),
            encoder_hidden_states=context,
            class_labels=emb,
            attention_mask=attention_mask,
        ).sample
    if guided:
        z_img, keep = np.concatenate([z_img, z_img]), np.arange(6) >= 3
    got = run(
        Decoder(cfg),
        loaded.params,
        x,
        t,
        z_img=z_img,
        keep_z=keep,
        tokens=jnp.asarray(ids[rows], jnp.int32),
        token_mask=mask[rows],
        text_seq=text.last_hidden_state.numpy()[rows],
        z_txt=text.text_embeds.numpy()[rows],
    )
    assert relative(got, expected) <= 1e-4


@pytest.mark.parametrize("name", ["first", "last"])
def test_super_resolution(both, name):
    loaded = both.stages["upsampler_256"]
    cfg = loaded.cfg.model
    side = cfg.unet.image_size
    x, low_res = random(2, side, side, 3), random(2, side // cfg.factor, side // cfg.factor, 3)
    t = np.array([0, 833], np.int32)
    got = run(Upsampler(cfg), loaded.params[name], x, t, low_res=low_res)
    with torch.no_grad():
        enlarged = torch.nn.functional.interpolate(
            theirs(low_res), size=(side, side), mode="bicubic", align_corners=False, antialias=True
        )
        network = getattr(both.pipe, f"super_res_{name}")
        expected = network(torch.cat([theirs(x), enlarged], 1), theirs(t)).sample
    assert relative(got, expected) <= 1e-4


def test_a_pipeline_draws_the_same_there_here_and_written_back(both, tmp_path):
    words = CAPTIONS[:2]
    there = drawing.steady(both.pipe, words)
    drawing.check_same(there, drawing.here(both.run, words, there))
    ours.write(both.run, tmp_path / "back")
    again = drawing.there(originals.load(tmp_path / "back"), words, there.starts)
    np.testing.assert_array_equal(again.images, there.images)
