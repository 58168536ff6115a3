"""DeepFloyd IF's U-Nets and pipelines of diffusers, tiny and random, and what we read of them."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")
sentencepiece = pytest.importorskip("sentencepiece")

from diffusers.pipelines.deepfloyd_if import timesteps  # noqa: E402

from tests.parity import deepfloyd_images  # noqa: E402
from tests.parity.test_language_encoders import spiece  # noqa: E402, F401
from unclip_jax.convert import abstract, deepfloyd  # noqa: E402
from unclip_jax.convert.__main__ import main as convert  # noqa: E402
from unclip_jax.core.checks import UserError  # noqa: E402
from unclip_jax.diffusion import respace  # noqa: E402
from unclip_jax.inference import load  # noqa: E402
from unclip_jax.inference.cascade import tokenise  # noqa: E402
from unclip_jax.inference.text_to_image import SampleOptions  # noqa: E402
from unclip_jax.models.text_base import TextBase, TextBaseConfig  # noqa: E402
from unclip_jax.models.upsampler import Upsampler, enlarge  # noqa: E402
from unclip_jax.stages import text_encoder  # noqa: E402

WIDTH, CROSS = 32, 64
UNET = {
    "block_out_channels": (16, 32, 48),
    "down_block_types": ("ResnetDownsampleBlock2D", *["SimpleCrossAttnDownBlock2D"] * 2),
    "up_block_types": (*["SimpleCrossAttnUpBlock2D"] * 2, "ResnetUpsampleBlock2D"),
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "attention_head_dim": 8,
    "cross_attention_dim": CROSS,
    "cross_attention_norm": "group_norm",
    "encoder_hid_dim": WIDTH,
    "encoder_hid_dim_type": "text_proj",
    "addition_embed_type": "text",
    "addition_embed_type_num_heads": 4,
    "act_fn": "gelu",
    "norm_num_groups": 8,
    "resnet_time_scale_shift": "scale_shift",
    "out_channels": 6,
}
STAGE_1 = {**UNET, "sample_size": 16, "in_channels": 3, "layers_per_block": 1}
STAGE_2 = {
    **UNET,
    "sample_size": 32,
    "in_channels": 6,
    "layers_per_block": (1, 2, 1),
    "class_embed_type": "timestep",
    "only_cross_attention": True,
    "mid_block_only_cross_attention": True,
    "resnet_skip_time_act": True,
    "time_embedding_act_fn": "gelu",
    "resnet_out_scale_factor": 1.41423,
    "mid_block_scale_factor": 1.41423,
    "time_embedding_dim": 48,
}
SCHEDULER = {
    "beta_schedule": "squaredcos_cap_v2",
    "variance_type": "learned_range",
    "thresholding": True,
    "dynamic_thresholding_ratio": 0.95,
}
# Lists of steps by name, as counts per section (deep-floyd/IF, deepfloyd_if/modules/base.py).
SECTIONS = {
    "fast27": "10,10,3,2,2",
    "smart27": "7,4,2,1,2,4,7",
    "smart50": "10,6,4,3,2,2,3,4,6,10",
    "smart100": "1,1,1,1,2,2,2,2,2,2,3,3,4,4,5,5,6,7,7,8,9,10,13",
    "smart185": "1,1,2,2,2,3,3,3,4,5,6,7,8,9,10,11,12,13,14,15,16,18,20",
    "super27": "1,1,1,1,1,1,1,2,5,13",
    "super40": "2,2,2,2,2,2,3,4,6,15",
    "super100": "4,4,6,6,8,8,10,10,14,30",
}


def _unet(settings, seed):
    torch.manual_seed(seed)
    model = diffusers.UNet2DConditionModel(**settings)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.2 * torch.randn_like(parameter))
    return model.eval()


@pytest.fixture(scope="module")
def folders(tmp_path_factory, spiece):  # noqa: F811
    """Directories of stages I and II as diffusers writes them; both hold the text encoder."""
    place = tmp_path_factory.mktemp("if")
    torch.manual_seed(0)
    sizes = {"d_model": WIDTH, "num_heads": 2, "d_ff": 48, "num_layers": 2, "vocab_size": 400}
    t5 = transformers.T5EncoderModel(
        transformers.T5Config(feed_forward_proj="gated-gelu", is_encoder_decoder=False, **sizes)
    ).eval()
    hub = place / "tokenizer"
    hub.mkdir()
    (hub / "spiece.model").write_bytes(spiece.read_bytes())
    words = transformers.T5Tokenizer.from_pretrained(hub)
    shared = {"tokenizer": words, "text_encoder": t5, "safety_checker": None}
    shared |= {"feature_extractor": None, "watermarker": None}
    for name, cls, settings, cap in (
        ("I", diffusers.IFPipeline, STAGE_1, 1.5),
        ("II", diffusers.IFSuperResolutionPipeline, STAGE_2, 1.0),
    ):
        parts = {**shared, "unet": _unet(settings, len(name))}
        parts["scheduler"] = diffusers.DDPMScheduler(**SCHEDULER, sample_max_value=cap)
        if name == "II":
            noising = diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2")
            parts["image_noising_scheduler"] = noising
        cls(**parts, requires_safety_checker=False).save_pretrained(place / name)
    return place


@pytest.fixture(scope="module")
def run_dir(folders, tmp_path_factory):
    out = tmp_path_factory.mktemp("run")
    convert([str(folders / "I"), str(folders / "II"), f"--out={out}"])
    return out


@pytest.fixture(scope="module")
def run(run_dir):
    return load.load_cascade(run_dir)


def test_the_folders_go_back_as_diffusers_and_transformers_wrote_them(folders, run_dir, tmp_path):
    """Pipelines open, with the same tensors, settings and token ids as the originals."""
    from unclip_jax.convert import diffusers as writer

    writer.write(run_dir, tmp_path / "back")
    options = {"safety_checker": None, "requires_safety_checker": False, "watermarker": None}
    pairs = [
        [diffusers.IFPipeline.from_pretrained(place, **options) for place in places]
        for places in [(folders / "I", tmp_path / "back" / "stage_1")]
    ]
    second = {**options, "text_encoder": None, "tokenizer": None}
    places = (folders / "II", tmp_path / "back" / "stage_2")
    cls = diffusers.IFSuperResolutionPipeline
    pairs.append([cls.from_pretrained(place, **second) for place in places])
    for theirs, ours in pairs:
        for name in ("unet", "text_encoder"):
            if getattr(theirs, name) is None:
                continue
            expected, tensors = (getattr(p, name).state_dict() for p in (theirs, ours))
            assert expected.keys() == tensors.keys()
            assert all(torch.equal(expected[key], tensors[key]) for key in expected)
        one, other = (
            {k: v for k, v in p.scheduler.config.items() if not k.startswith("_")}
            for p in (theirs, ours)
        )
        assert one == other
        x, states, t = _inputs(theirs.unet.config.in_channels, 16)
        more = {"class_labels": t} if theirs.unet.config.class_embed_type else {}
        with torch.no_grad():
            one, other = (
                p.unet(x, t, encoder_hidden_states=states, **more).sample for p in (theirs, ours)
            )
        assert torch.equal(one, other)
    captions = ["a red circle", "", "Two BLUE squares </s> <unk>"]
    one, other = (p.tokenizer(captions, padding="max_length", max_length=77) for p in pairs[0])
    assert one["input_ids"] == other["input_ids"]


def _inputs(channels, side, seed=3):
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(shape, generator=generator)  # noqa: E731
    return draw(2, channels, side, side), draw(2, 77, WIDTH), torch.tensor([7, 730])


def _nhwc(x):
    return jnp.asarray(x.numpy()).transpose(0, 2, 3, 1)


def test_the_stages_are_read_with_their_text_encoder(run):
    names = [stage.name for stage in run.cascade.stages]
    assert names == ["text_encoder", "imagen_base", "upsampler_256"]
    assert all("non-commercial" in card.licence for card in run.manifests.values())
    ids = {card.text_encoder_id for card in run.manifests.values()}
    assert len(ids) == 1 and None not in ids
    sampling = run.cascade.decoder.sampling
    assert (sampling.steps, sampling.guidance_scale, sampling.cap) == ("ddim100", 7.0, 1.5)
    assert sampling.percentile == 95.0


def test_the_u_net_of_stage_1_agrees(folders, run):
    x, states, t = _inputs(3, 16)
    model = diffusers.UNet2DConditionModel.from_pretrained(folders / "I" / "unet")
    with torch.no_grad():
        theirs = _nhwc(model(x, t, encoder_hidden_states=states).sample)
    cfg, params = run.cascade.decoder, run.params["imagen_base"]
    mask = jnp.ones((2, 77), bool)
    features = jnp.asarray(states.numpy())
    ours = TextBase(cfg.model).apply(
        {"params": params},
        _nhwc(x),
        jnp.asarray(t.numpy(), jnp.int32),
        features=features,
        mask=mask,
    )
    assert np.abs(theirs).max() > 0.5
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_the_u_net_of_stage_2_agrees(folders, run):
    x, states, t = _inputs(6, 32)
    model = diffusers.UNet2DConditionModel.from_pretrained(folders / "II" / "unet")
    level = torch.tensor([250, 250])
    with torch.no_grad():
        theirs = _nhwc(model(x, t, encoder_hidden_states=states, class_labels=level).sample)
    cfg, params = run.cascade.upsamplers[0], run.params["upsampler_256"]
    ours = Upsampler(cfg.model).apply(
        {"params": params},
        _nhwc(x[:, :3]),
        jnp.asarray(t.numpy(), jnp.int32),
        low_res=_nhwc(x[:, 3:]),
        low_res_t=jnp.asarray(level.numpy(), jnp.int32),
        enlarged=True,
        features=jnp.asarray(states.numpy()),
        mask=jnp.ones((2, 77), bool),
    )
    assert np.abs(theirs).max() > 0.5
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_images_are_enlarged_with_aligned_corners(run):
    x = _inputs(3, 16)[0]
    size = {"size": (32, 32), "mode": "bilinear", "align_corners": True}
    theirs = torch.nn.functional.interpolate(x, **size)
    ours = enlarge(run.cascade.upsamplers[0].model, _nhwc(x), (32, 32))
    np.testing.assert_allclose(ours, _nhwc(theirs), atol=2e-5)


def test_captions_are_read_as_the_pipeline_reads_them(folders, run):
    pipe = diffusers.IFPipeline.from_pretrained(
        folders / "I", safety_checker=None, requires_safety_checker=False
    )
    caption = "A Red circle above a BLUE square "
    theirs, empty = pipe.encode_prompt(caption, device="cpu", clean_caption=False)
    words = load.load_tokenizers(run.tokenizer_dirs)
    ids = tokenise(run.cascade, words, [caption])["text_encoder"]
    stage = run.cascade.stage("text_encoder")
    keys = jax.random.split(jax.random.key(0), 1)
    ours = text_encoder.sample_in_chain(
        stage.config, run.params["text_encoder"], {"caption": ids}, keys=keys
    )["text_features"]
    np.testing.assert_allclose(ours.text.sequence, theirs.detach().numpy(), atol=2e-5)
    np.testing.assert_allclose(ours.empty.sequence, empty.detach().numpy(), atol=2e-5)


def _check_same(ours, theirs):
    for got, expected in zip(ours, theirs, strict=True):
        assert expected.std() > 0.3 and (np.abs(expected) == 1).mean() < 0.3
        np.testing.assert_allclose(got, expected, atol=1e-4)


def test_whole_images_agree_with_the_pipelines_of_both_stages(folders, run):
    """Two captions from text to 32 px, with the steps and guidance that both have by default."""
    captions = ["A Red circle above a BLUE square ", "the quick brown fox"]
    ours, noise = deepfloyd_images.here(run, captions)
    assert [len(stage.steps) for stage in noise] == [100, 50]
    for stage in noise:  # no two draws are the same, nor a part of each other
        assert np.abs(np.triu(np.corrcoef(stage.every), 1)).max() < 0.2
    _check_same(ours, deepfloyd_images.there(folders, captions, noise, {}, {}))


def test_whole_images_agree_with_other_settings(folders, run):
    """Lists of steps of IF's own code, from pure noise; no guidance, and much; a higher level."""
    captions, level = ["the lazy dog"], 900
    lists, scales = ("smart27", "fast27"), (1.0, 9.0)
    stages = (run.cascade.decoder, run.cascade.upsamplers[0])
    first, second = (
        dataclasses.replace(stage.sampling, steps=SECTIONS[name], guidance_scale=scale)
        for stage, name, scale in zip(stages, lists, scales, strict=True)
    )
    options = SampleOptions(decoder=first, upsamplers=(second,), upsampler_level=level / 999)
    ours, noise = deepfloyd_images.here(run, captions, options)
    calls = [
        {"timesteps": getattr(timesteps, f"{name}_timesteps"), "guidance_scale": scale}
        for name, scale in zip(lists, scales, strict=True)
    ]
    calls[1]["noise_level"] = level
    _check_same(ours, deepfloyd_images.there(folders, captions, noise, *calls))


