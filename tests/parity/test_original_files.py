"""Karlo's own checkpoint files, made from diffusers' classes by undoing its renaming."""

import json
import shutil

import pytest

from tests.convert.test_clip import same
from tests.parity import originals
from tests.parity.originals import torch
from tests.parity.test_clip import archive, as_openai
from unclip_jax.convert import importing, original, unet_tensors
from unclip_jax.core.checks import UserError
from unclip_jax.handoff import load as handoff

pytestmark = pytest.mark.filterwarnings("ignore")
RENAMED = {
    "time_embedding.linear_1.": "time_embed.0.",
    "time_embedding.linear_2.": "time_embed.2.",
    "proj_in.": "clip_img_proj.",
    "embedding_proj.": "text_emb_proj.",
    "encoder_hidden_states_proj.": "text_enc_proj.",
    "norm_out.": "final_ln.",
    "proj_to_clip_embeddings.": "out_proj.",
    "prd_embedding": "prd_emb",
    "transformer_blocks.": "transformer.resblocks.",
    "attn1.to_out.0.": "attn.c_proj.",
    "ff.net.0.proj.": "mlp.c_fc.",
    "ff.net.2.": "mlp.c_proj.",
    "norm1.": "ln_1.",
    "norm3.": "ln_2.",
}


NETWORKS = ("decoder", "super_res_first")
# of originals.SIZES["tiny"] with embeddings of 64, in the words of the original configs
HPARAMS = {
    "prior": {"xf_width": 32, "xf_layers": 2, "xf_heads": 4, "clip_dim": 64},
    "decoder": {
        "image_size": 16,
        "num_channels": 16,
        "num_res_blocks": 1,
        "channel_mult": "1,2",
        "attention_resolutions": "8",
        "num_head_channels": 8,
        "clip_dim": 64,
        "xf_width": 24,
        "group_norm_groups": 4,
    },
    "sr": {"channels": 16, "depth": 1, "channels_multiple": [1, 2], "group_norm_groups": 4},
}


def interleave(q, k, v, heads):
    """Rows of one head's queries, keys and values after each other, then the next head's."""
    rows = [part.reshape(heads, -1, *part.shape[1:]) for part in (q, k, v)]
    return torch.cat(rows, 1).reshape(-1, *q.shape[1:])


def as_original(prior):
    state, case = prior.state_dict(), {}
    for name, tensor in state.items():
        if name in ("clip_mean", "clip_std") or ".attn1.to_k." in name or ".attn1.to_v." in name:
            continue
        new = name
        if ".attn1.to_q." in name:
            three = [state[name.replace("to_q", f"to_{part}")] for part in "qkv"]
            tensor = interleave(*three, prior.config.num_attention_heads)
            new = name.replace("attn1.to_q", "attn.c_qkv")
        for old, other in RENAMED.items():
            new = other.join(new.split(old)) if new.startswith(old) or f".{old}" in new else new
        case[f"model.{new}"] = tensor
    return case


def undone(network, views, prefix=""):
    """Tensors of `network` by the names of the original U-Nets; those that are fused, joined.

    Which name is which comes from our table here; that the table is right, and the order of fused
    rows, is shown by recordings of the original code (tests/convert/test_karlo.py).
    """
    state, case, groups = network.state_dict(), {}, {}
    for new, view in views.items():
        if new in state:
            groups.setdefault(view.old, []).append(new)
    for old, new in groups.items():
        parts = [state[name] for name in new]
        if len(parts) > 1:
            heads = parts[0].shape[0] // network.config.attention_head_dim
            rows = [part.reshape(heads, -1, *part.shape[1:]) for part in parts]
            parts = [torch.cat(rows, 1).reshape(-1, *parts[0].shape[1:])]
        case[prefix + old] = parts[0].contiguous()
    assert sum(map(len, groups.values())) == len(state)
    return case


TEXT_PROJ = {
    "encoder_hidden_states_proj.": "text_seq_proj.0.",
    "text_encoder_hidden_states_norm.": "text_seq_proj.1.",
    "embedding_proj.": "text_feat_proj.",
    "clip_extra_context_tokens_proj.": "clip_tok_proj.",
    "clip_image_embeddings_project_to_time_embeddings.": "clip_emb.",
    "learned_classifier_free_guidance_embeddings": "cf_param",
}


