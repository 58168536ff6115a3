"""CLIP: both towers against recordings of transformers, from every layout of the same weights."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unclip_jax.convert import (
    abstract,
    clip_tensors,
    clip_text_encoder,
    importing,
    openai_clip,
    standalone_clip,
)
from unclip_jax.core import trees
from unclip_jax.core.checks import UserError
from unclip_jax.inference.load import load_text_encoder
from unclip_jax.models.clip import Clip
from unclip_jax.models.language_encoder import LanguageEncoder
from unclip_jax.tokenization import caption_tokenizer
from unclip_jax.weight_files import tensor_source, tensor_table

MEAN = jnp.array([0.48145466, 0.4578275, 0.40821073])[None, None, None]
STD = jnp.array([0.26862954, 0.26130258, 0.27577711])[None, None, None]


def load(folder, **changes):
    """Config and parameters of a folder in transformers' layout."""
    settings = {**tensor_source.read_json(folder / "config.json"), **changes}
    cfg = clip_tensors.config(settings, where="config.json")
    tensors = clip_tensors.tidy(tensor_source.open_tensors(folder), cfg)
    return cfg, tensor_table.fill(tensors, clip_tensors.entries(cfg), abstract.clip(cfg))


def same(a, b):
    assert not trees.shape_differences(a, b)
    for path, leaf in trees.flatten_paths(a).items():
        np.testing.assert_array_equal(leaf, trees.flatten_paths(b)[path], path)


def run(cfg, params, method, *inputs):
    with jax.default_matmul_precision("highest"):
        params = jax.tree.map(jnp.asarray, params)
        return Clip(cfg).apply({"params": params}, *inputs, method=method)


def images(case):
    """The recorded, standardised pixels as our images in [-1, 1]."""
    return (case.images("pixel_values") * STD + MEAN) * 2.0 - 1.0


@pytest.mark.parametrize("name", ["clip_qg", "clip_gelu"])
def test_the_text_tower_as_imagen_s_encoder_is_the_penultimate_layer(recordings, name):
    case = recordings.case(name)
    (clip,) = standalone_clip.clip_from(recordings.model(name))
    part = clip_text_encoder.stage(clip, context=None)
    part.check()
    ids, mask = case.argument("ids_pad0"), case.argument("mask_pad0").astype(bool)
    params = {"params": jax.tree.map(jnp.asarray, part.params())}
    with jax.default_matmul_precision("highest"):
        features = LanguageEncoder(part.config["model"]).apply(params, ids, mask)
    expected = case.arrays["out_text_hidden_states"][-2]  # the last is that of the last block
    np.testing.assert_allclose(features[mask], expected[np.asarray(mask)], atol=2e-5)
    with pytest.raises(UserError, match="trained on 77 tokens at most"):
        clip_text_encoder.stage(clip, context=78)


def test_a_clip_is_converted_to_a_text_encoder_with_its_tokenizer(recordings, tmp_path):
    words = " ".join(["a red circle above a blue square"] * 3)
    caption_tokenizer.train([words], vocab_size=600).save(tmp_path / "tokenizer")
    options = importing.ImportOptions(stages=("text_encoder",), tokenizer=tmp_path / "tokenizer")
    written = importing.convert([recordings.model("clip_qg")], tmp_path / "run", options=options)
    assert written == ["text_encoder"]
    cfg, _, card = load_text_encoder(tmp_path / "run" / "text_encoder" / "export")
    assert (cfg.model.family, cfg.model.context, card.text_width) == ("clip", 77, 32)
    assert card.text_encoder_id and card.clip_id is None


@pytest.mark.parametrize("name", ["clip_qg", "clip_gelu"])
def test_both_towers_agree_with_transformers(recordings, name):
    case = recordings.case(name)
    cfg, params = load(recordings.model(name))
    ids, mask = case.argument("ids_pad0"), case.argument("mask_pad0").astype(bool)
    text = run(cfg, params, Clip.encode_text, ids, mask)
    case.check("text_last_hidden_pad0", text.sequence)
    case.check("text_embeds_pad0", text.pooled)
    ids = case.argument("ids_padeos")
    case.check("text_embeds_padeos", run(cfg, params, Clip.encode_text, ids, mask).pooled)
    z_img = run(cfg, params, Clip.encode_image, images(case))
    case.check("image_embeds", z_img)
    ids = case.argument("ids_pad0")
    out = run(cfg, params, Clip.__call__, images(case), ids, mask)
    case.check("image_embeds_normalised", out.z_img)
    case.check("text_embeds_normalised", out.z_txt)
    case.check("logits_per_image", out.logit_scale * out.z_img @ out.z_txt.T)


@pytest.mark.parametrize("name", ["clip_qg_sharded", "clip_qg_oldkeys"])
def test_other_files_of_the_same_weights_give_the_same_tree(recordings, name):
    cfg, params = load(recordings.model(name))
    assert cfg == load(recordings.model("clip_qg"))[0]
    same(params, load(recordings.model("clip_qg"))[1])