@pytest.mark.parametrize("name", SECTIONS)
def test_lists_of_steps_are_section_counts(run, name):
    expected = getattr(timesteps, f"{name}_timesteps")
    chain = run.cascade.decoder.diffusion.chain()
    assert [*respace.strided(chain, steps=SECTIONS[name]).timesteps][::-1] == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"act_fn": "silu"}, "has act_fn 'silu', an unsupported variant; expected 'gelu'"),
        ({"cross_attention_norm": None}, "has cross_attention_norm None, an unsupported variant"),
        ({"class_embed_type": "identity"}, "class_embed_type 'identity', an unsupported variant"),
        ({"mid_block_scale_factor": 1.0}, "resnet_out_scale_factor 1.41423 but mid_block_scale"),
        ({"resnet_skip_time_act": False}, "time_embedding_act_fn 'gelu'; expected both or none"),
        ({"only_cross_attention": False}, "only_cross_attention False but mid_block_only_cross"),
        ({"encoder_hid_dim": None}, "lacks 'encoder_hid_dim'"),
        ({"dual_cross_attention": True}, "has dual_cross_attention True, an unsupported variant"),
    ],
)
def test_other_u_nets_are_rejected(change, message):
    settings = json.loads(json.dumps({"_class_name": "UNet2DConditionModel", **STAGE_2, **change}))
    with pytest.raises(UserError, match=message):
        deepfloyd.unet_config(settings, where="config.json")


