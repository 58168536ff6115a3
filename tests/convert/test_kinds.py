"""Weights as people have them: prefixes, nested dicts, averages, old configs, other preprocessing.

Every kind has a table; the next variant is a line.
"""

import json
import pathlib

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from unclip_jax.convert import importing, standalone_clip
from unclip_jax.core import trees
from unclip_jax.core.checks import UserError
from unclip_jax.weight_files import prefixes, tensor_source, tensor_table, torch_files

WIDTH, PATCH, CONTEXT, VOCAB, EMBED = 64, 8, 12, 520, 16


def block(rng, prefix: str) -> dict[str, np.ndarray]:
    shapes = {
        "attn.in_proj_weight": (3 * WIDTH, WIDTH),
        "attn.in_proj_bias": (3 * WIDTH,),
        "attn.out_proj.weight": (WIDTH, WIDTH),
        "attn.out_proj.bias": (WIDTH,),
        "ln_1.weight": (WIDTH,),
        "ln_1.bias": (WIDTH,),
        "ln_2.weight": (WIDTH,),
        "ln_2.bias": (WIDTH,),
        "mlp.c_fc.weight": (4 * WIDTH, WIDTH),
        "mlp.c_fc.bias": (4 * WIDTH,),
        "mlp.c_proj.weight": (WIDTH, 4 * WIDTH),
        "mlp.c_proj.bias": (WIDTH,),
    }
    return {prefix + name: rng.normal(size=s).astype(np.float32) for name, s in shapes.items()}


def openai(seed: int = 0) -> dict[str, np.ndarray]:
    """A CLIP of one block per tower under OpenAI's names."""
    rng = np.random.default_rng(seed)
    shapes = {
        "token_embedding.weight": (VOCAB, WIDTH),
        "positional_embedding": (CONTEXT, WIDTH),
        "ln_final.weight": (WIDTH,),
        "ln_final.bias": (WIDTH,),
        "text_projection": (WIDTH, EMBED),
        "logit_scale": (),
        "visual.class_embedding": (WIDTH,),
        "visual.conv1.weight": (WIDTH, 3, PATCH, PATCH),
        "visual.positional_embedding": (5, WIDTH),
        "visual.ln_pre.weight": (WIDTH,),
        "visual.ln_pre.bias": (WIDTH,),
        "visual.ln_post.weight": (WIDTH,),
        "visual.ln_post.bias": (WIDTH,),
        "visual.proj": (WIDTH, EMBED),
    }
    tensors = {n: np.asarray(rng.normal(size=s), np.float32) for n, s in shapes.items()}
    stacks = ("transformer.resblocks.0.", "visual.transformer.resblocks.0.")
    return tensors | {n: x for stack in stacks for n, x in block(rng, stack).items()}


OPEN_CLIP = {
    "model_cfg": {"embed_dim": EMBED, "vision_cfg": {"width": WIDTH}, "text_cfg": {"heads": 2}},
    "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.25] * 3},
}
TEXT = {
    "vocab_size": VOCAB,
    "hidden_size": WIDTH,
    "intermediate_size": 4 * WIDTH,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": CONTEXT,
}
VISION = {
    "hidden_size": WIDTH,
    "intermediate_size": 4 * WIDTH,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "image_size": 2 * PATCH,
    "patch_size": PATCH,
}
CLIP = {"model_type": "clip", "projection_dim": EMBED, "text_config": TEXT, "vision_config": VISION}


def transformers() -> dict[str, np.ndarray]:
    """The same CLIP under the names of transformers."""
    from unclip_jax.convert import openai_clip

    source = tensor_source.in_memory("here", openai())
    view = openai_clip.as_transformers(source)
    return {name: np.array(view.read(name), order="C") for name in view.shapes}


def put(folder: pathlib.Path, tensors, config=OPEN_CLIP, *, name="model.safetensors", beside=None):
    """Writes weights and their configs as a folder."""
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / name)
    kind = "config.json" if "model_type" in config else "open_clip_config.json"
    (folder / kind).write_text(json.dumps(config))
    if beside is not None:
        (folder / "preprocessor_config.json").write_text(json.dumps(beside))
    return folder