def decoder_file(pipe, network):
    """Returns the contents of decoder*.ckpt: the projection and the U-Net."""
    case = undone(pipe.decoder, original.unet_views(network), "model.")
    for name, tensor in pipe.text_proj.state_dict().items():
        (old, new), *none = ((o, n) for o, n in TEXT_PROJ.items() if name.startswith(o))
        assert not none
        case[f"model.{new}{name.removeprefix(old)}"] = tensor
    return case


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """One Karlo in both layouts, the original one with OpenAI's CLIP in its archive."""
    root = tmp_path_factory.mktemp("original")
    sizes = {**originals.SIZES["tiny"], "z": 64, "text_heads": 1}
    pipe = originals.pipeline(sizes, root)
    pipe.save_pretrained(root / "theirs")
    networks = {n: unet_tensors.config(dict(getattr(pipe, n).config), where=n) for n in NETWORKS}
    folder = root / "original"
    folder.mkdir()
    (folder / "hparams.json").write_text(json.dumps(HPARAMS))
    torch.save({"state_dict": as_original(pipe.prior)}, folder / "prior-tiny.ckpt")
    torch.save(
        {"state_dict": decoder_file(pipe, networks["decoder"])}, folder / "decoder-tiny.ckpt"
    )
    views = original.unet_views(networks["super_res_first"])
    enlarging = undone(pipe.super_res_first, views, "model_first_steps.")
    enlarging |= undone(pipe.super_res_last, views, "model_last_step.")
    torch.save({"state_dict": enlarging}, folder / "improved_sr-tiny.ckpt")
    statistics = (pipe.prior.clip_mean[0].detach(), pipe.prior.clip_std[0].detach())
    torch.save(statistics, folder / "ViT-L-14_stats.th")
    text_tower = as_openai(pipe.text_encoder)
    archive(text_tower | image_tower(), folder / "ViT-L-14.pt")
    shutil.copytree(root / "theirs" / "tokenizer", folder, dirs_exist_ok=True)
    return root / "theirs", folder


def image_tower():
    """OpenAI's names for a random image tower of one layer."""
    torch.manual_seed(1)
    shapes = {"class_embedding": (64,), "positional_embedding": (17, 64), "proj": (64, 64)}
    shapes |= {"conv1.weight": (64, 3, 8, 8)}
    block = {"attn.in_proj": (192, 64), "attn.out_proj": (64, 64)}
    block |= {"mlp.c_fc": (256, 64), "mlp.c_proj": (64, 256)}
    for name, (rows, columns) in block.items():
        end = "_" if name.endswith("in_proj") else "."
        shapes[f"transformer.resblocks.0.{name}{end}weight"] = (rows, columns)
        shapes[f"transformer.resblocks.0.{name}{end}bias"] = (rows,)
    for norm in ("ln_pre", "ln_post", *(f"transformer.resblocks.0.ln_{i}" for i in (1, 2))):
        shapes |= {f"{norm}.weight": (64,), f"{norm}.bias": (64,)}
    case = {f"visual.{name}": torch.randn(shape) for name, shape in shapes.items()}
    return {**case, "logit_scale": torch.tensor(2.0), "input_resolution": torch.tensor(32)}


def test_every_stage_is_the_same_tree(both, tmp_path):
    theirs, folder = both
    run = importing.run_directory(folder)  # what `sample --models` does
    assert run == folder.with_name("original.unclip_jax")
    importing.convert([theirs], tmp_path / "wanted")
    for name in ("clip", "prior", "decoder", "upsampler_256"):
        ours, expected = (r / name / "export" for r in (run, tmp_path / "wanted"))
        trees = [
            handoff.read_params(p, abstract=handoff.stored_shapes(p)) for p in (ours, expected)
        ]
        cards = [handoff.read_manifest(path).config for path in (ours, expected)]
        if name == "clip":  # the pipeline has its text tower alone
            assert trees[0].keys() == {"text", "image", "log_scale"}
            trees[0] = {"text": trees[0]["text"]}
        else:
            assert cards[0] == cards[1], name
        same(*trees)


def test_a_stage_without_its_clip_is_rejected(both, tmp_path):
    theirs, folder = both
    options = importing.ImportOptions(stages=("prior",), tokenizer=theirs / "tokenizer")
    with pytest.raises(UserError, match="comes without its CLIP"):
        importing.convert([folder], tmp_path, options=options)