@pytest.mark.parametrize(
    ("channels", "count"), [(192, 371_605_830), (320, 935_365_830), (704, 4_304_695_110)]
)
def test_stage_1_has_as_many_parameters_as_diffusers_counts(channels, count):
    """IF-I M, L and XL, counted on diffusers' own class at these widths."""
    settings = {
        **STAGE_1,
        "_class_name": "UNet2DConditionModel",
        "sample_size": 64,
        "block_out_channels": [channels * m for m in (1, 2, 3, 4)],
        "down_block_types": ["ResnetDownsampleBlock2D", *["SimpleCrossAttnDownBlock2D"] * 3],
        "up_block_types": [*["SimpleCrossAttnUpBlock2D"] * 3, "ResnetUpsampleBlock2D"],
        "layers_per_block": 3,
        "attention_head_dim": 64,
        "cross_attention_dim": 4 * channels,
        "encoder_hid_dim": 4096,
        "addition_embed_type_num_heads": 64,
        "norm_num_groups": 32,
    }
    network, text = deepfloyd.unet_config(settings, where="config.json")
    shapes = jax.tree.leaves(abstract.text_base(TextBaseConfig(network, text)))
    assert sum(x.size for x in shapes) == count


def test_stages_of_one_kind_or_without_their_text_encoder_are_rejected(folders, tmp_path):
    (tmp_path / "again").symlink_to(folders / "I")
    with pytest.raises(UserError, match="are both IFPipeline"):
        convert([str(folders / "I"), str(tmp_path / "again"), f"--out={tmp_path / 'run'}"])
    with pytest.raises(UserError, match="imagen_base comes without its text encoder"):
        convert([str(folders / "I"), f"--out={tmp_path / 'run'}", "--stages=imagen_base"])