def leaves(part) -> dict[str, np.ndarray]:
    return trees.flatten_paths(part.params())


@pytest.fixture(scope="module")
def expected(tmp_path_factory) -> dict[str, np.ndarray]:
    (part,) = standalone_clip.clip_from(put(tmp_path_factory.mktemp("plain"), openai()))
    return leaves(part)


def under(prefix: str, tensors=None) -> dict[str, np.ndarray]:
    return {prefix + name: x for name, x in (tensors or openai()).items()}


def submodule(name: str, part: str, wrapper: str) -> str:
    return name.replace(f"{part}.", f"{part}.{wrapper}.", 1) if name.startswith(part) else name


PREFIXES = {
    "plain": lambda: openai(),
    "DataParallel": lambda: under("module."),
    "torch.compile": lambda: under("_orig_mod."),
    "both": lambda: under("module._orig_mod."),
    "both, inside out": lambda: under("_orig_mod.module."),
    "Lightning": lambda: under("model."),
    "a wrapper of a wrapper": lambda: under("net.backbone.clip_model."),
    "a state dict in a checkpoint": lambda: under("state_dict.module."),
    "a compiled tower": lambda: {
        submodule(n, "visual", "_orig_mod"): x for n, x in openai().items()
    },
    "FSDP": lambda: {
        submodule(n, "transformer.resblocks.0", "_fsdp_wrapped_module"): x
        for n, x in openai().items()
    },
    "checkpointed blocks": lambda: {
        submodule(n, "visual.transformer.resblocks.0", "_checkpoint_wrapped_module"): x
        for n, x in openai().items()
    },
    "CustomTextCLIP": lambda: {
        n if n.startswith(("visual", "logit")) else f"text.{n}": x for n, x in openai().items()
    },
    "CustomTextCLIP, DataParallel": lambda: under("module.", PREFIXES["CustomTextCLIP"]()),
    "a mask of old classes": lambda: openai() | {"attn_mask": np.zeros((12, 12), np.float32)},
    "an average and its count": lambda: under("module.") | {"n_averaged": np.ones((), np.int64)},
    "a loss of its own": lambda: under("model.") | {"loss.scale": np.ones(1, np.float32)},
    "an average beside": lambda: openai(1) | under("ema."),
    "an average beside, both below": lambda: under("model.", openai(1)) | under("model_ema."),
    "timm's average": lambda: under("state_dict.", openai(1)) | under("state_dict_ema."),
}


@pytest.mark.parametrize("kind", PREFIXES)
def test_prefixes_of_trainers_and_compilers_are_taken_off(tmp_path, expected, capsys, kind):
    config = OPEN_CLIP
    if "CustomText" in kind:
        config = {"model_cfg": {**OPEN_CLIP["model_cfg"], "custom_text": True}}
    (part,) = standalone_clip.clip_from(put(tmp_path, PREFIXES[kind](), config))
    got = leaves(part)
    assert got.keys() == expected.keys()
    for path, leaf in expected.items():
        np.testing.assert_array_equal(got[path], leaf, err_msg=path)
    stderr = capsys.readouterr().err
    assert ("the average, " in stderr) == ("beside" in kind or "timm" in kind)
    assert ("left out" in stderr) == ("count" in kind or "loss" in kind)


@pytest.mark.parametrize("prefix", ["model.", "student.clip."])
def test_prefixes_of_transformers_names(tmp_path, expected, prefix):
    (part,) = standalone_clip.clip_from(put(tmp_path, under(prefix, transformers()), CLIP))
    np.testing.assert_array_equal(leaves(part)["text/tokens"], expected["text/tokens"])


def two_text_towers() -> dict[str, np.ndarray]:
    return {f"text.{name}": x for name, x in openai().items() if not name.startswith("visual")}


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (lambda: under("student.") | under("teacher."), "2 sets of weights, under student., teach"),
        (lambda: openai() | under("ema.") | under("ema_2."), "3 sets of weights, under no prefix"),
        (lambda: openai() | under("_orig_mod."), "twice, with and without a compiler's prefix"),
        (lambda: openai() | two_text_towers(), "two text towers, with and without text"),
        (lambda: openai() | {"extra.weight": np.ones(1, np.float32)}, r"extra extra.weight \(1,\)"),
    ],
)
def test_what_cannot_be_distinguished_is_rejected(tmp_path, tensors, message):
    with pytest.raises(UserError, match=message):
        standalone_clip.clip_from(put(tmp_path, tensors()))[0].check()