def test_a_bare_text_tower_as_transformers_5_writes_it(recordings):
    case = recordings.case("clip_qg")
    cfg, params = load(recordings.model("clip_qg_textonly"))
    assert (cfg.towers, cfg.projection, cfg.embed_dim) == (("text",), False, 32)
    ids, mask = case.argument("ids_pad0"), case.argument("mask_pad0").astype(bool)
    text = run(cfg, params, Clip.encode_text, ids, mask)
    case.check("text_last_hidden_pad0", text.sequence)
    case.check("text_pooled_pad0", text.pooled)
    with pytest.raises(UserError, match="has no image tower"):
        run(cfg, params, Clip.encode_image, images(case))


def test_a_complete_file_read_for_one_tower(recordings):
    folder = recordings.model("clip_qg")
    settings = json.loads((folder / "config.json").read_text())
    tower = {
        **settings["text_config"],
        "projection_dim": 40,
        "architectures": ["CLIPTextModelWithProjection"],
    }
    cfg, params = load(folder, **tower)
    assert cfg.towers == ("text",)
    same(params, {"text": load(folder)[1]["text"]})


def test_openais_layout_gives_the_same_tree_rounded_to_half(recordings):
    openai = tensor_source.open_tensors(recordings.model("clip_qg_openai"))
    assert openai_clip.is_openai(openai)
    tensors = openai_clip.as_transformers(openai)
    cfg, params = load(recordings.model("clip_qg"))
    got = tensor_table.fill(tensors, clip_tensors.entries(cfg), abstract.clip(cfg))
    for path, leaf in trees.flatten_paths(got).items():
        expected = np.asarray(trees.flatten_paths(params)[path])
        np.testing.assert_allclose(leaf, expected, atol=1e-7, rtol=2.0**-11, err_msg=path)


def openai_shapes(width, text_width, *, image, patch, embed_dim, depth=1):
    """Shapes alone of an OpenAI state dict."""
    tokens = (image // patch) ** 2 + 1
    shapes = {
        "visual.conv1.weight": (width, 3, patch, patch),
        "visual.positional_embedding": (tokens, width),
        "visual.proj": (width, embed_dim),
        "positional_embedding": (77, text_width),
        "token_embedding.weight": (49408, text_width),
        "text_projection": (text_width, embed_dim),
    }
    for stack, w in (("visual.transformer", width), ("transformer", text_width)):
        for i in range(depth):
            shapes[f"{stack}.resblocks.{i}.mlp.c_fc.weight"] = (4 * w, w)
    return tensor_source.TensorSource("x.pt", shapes, lambda name: np.zeros(shapes[name]))


# widths, heads and projection of the released models (arXiv 2103.00020, table 20)
@pytest.mark.parametrize(
    ("size", "image", "text", "patch", "side", "embed_dim"),
    [
        ("B/32", (768, 12), (512, 8), 32, 224, 512),
        ("B/16", (768, 12), (512, 8), 16, 224, 512),
        ("L/14", (1024, 16), (768, 12), 14, 224, 768),
        ("L/14@336", (1024, 16), (768, 12), 14, 336, 768),
    ],
)
def test_sizes_of_openais_models_follow_from_shapes(size, image, text, patch, side, embed_dim):
    shapes = openai_shapes(image[0], text[0], image=side, patch=patch, embed_dim=embed_dim)
    cfg = openai_clip.config(shapes)
    assert (cfg.image_width, cfg.image_heads) == image, size
    assert (cfg.text_width, cfg.text_heads) == text
    assert (cfg.image_size, cfg.patch_size, cfg.embed_dim) == (side, patch, embed_dim)
    assert cfg.activation == "quick_gelu"


@pytest.mark.parametrize(
    ("size", "width", "head", "text", "embed_dim"),
    [("H/14", 1280, 80, (1024, 16), 1024), ("bigG/14", 1664, 104, (1280, 20), 1280)],
)
def test_open_clip_says_its_heads_and_activation(size, width, head, text, embed_dim):
    shapes = openai_shapes(width, text[0], image=224, patch=14, embed_dim=embed_dim)
    model = {"vision_cfg": {"head_width": head}, "text_cfg": {"heads": text[1]}}
    cfg = openai_clip.config(shapes, {"model_cfg": model})
    assert cfg.image_heads == width // head == 16, size
    assert (cfg.text_heads, cfg.activation) == (text[1], "gelu")
    model["quick_gelu"] = True
    assert openai_clip.config(shapes, {"model_cfg": model}).activation == "quick_gelu"


# parameters counted by the makers of the recordings from the real classes
@pytest.mark.parametrize(
    ("text", "vision", "projection", "millions"),
    [
        ((768, 12, 12, 3072), (1024, 24, 16, 4096), 768, 427.6),
        ((1024, 24, 16, 4096), (1280, 32, 16, 5120), 1024, 986.1),
        ((1280, 32, 20, 5120), (1664, 48, 16, 8192), 1280, 2539.6),
    ],
)
def test_full_sizes_have_the_known_number_of_parameters(text, vision, projection, millions):
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    settings = {
        "model_type": "clip",
        "projection_dim": projection,
        "text_config": dict(zip(names, text, strict=True)),
        "vision_config": {**dict(zip(names, vision, strict=True)), "patch_size": 14},
    }
    cfg = clip_tensors.config(settings, where="config.json")
    tree = abstract.clip(cfg)
    assert round(trees.count(tree) / 1e6, 1) == millions
    tensor_table.expected(clip_tensors.entries(cfg), tree)  # the table covers it


def test_tensors_go_back_as_they_came(recordings):
    folder = recordings.model("clip_gelu")
    cfg, params = load(folder)
    original = tensor_source.open_tensors(folder)
    tensors = dict(tensor_table.tensors(params, clip_tensors.entries(cfg)))
    assert {name: array.shape for name, array in tensors.items()} == original.shapes
    for name, array in tensors.items():
        np.testing.assert_array_equal(array, original.read(name), name)
    again = clip_tensors.config(clip_tensors.settings(cfg, eos=649, bos=648), where="")
    assert again == cfg


def test_bfloat16_is_rounded_to_nearest(recordings):
    folder = recordings.model("clip_qg")
    cfg, params = load(folder)
    half = tensor_table.fill(
        tensor_source.open_tensors(folder),
        clip_tensors.entries(cfg),
        abstract.clip(cfg),
        dtype="bfloat16",
    )
    same(half, jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params))


