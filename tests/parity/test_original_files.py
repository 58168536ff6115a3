"""Karlo's own checkpoint of the prior, made from diffusers' class by undoing its renaming."""

import numpy as np
import pytest

from tests.convert.test_clip import same
from tests.parity import originals
from tests.parity.originals import torch
from unclip_jax import weights
from unclip_jax.convert import karlo, original
from unclip_jax.core.checks import UserError

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


def interleaved(q, k, v, heads):
    """Rows of one head's queries, keys and values after each other, then the next head's."""
    rows = [part.reshape(heads, -1, *part.shape[1:]) for part in (q, k, v)]
    return torch.cat(rows, 1).reshape(-1, *q.shape[1:])


def as_original(prior):
    state, made = prior.state_dict(), {}
    for name, tensor in state.items():
        if name in ("clip_mean", "clip_std") or ".attn1.to_k." in name or ".attn1.to_v." in name:
            continue
        new = name
        if ".attn1.to_q." in name:
            three = [state[name.replace("to_q", f"to_{part}")] for part in "qkv"]
            tensor = interleaved(*three, prior.config.num_attention_heads)
            new = name.replace("attn1.to_q", "attn.c_qkv")
        for old, other in RENAMED.items():
            new = other.join(new.split(old)) if new.startswith(old) or f".{old}" in new else new
        made[f"model.{new}"] = tensor
    return made


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    root = tmp_path_factory.mktemp("original")
    pipe = originals.pipeline("tiny", root)
    pipe.save_pretrained(root / "theirs")
    folder = root / "original"
    folder.mkdir()
    sizes = {"xf_width": 32, "xf_layers": 2, "xf_heads": 4, "clip_dim": 32}
    (folder / "hparams.json").write_text(f'{{"prior": {sizes}}}'.replace("'", '"'))
    torch.save({"state_dict": as_original(pipe.prior)}, folder / "prior.ckpt")
    torch.save({"state_dict": {}}, folder / "decoder.ckpt")
    statistics = (pipe.prior.clip_mean[0].detach(), pipe.prior.clip_std[0].detach())
    torch.save(statistics, folder / "ViT-L-14_stats.th")
    return root / "theirs", folder


def test_its_prior_is_the_same_tree(both):
    theirs, folder = both
    assert original.is_original(folder)
    (ours,) = original.parts(folder, stages=("prior",), vocab_size=600)
    (wanted,) = karlo.parts(karlo.components([theirs]), stages=("prior",))
    same(ours.params(), wanted.params())
    for name in ("z_mean", "z_std"):
        np.testing.assert_array_equal(ours.config[name], wanted.config[name])


def test_a_stage_without_its_clip_is_refused(both, tmp_path):
    theirs, folder = both
    options = weights.ImportOptions(stages=("prior",), tokenizer=theirs / "tokenizer")
    with pytest.raises(UserError, match="comes without its CLIP"):
        weights.convert([folder], tmp_path, options=options)