def test_lists_of_tensors_are_cut_at_ten(tmp_path):
    tensors = openai() | {f"more.{i}": np.ones(1, np.float32) for i in range(30)}
    with pytest.raises(UserError, match=r"in 30 tensors: .*; and 20 more. Nothing was loaded"):
        standalone_clip.clip_from(put(tmp_path, tensors))[0].check()


TORCH = {
    "open_clip's trainer": lambda state: {"epoch": 3, "name": "x", "state_dict": state},
    "a key of its own": lambda state: {"model_state_dict": state, "step": 5},
    "model": lambda state: {"model": state, "args": {"lr": 0.1}},
    "deeper": lambda state: {"checkpoint": {"weights": state}, "hparams": [1, 2]},
    "with an optimiser": lambda state: {
        "state_dict": state,
        "optimizer": {"state": {0: {"exp_avg": np.zeros(3)}}, "param_groups": [{"lr": 1}]},
    },
    "with its average": lambda state: {"model": under("", openai(1)), "ema": state},
}


@pytest.mark.parametrize("kind", TORCH)
def test_nested_state_dicts_are_unwrapped(tmp_path, monkeypatch, kind):
    """The values as `torch.load` yields them, after its tensors became arrays."""
    value = TORCH[kind](openai())
    monkeypatch.setattr(torch_files, "read_value", lambda path: value)
    tensors = torch_files.read_tensors(tmp_path / "x.pt")
    source = tensor_source.in_memory("x.pt", tensors)
    part = prefixes.stripped(source, standalone_clip.ANCHORS)
    assert part.shapes.keys() == openai().keys()
    np.testing.assert_array_equal(part.read("visual.proj"), openai()["visual.proj"])


@pytest.mark.parametrize("value", [{"epoch": 3}, {"a": {"b": [np.ones(2)]}}, [np.ones(2)], 5])
def test_a_checkpoint_without_tensors_by_name_is_rejected(tmp_path, monkeypatch, value):
    monkeypatch.setattr(torch_files, "read_value", lambda path: value)
    with pytest.raises(UserError, match=r"x.pt holds (no tensors by name|a list|a int)"):
        torch_files.read_tensors(tmp_path / "x.pt")


OLD_CONFIGS = {
    "null and a dict": {"text_config": None, "text_config_dict": TEXT},
    "dicts alone": {
        "text_config": None,
        "vision_config": None,
        "text_config_dict": TEXT,
        "vision_config_dict": VISION,
    },
    "a dict that counts": {"text_config": {**TEXT, "hidden_size": 8}, "text_config_dict": TEXT},
    "null dicts": {"text_config_dict": None, "vision_config_dict": None},
    "no model_type": {"model_type": None, "architectures": ["CLIPModel"]},
    "null values": {"text_config": {**TEXT, "hidden_act": None, "layer_norm_eps": None}},
}


@pytest.mark.parametrize("kind", OLD_CONFIGS)
def test_old_configs_of_transformers_are_read_as_transformers_reads_them(tmp_path, expected, kind):
    config = {**CLIP, **OLD_CONFIGS[kind]}
    (part,) = standalone_clip.clip_from(put(tmp_path, transformers(), config))
    assert part.config["model"].text_heads == 2
    np.testing.assert_array_equal(leaves(part)["text/tokens"], expected["text/tokens"])


def test_what_an_old_dict_leaves_out_is_the_default(tmp_path):
    """transformers fills `text_config_dict` with the defaults of its class, here 12 layers."""
    short = {k: v for k, v in TEXT.items() if k != "num_hidden_layers"}
    config = {**CLIP, "text_config_dict": short}
    with pytest.raises(UserError, match=r"missing text_model.encoder.layers.1\."):
        standalone_clip.clip_from(put(tmp_path, transformers(), config))[0].check()


