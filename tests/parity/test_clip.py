"""CLIP beside transformers' class: both activations, and OpenAI's names for the same weights."""

import json
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.convert.test_clip import MEAN, STD, load, run, same
from tests.parity.originals import perturb, torch, transformers
from unclip_jax.convert import abstract, clip_tensors, openai_clip, standalone_clip
from unclip_jax.models.clip import Clip
from unclip_jax.weight_files import tensor_source, tensor_table

save_file = pytest.importorskip("safetensors.torch").save_file
pytestmark = pytest.mark.filterwarnings("ignore")
# hidden width, depth, heads of the text and of the image tower; side, patch, projection
SIZES = {
    "tiny": ((32, 2, 4), (48, 2, 4), 32, 8, 24),
    "medium": ((128, 4, 2), (192, 5, 3), 112, 14, 96),
    "narrow heads": ((120, 3, 6), (208, 3, 2), 56, 14, 64),  # 20 and 104 wide, as in H and bigG
}


def model(size, activation):
    text, image, side, patch, projection = SIZES[size]

    def tower(width, depth, heads):
        sizes = {"hidden_size": width, "num_hidden_layers": depth, "num_attention_heads": heads}
        return {**sizes, "intermediate_size": 4 * width, "hidden_act": activation}

    torch.manual_seed(0)
    words = {"vocab_size": 600, "bos_token_id": 598, "eos_token_id": 599, "pad_token_id": 0}
    config = transformers.CLIPConfig(
        text_config={**tower(*text), **words},
        vision_config={**tower(*image), "image_size": side, "patch_size": patch},
        projection_dim=projection,
    )
    return perturb(transformers.CLIPModel(config))


def inputs(side):
    rng = np.random.default_rng(0)
    ids = rng.integers(1, 598, (3, 77))
    ids[:, 0] = 598
    for row, length in enumerate((5, 40, 77)):
        ids[row, length - 1], ids[row, length:] = 599, 0
    return ids, rng.uniform(-1, 1, (3, side, side, 3)).astype(np.float32)


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
@pytest.mark.parametrize("size", SIZES)
def test_both_towers(size, activation, tmp_path):
    theirs = model(size, activation)
    theirs.save_pretrained(tmp_path)
    cfg, params = load(tmp_path)
    ids, images = inputs(cfg.image_size)
    pixels = (jnp.asarray(images) + 1) / 2
    pixels = np.moveaxis(np.asarray((pixels - MEAN) / STD), -1, 1)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(ids), torch.from_numpy(pixels.copy()))
    mask = jnp.asarray(np.arange(77) <= ids.argmax(1)[:, None])
    got = run(cfg, params, Clip.__call__, jnp.asarray(images), jnp.asarray(ids, jnp.int32), mask)
    logits = got.logit_scale * got.z_img @ got.z_txt.T
    pairs = ((got.z_img, expected.image_embeds), (got.z_txt, expected.text_embeds))
    for ours, other in (*pairs, (logits, expected.logits_per_image)):
        other = other.numpy()
        assert np.abs(np.asarray(ours) - other).max() / np.abs(other).max() <= 1e-5


def as_openai(theirs):
    """Their state dict under OpenAI's names, by the mapping that the two code bases imply."""
    state, width = theirs.state_dict(), {}
    names = {
        "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
        "text_model.embeddings.position_embedding.weight": "positional_embedding",
        "vision_model.embeddings.class_embedding": "visual.class_embedding",
        "vision_model.embeddings.patch_embedding.weight": "visual.conv1.weight",
        "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
        "logit_scale": "logit_scale",
    }
    parts = (
        ("text_model.final_layer_norm", "ln_final"),
        ("vision_model.pre_layrnorm", "visual.ln_pre"),
        ("vision_model.post_layernorm", "visual.ln_post"),
        ("text_model.encoder.layers", "transformer.resblocks"),
        ("vision_model.encoder.layers", "visual.transformer.resblocks"),
        ("self_attn.out_proj", "attn.out_proj"),
        ("layer_norm1", "ln_1"),
        ("layer_norm2", "ln_2"),
        ("mlp.fc1", "mlp.c_fc"),
        ("mlp.fc2", "mlp.c_proj"),
    )
    for name, tensor in state.items():
        new = names.get(name, name)
        for old, other in parts if new == name else ():
            new = new.replace(old, other)
        if "self_attn.k_proj" in new or "self_attn.v_proj" in new or "position_ids" in new:
            continue
        if "self_attn.q_proj" in new:
            three = [state[name.replace("q_proj", f"{part}_proj")] for part in "qkv"]
            tensor = torch.cat(three)
            new = new.replace("self_attn.q_proj.", "attn.in_proj_")
        width[new] = tensor
    for name, new in (("text_projection", "text_projection"), ("visual_projection", "visual.proj")):
        if f"{name}.weight" in width:  # which a tower alone lacks
            width[new] = width.pop(f"{name}.weight").T.contiguous()
    return width


def archive(state, path):
    """The tensors as a TorchScript archive, which is what OpenAI publishes."""

    class Holder(torch.nn.Module):
        def forward(self, x):
            return x

    holder = Holder()
    for name, tensor in state.items():
        module = holder
        *parents, last = name.split(".")
        for part in parents:
            if not hasattr(module, part):
                module.add_module(part, Holder())
            module = getattr(module, part)
        module.register_buffer(last, tensor)
    torch.jit.script(holder).save(str(path))


@pytest.mark.parametrize("name", ["state dict", "archive"])
def test_openais_files_give_the_same_tree(name, tmp_path):
    theirs = model("medium", "quick_gelu")
    theirs.save_pretrained(tmp_path / "theirs")
    state = as_openai(theirs)
    if name == "archive":
        state |= {"input_resolution": torch.tensor(112), "vocab_size": torch.tensor(600)}
        archive(state, tmp_path / "clip.pt")
        assert zipfile.is_zipfile(tmp_path / "clip.pt")
    else:
        torch.save(state, tmp_path / "clip.pt")
    tensors = tensor_source.open_tensors(tmp_path / "clip.pt")
    cfg = openai_clip.config(tensors)
    expected, params = load(tmp_path / "theirs")
    assert openai_clip.is_openai(tensors) and cfg == expected
    views = openai_clip.as_transformers(tensors)
    same(tensor_table.fill(views, clip_tensors.entries(cfg), abstract.clip(cfg)), params)
    assert jax.tree.leaves(params)


def test_open_clips_folder_gives_the_same_tree_with_its_heads_and_activation(tmp_path):
    theirs = model("narrow heads", "gelu")
    theirs.save_pretrained(tmp_path / "theirs")
    (text_width, _, text_heads), (width, _, heads), side, patch, projection = SIZES["narrow heads"]
    settings = {
        "embed_dim": projection,
        "vision_cfg": {
            "image_size": side,
            "layers": 3,
            "width": width,
            "patch_size": patch,
            "head_width": width // heads,
            "mlp_ratio": 4.0,
        },
        "text_cfg": {"width": text_width, "layers": 3, "heads": text_heads, "vocab_size": 600},
    }
    folder = tmp_path / "open_clip"
    folder.mkdir()
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": settings}))
    state = {name: tensor.contiguous() for name, tensor in as_openai(theirs).items()}
    save_file(state, folder / "open_clip_model.safetensors")
    (part,) = standalone_clip.clip_from(folder)
    expected, params = load(tmp_path / "theirs")
    assert part.config["model"] == expected and expected.activation == "gelu"
    same(part.params(), params)
