"""The text tower of a CLIP as the stage `text_encoder`: Imagen's alternative to a language model.

Imagen reads the penultimate layer (Saharia et al. 2022, arXiv 2205.11487, appendix D.1), so the
last block, the final norm and the projection are omitted.
"""

from unclip_jax.convert import abstract
from unclip_jax.convert.clip_tensors import BLOCK
from unclip_jax.convert.converted_stage import ConvertedStage
from unclip_jax.core.checks import UserError
from unclip_jax.models.clip_config import ClipConfig
from unclip_jax.models.language_encoder import LanguageEncoderConfig
from unclip_jax.weight_files.tensor_table import Entry, linear, norm

LEAVES = {  # our names of the parts of a CLIP's block -> those of a language model's
    "attention/q": "q",
    "attention/k": "k",
    "attention/v": "v",
    "attention/out": "out",
    "norm_1": "attention_norm",
    "norm_2": "mlp_norm",
    "mlp/fc_1": "up",
    "mlp/fc_2": "down",
}


def stage(clip: ConvertedStage, *, context: int | None) -> ConvertedStage:
    """Returns the text tower of a CLIP as a stage.

    Args:
        clip: the CLIP, as read by `standalone_clip.clip_from`.
        context: tokens per caption; None = as many as the CLIP reads.

    Raises:
        UserError: the CLIP has no text tower, or reads fewer tokens.
    """
    cfg = config(clip.config["model"], context=context, where=clip.source.where)
    table = entries(cfg)
    used = {entry.name for entry in table}
    return ConvertedStage(
        name="text_encoder",
        stage="text_encoder",
        config={"model": cfg},
        facts={"text_width": cfg.width},
        source=clip.source.without(name for name in clip.source.shapes if name not in used),
        entries=table,
        abstract=abstract.language_encoder(cfg),
    )


def config(clip: ClipConfig, *, context: int | None, where: str) -> LanguageEncoderConfig:
    """Returns the config of a CLIP's text tower as an encoder.

    Raises:
        UserError: the CLIP has no text tower, or reads fewer tokens.
    """
    if "text" not in clip.towers:
        raise UserError(f"{where} is a CLIP without a text tower; give a whole CLIP or that tower.")
    return LanguageEncoderConfig(
        family="clip",
        width=clip.text_width,
        depth=clip.text_depth - 1,
        heads=clip.text_heads,
        head_width=clip.text_width // clip.text_heads,
        mlp=clip.text_mlp or 4 * clip.text_width,
        vocab_size=clip.vocab_size,
        context=context or clip.context,
        positions=clip.context,
        eps=1e-5,
        activation=clip.activation,
    )


def entries(cfg: LanguageEncoderConfig) -> list[Entry]:
    """Returns the table of the blocks up to the penultimate layer."""
    table = [
        Entry("tokens", "text_model.embeddings.token_embedding.weight"),
        Entry("positions", "text_model.embeddings.position_embedding.weight"),
    ]
    for layer in range(cfg.depth):
        for part, name in BLOCK.items():
            rows = norm if part.startswith("norm") else linear
            leaf, where = LEAVES[part], f"text_model.encoder.layers.{layer}.{name}"
            table += rows(f"blocks/{leaf}", where, layer=layer)
    return table