BAD_CONFIGS = {
    "a list": ({"text_config": [1]}, r"text_config \[1\]; expected an object"),
    "a number": ({"vision_config_dict": 3}, "vision_config_dict 3; expected an object"),
    "a string": ({"text_config": {**TEXT, "hidden_size": "64"}}, "text_width is '64' .str."),
    "a negative": ({"text_config": {**TEXT, "num_hidden_layers": -1}}, "text_depth is -1"),
    "huge": ({"vision_config": {**VISION, "hidden_size": 10**12}}, "image_width is 1000000000000"),
    "a deep tower": ({"text_config": {**TEXT, "num_hidden_layers": 10**9}}, "text_depth is 10000"),
    "a wide picture": ({"vision_config": {**VISION, "image_size": 2**20}}, "image_size is 1048576"),
    "zero": ({"vision_config": {**VISION, "patch_size": 0}}, "0 does not divide"),
    "no heads": ({"text_config": {**TEXT, "num_attention_heads": 0}}, "no network|does not divide"),
    "a fraction": ({"projection_dim": 16.5}, "embed_dim is 16.5 .float.; expected int"),
    "true": ({"projection_dim": True}, "embed_dim is True .bool.; expected int"),
}


@pytest.mark.parametrize("kind", BAD_CONFIGS)
def test_configs_of_no_network_are_rejected_before_anything_is_built(tmp_path, kind):
    change, message = BAD_CONFIGS[kind]
    with pytest.raises(UserError, match=message):
        standalone_clip.clip_from(put(tmp_path, transformers(), {**CLIP, **change}))


OPEN_CLIP_PREPROCESSING = {
    "squash": ({"resize_mode": "squash"}, "resize_mode 'squash'.*expected 'shortest'"),
    "longest": ({"resize_mode": "longest", "fill_color": 0}, "resize_mode 'longest'"),
    "bilinear": ({"interpolation": "bilinear"}, "interpolation 'bilinear'"),
    "another size": ({"size": 224}, r"size 224.*expected 16 or \[16, 16\]"),
    "grey": ({"mode": "L"}, "mode 'L'"),
    "two means": ({"mean": [0.5, 0.5]}, r"mean \[0.5, 0.5\].*three numbers"),
    "no deviation": ({"std": [0.5, 0, 0.5]}, "std .*deviations above 0"),
    "words": ({"mean": "imagenet"}, "mean 'imagenet'"),
    "unknown": ({"sharpen": 1}, "unknown key 'sharpen'"),
}


@pytest.mark.parametrize("kind", OPEN_CLIP_PREPROCESSING)
def test_other_preprocessing_of_open_clip_is_rejected_by_name(tmp_path, kind):
    change, message = OPEN_CLIP_PREPROCESSING[kind]
    config = {**OPEN_CLIP, "preprocess_cfg": {**OPEN_CLIP["preprocess_cfg"], **change}}
    with pytest.raises(UserError, match=message):
        standalone_clip.clip_from(put(tmp_path, openai(), config))


@pytest.mark.parametrize(
    "preprocessing",
    [
        {},
        {"resize_mode": "shortest", "interpolation": "bicubic", "mode": "RGB", "size": 16},
        {"size": [16, 16], "interpolation": "random", "fill_color": 0},
        {"mean": None, "std": None},
    ],
)
def test_preprocessing_that_is_ours_is_taken(tmp_path, preprocessing):
    config = {**OPEN_CLIP, "preprocess_cfg": preprocessing}
    standalone_clip.clip_from(put(tmp_path, openai(), config))


PROCESSORS = {
    "squash": ({"size": {"height": 16, "width": 16}}, "size {'height': 16"),
    "bilinear": ({"resample": 2}, "resample 2.*expected 3"),
    "no crop": ({"do_center_crop": False}, "do_center_crop False"),
    "no resize": ({"do_resize": False}, "do_resize False"),
    "resized larger": ({"size": {"shortest_edge": 24}}, "size {'shortest_edge': 24}"),
    "another crop": ({"crop_size": 12}, "crop_size 12"),
    "not rescaled": ({"do_rescale": False}, "do_rescale False"),
    "to [-1, 1]": ({"rescale_factor": 1 / 127.5}, "rescale_factor 0.00784.*expected 1/255"),
    "one mean": ({"image_mean": 0.5}, "image_mean 0.5.*three numbers"),
    "infinite": ({"image_std": [1, 1, 1e400]}, "cannot be read as JSON|three numbers"),
}


