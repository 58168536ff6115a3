"""Encoders of T5 v1.1 and BERT in the layout of transformers, as the stage `text_encoder`."""

import pathlib
from collections.abc import Mapping
from typing import Any

from unclip_jax.convert import abstract
from unclip_jax.convert.converted_stage import ConvertedStage
from unclip_jax.core.checks import UserError
from unclip_jax.models.language_encoder import LanguageEncoderConfig
from unclip_jax.weight_files import configs
from unclip_jax.weight_files.tensor_source import TensorSource, open_tensors, read_json
from unclip_jax.weight_files.tensor_table import Entry, linear, norm

CONFIG = "config.json"
FAMILIES = {"t5": "t5", "mt5": "t5", "bert": "bert"}  # model_type -> family
CONTEXT = 128  # tokens per caption; Imagen's paper does not say (its ports take 128 or 256)
LICENCE = "the weights remain under their authors' terms; read the licence that came with them"
SIZES = {
    "t5": ("d_model", "num_layers", "num_heads", "d_ff", "vocab_size"),
    "bert": (
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "intermediate_size",
        "vocab_size",
    ),
}
FIXED = {
    "t5": {
        "feed_forward_proj": "gated-gelu",  # version 1.0 has ReLU and no gate
        "relative_attention_num_buckets": 32,
        "relative_attention_max_distance": 128,
    },
    "bert": {
        "hidden_act": "gelu",
        "position_embedding_type": "absolute",
        "type_vocab_size": 2,
        "is_decoder": False,
    },
}
# Additional tensors in a file: T5's decoder, and heads of BERT.
BESIDE = ("decoder.", "lm_head.", "pooler.", "cls.", "embeddings.position_ids")
PREFIXES = ("bert.", "model.")
T5_BLOCK = {
    "attention_norm/scale": ("layer.0.layer_norm.weight", "same"),
    **{f"{n}/kernel": (f"layer.0.SelfAttention.{n}.weight", "linear") for n in "qkv"},
    "out/kernel": ("layer.0.SelfAttention.o.weight", "linear"),
    "mlp_norm/scale": ("layer.1.layer_norm.weight", "same"),
    "gate/kernel": ("layer.1.DenseReluDense.wi_0.weight", "linear"),
    "up/kernel": ("layer.1.DenseReluDense.wi_1.weight", "linear"),
    "down/kernel": ("layer.1.DenseReluDense.wo.weight", "linear"),
}
BERT_BLOCK = {
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "out": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "up": "intermediate.dense",
    "down": "output.dense",
    "mlp_norm": "output.LayerNorm",
}


def is_language_model(folder: pathlib.Path) -> bool:
    """True if a folder contains a T5 or BERT of transformers."""
    path = folder / CONFIG
    return path.is_file() and read_json(path).get("model_type") in FAMILIES


def stage(folder: pathlib.Path, *, context: int | None = None) -> ConvertedStage:
    """Returns the encoder in a folder of transformers as a stage.

    Args:
        folder: folder with config.json and safetensors, sharded or not.
        context: tokens per caption; None = 128, or BERT's positions if those are fewer.

    Raises:
        UserError: the model is another one, or its variant is not supported.
    """
    path = folder / CONFIG
    cfg = config(read_json(path), context=context, where=str(path))
    return ConvertedStage(
        name="text_encoder",
        stage="text_encoder",
        config={"model": cfg},
        facts={"text_width": cfg.width},
        source=tidy(open_tensors(folder), cfg),
        entries=entries(cfg),
        abstract=configs.described(lambda: abstract.language_encoder(cfg), where=str(path)),
    )


