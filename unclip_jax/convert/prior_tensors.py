"""The diffusion prior in the layout of diffusers' `PriorTransformer` (Karlo, Kandinsky 2.x)."""

from collections.abc import Mapping
from typing import Any

from unclip_jax.models.prior import EXTRA, PriorConfig
from unclip_jax.weight_files import configs
from unclip_jax.weight_files.tensor_table import Entry, linear, norm, transformer

CLASS = "PriorTransformer"
STATISTICS = ("clip_mean", "clip_std")  # [1, z] each; not parameters in this package
BLOCK = {
    "attention/q": "attn1.to_q",
    "attention/k": "attn1.to_k",
    "attention/v": "attn1.to_v",
    "attention/out": "attn1.to_out.0",
    "norm_1": "norm1",
    "norm_2": "norm3",
    "mlp/fc_1": "ff.net.0.proj",
    "mlp/fc_2": "ff.net.2",
}
FIXED = {
    "additional_embeddings": EXTRA,
    "time_embed_act_fn": "silu",
    "norm_in_type": None,
    "embedding_proj_norm_type": None,
    "encoder_hid_proj_type": "linear",
    "added_emb_type": "prd",
    "time_embed_dim": None,
    "embedding_proj_dim": None,
    "clip_embed_dim": None,
    "dropout": 0.0,
}
SIZES = (
    "num_attention_heads",
    "attention_head_dim",
    "num_layers",
    "embedding_dim",
    "num_embeddings",
)


def config(settings: Mapping[str, Any], *, vocab_size: int, where: str) -> PriorConfig:
    """Returns our config for the config of a `PriorTransformer`.

    Args:
        settings: the component's config.json.
        vocab_size: size of the tokenizer (these networks read features, not ids).
        where: name of the file in messages.

    Raises:
        UserError: the class or variant is not supported, or a size is missing.
    """
    configs.check_class(settings, CLASS, where=where)
    heads, head, depth, z, context = configs.required_sizes(settings, SIZES, where=where)
    configs.check_fixed(settings, FIXED, where=where)
    values = {
        "embed_dim": z,
        "width": heads * head,
        "depth": depth,
        "heads": heads,
        "context": context,
        "vocab_size": vocab_size,
        "caption": "clip_sequence",
        "clip_text_width": z,
        "padding": "mask",
        "null": "empty",
    }
    return configs.sized(PriorConfig, values, where=where)


def settings(cfg: PriorConfig) -> dict[str, Any]:
    """Inverts `config`."""
    values = (cfg.heads, cfg.width // cfg.heads, cfg.depth, cfg.embed_dim, cfg.context)
    return {"_class_name": CLASS, **dict(zip(SIZES, values, strict=True)), **FIXED}


def entries(cfg: PriorConfig) -> list[Entry]:
    """Returns the table of its tensors, without the statistics."""
    return [
        Entry("positions", "positional_embedding", "row"),
        Entry("query", "prd_embedding", "row_of_row"),
        *linear("time/linear_1", "time_embedding.linear_1"),
        *linear("time/linear_2", "time_embedding.linear_2"),
        *linear("x_t_in", "proj_in"),
        *linear("z_txt_in", "embedding_proj"),
        *linear("text_seq_in", "encoder_hidden_states_proj"),
        *transformer("transformer", "transformer_blocks", depth=cfg.depth, parts=BLOCK),
        *norm("final_norm", "norm_out"),
        *linear("out", "proj_to_clip_embeddings"),
    ]