@pytest.mark.parametrize("kind", PROCESSORS)
def test_other_preprocessing_of_transformers_is_rejected_by_name(tmp_path, kind):
    change, message = PROCESSORS[kind]
    with pytest.raises(UserError, match=message):
        standalone_clip.clip_from(put(tmp_path, transformers(), CLIP, beside=change))


def test_pixels_that_are_not_standardised_have_mean_0_and_deviation_1(tmp_path):
    beside = {"do_normalize": False, "size": 16, "crop_size": {"height": 16, "width": 16}}
    (part,) = standalone_clip.clip_from(put(tmp_path, transformers(), CLIP, beside=beside))
    cfg = part.config["model"]
    assert (cfg.image_mean, cfg.image_std) == ((0.0,) * 3, (1.0,) * 3)


def with_value(value, dtype=np.float32) -> dict[str, np.ndarray]:
    tensors = openai()
    tensors["visual.proj"] = tensors["visual.proj"].astype(dtype)
    tensors["visual.proj"][3, 2] = value
    return tensors


@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        (np.nan, np.float32),
        (np.inf, np.float32),
        (-np.inf, np.float16),
        (np.nan, ml_dtypes.bfloat16),
        (1e300, np.float64),
    ],
)
def test_weights_that_are_not_finite_are_rejected(tmp_path, value, dtype):
    (part,) = standalone_clip.clip_from(put(tmp_path, with_value(value, dtype)))
    with pytest.raises(UserError, match=r"values in visual_projection.weight that are not finite"):
        part.params()


@pytest.mark.parametrize("dtype", [np.int8, np.int64, np.uint8, bool])
def test_quantised_weights_are_rejected(tmp_path, dtype):
    (part,) = standalone_clip.clip_from(put(tmp_path, with_value(1, dtype)))
    with pytest.raises(UserError, match="visual_projection.weight as .*Quantised weights are not"):
        part.params()


SHARDED = {
    "variant after the index": (
        "m.fp16-0000{}-of-00002.safetensors",
        "m.safetensors.index.fp16.json",
    ),
    "variant before": ("m.fp16-0000{}-of-00002.safetensors", "m.fp16.safetensors.index.json"),
    "plain": ("model-0000{}-of-00002.safetensors", "model.safetensors.index.json"),
    "no index": ("model-0000{}-of-00002.safetensors", None),
    "no index, variant": ("model.bf16-0000{}-of-00002.safetensors", None),
}


@pytest.mark.parametrize("kind", SHARDED)
def test_shards_of_any_variant_are_joined(tmp_path, kind):
    name, index = SHARDED[kind]
    tensors = openai()
    halves = sorted(tensors)[::2], sorted(tensors)[1::2]
    places = {n: name.format(i + 1) for i, half in enumerate(halves) for n in half}
    for number, half in enumerate(halves, start=1):
        save_file({n: tensors[n] for n in half}, tmp_path / name.format(number))
    if index:
        (tmp_path / index).write_text(json.dumps({"weight_map": places}))
    source = tensor_source.open_tensors(tmp_path)
    assert source.shapes == {n: x.shape for n, x in tensors.items()}
    np.testing.assert_array_equal(source.read("visual.proj"), tensors["visual.proj"])
    (tmp_path / name.format(2)).unlink()
    with pytest.raises(UserError, match="there is no file|holds 1 of 2 files of weights"):
        tensor_source.open_tensors(tmp_path)