def test_towers_of_different_clips_do_not_make_one(recordings):
    cfg, _ = load(recordings.model("clip_qg_textonly"))
    other = dataclasses.replace(load(recordings.model("clip_gelu"))[0], embed_dim=12)
    with pytest.raises(UserError, match="embed_dim 32, the image encoder 12"):
        clip_tensors.merged(cfg, other)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "siglip"}, "unknown model_type in here 'siglip'"),
        ({"text_config": {"hidden_act": "relu"}}, "unknown hidden_act in here 'relu'"),
        ({"text_config": {"layer_norm_eps": 1e-6}}, "layer_norm_eps 1e-06"),
        ({"vision_config": {"num_channels": 4}}, "num_channels 4"),
        ({"text_config": {"hidden_act": "gelu"}}, "different activations"),
    ],
)
def test_other_architectures_are_rejected_by_name(changes, message):
    with pytest.raises(UserError, match=message):
        clip_tensors.config({"model_type": "clip", **changes}, where="here")


def test_resnets_are_rejected():
    shapes = openai_shapes(64, 64, image=32, patch=16, embed_dim=8)
    with pytest.raises(UserError, match="has no visual.proj; only CLIPs with a vision transformer"):
        openai_clip.config(shapes.without(["visual.proj"]))


def open_clip_settings():
    """An `open_clip_config.json` of a tiny CLIP with image heads of 16."""
    vision = {"width": 64, "layers": 1, "patch_size": 16, "image_size": 32, "head_width": 16}
    text = {"width": 128, "layers": 1, "context_length": 77, "vocab_size": 49408, "heads": 2}
    model = {"embed_dim": 8, "vision_cfg": vision, "text_cfg": text}
    return {"model_cfg": model, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}}


def test_open_clips_config_is_taken_at_its_word():
    shapes = openai_shapes(64, 128, image=32, patch=16, embed_dim=8)
    cfg = openai_clip.config(shapes, open_clip_settings())
    assert (cfg.image_heads, cfg.text_heads, cfg.activation) == (4, 2, "gelu")
    assert cfg.image_mean == cfg.image_std == (0.5, 0.5, 0.5)


@pytest.mark.parametrize(
    ("where", "name", "value", "message"),
    [
        ("vision_cfg", "width", 128, "has vision_cfg.width 128, the tensors 64"),
        ("text_cfg", "layers", 12, "has text_cfg.layers 12, the tensors 1"),
        ("vision_cfg", "pool_type", "avg", "has pool_type 'avg', an unsupported variant"),
        ("text_cfg", "no_causal_mask", True, "has no_causal_mask True, an unsupported variant"),
        ("text_cfg", "norm_kwargs", {"eps": 1e-6}, "has norm_kwargs .*an unsupported variant"),
        ("vision_cfg", "new_thing", 3, "has the unknown key 'new_thing'"),
        ("vision_cfg", "timm_model_name", "convnext", "has timm_model_name 'convnext'"),
    ],
)
def test_open_clips_variants_are_rejected_by_name(where, name, value, message):
    settings = open_clip_settings()
    settings["model_cfg"][where][name] = value
    shapes = openai_shapes(64, 128, image=32, patch=16, embed_dim=8)
    with pytest.raises(UserError, match=message):
        openai_clip.config(shapes, settings)