def config(
    settings: Mapping[str, Any], *, context: int | None, where: str
) -> LanguageEncoderConfig:
    """Returns our config for a config.json of transformers.

    Raises:
        UserError: the model is of another kind, or differs from ours.
    """
    kind = settings.get("model_type")
    if kind not in FAMILIES:
        raise UserError(f"{where} is of a {kind}; expected one of {', '.join(FAMILIES)}.")
    family = FAMILIES[kind]
    configs.check_fixed(settings, FIXED[family], where=where)
    names = SIZES[family]
    width, depth, heads, mlp, vocab = configs.required_sizes(settings, names, where=where)
    if family == "t5":
        if "feed_forward_proj" not in settings:
            raise UserError(
                f"{where} has no feed_forward_proj, so it is a T5 of version 1.0 (ReLU); expected "
                "version 1.1 or Flan-T5, with 'gated-gelu'."
            )
        own = {
            "head_width": settings.get("d_kv", 64),
            "positions": settings.get("n_positions", 512),
            "eps": settings.get("layer_norm_epsilon", 1e-6),
        }
    else:
        own = {
            "head_width": width // heads,
            "positions": settings.get("max_position_embeddings", 512),
            "eps": settings.get("layer_norm_eps", 1e-12),
        }
    values = {
        "family": family,
        "width": width,
        "depth": depth,
        "heads": heads,
        "mlp": mlp,
        "vocab_size": vocab,
        "context": context or min(CONTEXT, own["positions"]),
        **own,
    }
    return configs.sized(LanguageEncoderConfig, values, where=where)


def settings(cfg: LanguageEncoderConfig) -> dict[str, Any]:
    """Returns the config.json of a T5 encoder; inverts `config`.

    Raises:
        UserError: the encoder is not a T5.
    """
    if cfg.family != "t5":
        raise UserError(
            f"the text encoder is a {cfg.family}; only a T5 can be written. Use --to=safetensors."
        )
    sizes = (cfg.width, cfg.depth, cfg.heads, cfg.mlp, cfg.vocab_size)
    return {
        "model_type": "t5",
        "architectures": ["T5EncoderModel"],
        "is_encoder_decoder": False,
        **FIXED["t5"],
        **dict(zip(SIZES["t5"], sizes, strict=True)),
        "d_kv": cfg.head_width,
        "n_positions": cfg.positions,
        "layer_norm_epsilon": cfg.eps,
        "pad_token_id": 0,
        "eos_token_id": 1,
    }


def tidy(source: TensorSource, cfg: LanguageEncoderConfig) -> TensorSource:
    """Removes additional tensors, and unifies names that differ between files.

    The names of a complete BERT have a prefix; T5's token table has two names, of which safetensors
    stores one.
    """
    for prefix in PREFIXES:
        if any(name.startswith(f"{prefix}embeddings.") for name in source.shapes):
            source = source.below(prefix)
    source = source.without(name for name in source.shapes if name.startswith(BESIDE))
    if cfg.family == "t5":
        table, alias = "shared.weight", "encoder.embed_tokens.weight"
        if table not in source.shapes and alias in source.shapes:
            shapes = {table if name == alias else name: s for name, s in source.shapes.items()}
            read = source.read
            return TensorSource(source.where, shapes, lambda n: read(alias if n == table else n))
        source = source.without([alias])
    return source


def entries(cfg: LanguageEncoderConfig) -> list[Entry]:
    """Returns the table of an encoder."""
    return _t5(cfg) if cfg.family == "t5" else _bert(cfg)


def _t5(cfg: LanguageEncoderConfig) -> list[Entry]:
    bias = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    table = [
        Entry("tokens", "shared.weight"),
        Entry("relative", bias),
        Entry("final_norm/scale", "encoder.final_layer_norm.weight"),
    ]
    for layer in range(cfg.depth):
        for leaf, (name, form) in T5_BLOCK.items():
            table.append(Entry(f"blocks/{leaf}", f"encoder.block.{layer}.{name}", form, layer))
    return table


def _bert(cfg: LanguageEncoderConfig) -> list[Entry]:
    table = [
        Entry("tokens", "embeddings.word_embeddings.weight"),
        Entry("positions", "embeddings.position_embeddings.weight"),
        Entry("types", "embeddings.token_type_embeddings.weight"),
        *norm("first_norm", "embeddings.LayerNorm"),
    ]
    for layer in range(cfg.depth):
        for leaf, name in BERT_BLOCK.items():
            rows = norm if leaf.endswith("norm") else linear
            table += rows(f"blocks/{leaf}", f"encoder.layer.{layer}.{name}", layer=layer)
    return table