OTHERS = {
    "SigLIP by tensor": ({}, {"logit_bias": ()}, "is SigLIP"),
    "SigLIP by config": ({"init_logit_bias": -10}, {}, "is SigLIP"),
    "SigLIP of timm": (
        {"vision_cfg": {"timm_model_name": "vit_base_patch16_siglip_224"}},
        {},
        "is SigLIP",
    ),
    "CoCa by config": ({"multimodal_cfg": {"width": 8}}, {}, "is CoCa"),
    "CoCa by tensor": ({}, {"text_decoder.ln_final.weight": (8,)}, "is CoCa"),
    "EVA by config": (
        {"vision_cfg": {"timm_model_name": "eva02_base_patch16_clip_224"}},
        {},
        "is EVA-CLIP",
    ),
    "EVA by tensor": ({}, {"visual.rope.freqs_cos": (4, 4)}, "is EVA-CLIP"),
    "a ConvNeXt": (
        {"vision_cfg": {"timm_model_name": "convnext_base"}},
        {},
        r"timm \(convnext_base\)",
    ),
    "a BERT": (
        {"text_cfg": {"hf_model_name": "roberta-base"}},
        {},
        r"CustomTextCLIP .*roberta-base",
    ),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_relatives_of_clip_are_rejected_by_name(tmp_path, kind):
    change, shapes, message = OTHERS[kind]
    config = {"model_cfg": {**OPEN_CLIP["model_cfg"], **change}}
    tensors = openai() | {name: np.zeros(s, np.float32) for name, s in shapes.items()}
    with pytest.raises(UserError, match=f"{message}.*not supported; give a CLIP"):
        standalone_clip.clip_from(put(tmp_path, tensors, config))


@pytest.mark.parametrize("kind", ["siglip", "siglip2", "chinese_clip", "altclip", "metaclip_2"])
def test_relatives_in_transformers_are_rejected_by_name(tmp_path, kind):
    with pytest.raises(
        UserError, match="is (SigLIP|Chinese-CLIP|AltCLIP|MetaCLIP 2).*not supported"
    ):
        standalone_clip.clip_from(put(tmp_path, transformers(), {**CLIP, "model_type": kind}))


def test_open_clips_text_towers_have_eight_heads_unless_their_config_says(tmp_path, capsys):
    """`CLIPTextCfg.heads` of open_clip is 8; OpenAI's own class has heads of 64."""
    config = {"model_cfg": {"embed_dim": EMBED, "vision_cfg": {}, "text_cfg": {}}}
    (part,) = standalone_clip.clip_from(put(tmp_path, openai(), config))
    assert part.config["model"].text_heads == 8
    assert part.config["model"].activation == "gelu"
    assert not capsys.readouterr().err
    (tmp_path / "open_clip_config.json").unlink()
    (part,) = standalone_clip.clip_from(tmp_path)
    assert part.config["model"].text_heads == 1
    assert (
        "no open_clip_config.json beside it, so it is read as OpenAI's" in capsys.readouterr().err
    )


def test_a_config_of_open_clips_package_is_one(tmp_path):
    (part,) = standalone_clip.clip_from(put(tmp_path, openai(), OPEN_CLIP["model_cfg"]))
    assert part.config["model"].text_heads == 2


@pytest.mark.parametrize(
    ("name", "shape"), [("visual.conv1.weight", (64,)), ("positional_embedding", (0, 64))]
)
def test_tensors_of_another_rank_are_rejected(tmp_path, name, shape):
    tensors = openai() | {name: np.zeros(shape, np.float32)}
    with pytest.raises(UserError, match=rf"has {name} \({shape[0]},.*; expected \d axes"):
        standalone_clip.clip_from(put(tmp_path, tensors))


def test_a_tensor_table_reads_every_floating_type(tmp_path):
    tensors = {"w": np.array([1.5, -2.0], ml_dtypes.bfloat16)}
    tree = tensor_table.fill(
        tensor_source.in_memory("here", tensors),
        [tensor_table.Entry("w", "w")],
        {"w": np.empty(2, np.float32)},
    )
    np.testing.assert_array_equal(tree["w"], [1.5, -2.0])


def test_dalle_mini_is_rejected_by_name(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "dallebart"}')
    with pytest.raises(UserError, match="is DALL-E mini, a BART with cross-attention, which is"):
        importing.convert([tmp_path], tmp_path / "run")


def test_glides_networks_are_rejected_by_name(tmp_path):
    tensors = dict.fromkeys(standalone_clip.GLIDE, np.zeros((2, 2), np.float32))
    save_file(tensors, tmp_path / "base.safetensors")
    with pytest.raises(UserError, match=r"base.safetensors is a network of GLIDE, which is not"):
        standalone_clip.clip_from(tmp_path / "base.safetensors")
