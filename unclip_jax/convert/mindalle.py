"""minDALL-E (kakaobrain/minDALL-E): its VQGAN as `dvae` and its transformer as `dalle`.

The folder contains `stage1_last.ckpt`, `stage2_last.ckpt`, `tokenizer/` and `config.yaml`. The
transformer reads one causal stream without a start-of-image token; the last state of the caption
predicts the first code.
"""

import pathlib
import re
from collections.abc import Mapping

from unclip_jax.convert import abstract, taming_vqgan
from unclip_jax.convert.converted_stage import ConvertedStage
from unclip_jax.core.checks import UserError
from unclip_jax.core.config import as_dict
from unclip_jax.core.files import read_small
from unclip_jax.models.dalle import DalleConfig
from unclip_jax.tokenization.caption_tokenizer import load
from unclip_jax.tokenization.language_tokenizers import CHARACTER_PAIRS
from unclip_jax.weight_files.tensor_source import Shape, TensorSource, open_tensors
from unclip_jax.weight_files.tensor_table import Entry, norm, transformer

LICENCE = "CC-BY-NC-SA 4.0 (kakaobrain/minDALL-E)"
STAGE_1, STAGE_2, SETTINGS = "stage1_last.ckpt", "stage2_last.ckpt", "config.yaml"
TOP_K = 256  # the authors' setting for sampling, at temperature 1
HEAD = 64  # channels per head, unless the settings state the number of heads
PARTS = {
    "norm_1": "ln1",
    "norm_2": "ln2",
    "attention/q": "attn.query",
    "attention/k": "attn.key",
    "attention/v": "attn.value",
    "attention/out": "attn.proj",
    "mlp/fc_1": "mlp.0",
    "mlp/fc_2": "mlp.2",
}


def is_mindalle(folder: pathlib.Path) -> bool:
    """True if a folder contains both networks."""
    return all((folder / name).is_file() for name in (STAGE_1, STAGE_2))


def tokenizer_dir(folder: pathlib.Path) -> pathlib.Path:
    """Returns the folder of the tokenizer.

    Raises:
        UserError: it is missing.
    """
    path = folder / "tokenizer"
    if not all((path / name).is_file() for name in CHARACTER_PAIRS):
        raise UserError(
            f"{folder} has no tokenizer ({', '.join(CHARACTER_PAIRS)}); copy its folder "
            "`tokenizer` too, or give --tokenizer=DIR."
        )
    return path


def stages(folder: pathlib.Path, tokenizer: pathlib.Path) -> list[ConvertedStage]:
    """Reads both networks.

    Args:
        folder: folder of the weights.
        tokenizer: folder of the tokenizer.

    Raises:
        UserError: tensors or settings differ from those of minDALL-E.
    """
    vqgan = taming_vqgan.open_vqgan([folder / STAGE_1])
    if vqgan is None:
        raise UserError(f"{folder / STAGE_1} holds no VQGAN; copy it again.")
    source = open_tensors(folder / STAGE_2)
    pad = load(tokenizer).end
    cfg = _config(source, _settings(folder), pad_token=pad)
    dalle = ConvertedStage(
        name="dalle",
        stage="dalle",
        config={"model": as_dict(cfg), "sampling": {"top_k": min(TOP_K, cfg.code_count)}},
        facts={"grid": cfg.grid, "code_count": cfg.code_count},
        source=source,
        entries=_entries(cfg),
        abstract=abstract.dalle(cfg),
    )
    return [taming_vqgan.stage(vqgan, pixels="signed"), dalle]


def _settings(folder: pathlib.Path) -> Mapping[str, str]:
    """Returns the scalar settings by key; {} without a file."""
    path = folder / SETTINGS
    text = read_small(path).decode("utf-8", "replace") if path.is_file() else ""
    return dict(re.findall(r"^\s*(\w+):[ \t]*([^\s#]+)", text, re.MULTILINE))


def _config(source: TensorSource, settings: Mapping[str, str], *, pad_token: int) -> DalleConfig:
    """Infers the sizes from shapes and settings.

    Raises:
        UserError: tensors have other names, or an option is not supported.
    """
    if settings.get("gelu_use_approx", "false").lower() == "true":
        raise UserError(
            f"{source.where} was trained with gelu_use_approx, which is not supported; the "
            "published model has the exact GELU. Give that."
        )
    shapes: Mapping[str, Shape] = source.shapes
    try:
        vocab_size, width = shapes["tok_emb_txt.weight"]
        code_count, _ = shapes["tok_emb_img.weight"]
        context, places = shapes["pos_emb_txt.weight"][0], shapes["pos_emb_img.weight"][0]
        layers = [re.match(r"blocks\.(\d+)\.", name) for name in shapes]
        depth = 1 + max(int(match[1]) for match in layers if match)
    except (KeyError, ValueError):
        raise UserError(
            f"{source.where} does not hold the tensors of minDALL-E's transformer (tok_emb_txt, "
            "pos_emb_img, blocks.0...., head_img); copy it again."
        ) from None
    return DalleConfig(
        width=width,
        depth=depth,
        heads=int(settings.get("n_heads", width // HEAD)),
        context=context,
        vocab_size=vocab_size,
        grid=round(places**0.5),
        code_count=code_count,
        attention=("full",),
        start_of_image=False,
        image_positions="table",
        pad_token=pad_token,
        head_bias=False,
    )


def _entries(cfg: DalleConfig) -> list[Entry]:
    """Returns the table of the transformer."""
    rows = [
        Entry("captions/tokens", "tok_emb_txt.weight"),
        Entry("captions/positions", "pos_emb_txt.weight"),
        Entry("codes", "tok_emb_img.weight"),
        Entry("places", "pos_emb_img.weight"),
        Entry("text_out/kernel", "head_txt.weight", "linear"),
        Entry("code_out/kernel", "head_img.weight", "linear"),
        *norm("final_norm", "ln_f"),
    ]
    return rows + transformer("stream", "blocks", depth=cfg.depth, parts=PARTS)
