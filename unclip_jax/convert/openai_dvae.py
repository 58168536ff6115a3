"""OpenAI's published discrete VAE: `encoder.pkl` and `decoder.pkl`, or their state dicts.

The published files are pickled modules, which load by running code of the package `dall_e`. Here
they are opened with `weights_only` and inert classes in place of the ten that they name, so that
none of that code runs; any other name is rejected.
"""

import pathlib
from collections.abc import Sequence

from unclip_jax.convert import abstract
from unclip_jax.convert.converted_stage import ConvertedStage
from unclip_jax.core.checks import UserError
from unclip_jax.core.config import as_dict
from unclip_jax.models.dvae import DvaeConfig
from unclip_jax.weight_files import torch_files
from unclip_jax.weight_files.tensor_source import TensorSource, in_memory, joined, open_tensors
from unclip_jax.weight_files.tensor_table import Entry

SIDES = ("encoder", "decoder")
PICKLE = ".pkl"
LICENCE = "modified MIT (openai/DALL-E)"
# Names in the published pickles, and the classes of PyTorch among them.
CLASSES = (
    "dall_e.encoder.Encoder",
    "dall_e.encoder.EncoderBlock",
    "dall_e.decoder.Decoder",
    "dall_e.decoder.DecoderBlock",
    "dall_e.utils.Conv2d",
    "torch.nn.modules.activation.ReLU",
    "torch.nn.modules.container.Sequential",
    "torch.nn.modules.linear.Identity",
    "torch.nn.modules.pooling.MaxPool2d",
    "torch.nn.modules.upsampling.Upsample",
)
IMAGE_SIZE = 256  # as in the paper; the networks are convolutional


def files(sources: Sequence[pathlib.Path]) -> dict[str, pathlib.Path]:
    """Returns the files of encoder and decoder in `sources` or their folder; {} if not both."""
    folder = sources[0] if sources[0].is_dir() else None
    paths = sorted(folder.iterdir()) if folder else sources
    suffixes = (PICKLE, ".safetensors", *torch_files.SUFFIXES)
    sides = {path.stem: path for path in paths if path.stem in SIDES and path.suffix in suffixes}
    return sides if sides.keys() == {*SIDES} else {}


def stage(paths: dict[str, pathlib.Path]) -> ConvertedStage:
    """Reads the two files as the stage `dvae`.

    Raises:
        UserError: a file is damaged, names other classes, or contains other tensors.
    """
    source = joined(
        str(paths["encoder"].parent), {side: _tensors(path) for side, path in paths.items()}
    )
    cfg = _config(source)
    return ConvertedStage(
        name="dvae",
        stage="dvae",
        config={"model": as_dict(cfg)},
        facts={"image_size": cfg.image_size, "grid": cfg.grid, "code_count": cfg.code_count},
        source=source,
        entries=_entries(cfg),
        abstract=abstract.dvae(cfg),
    )


def _tensors(path: pathlib.Path) -> TensorSource:
    if path.suffix != PICKLE:
        return open_tensors(path)
    return in_memory(str(path), torch_files.read_module(path, classes=CLASSES))


def _config(source: TensorSource) -> DvaeConfig:
    """Infers the sizes from the shapes of tensors.

    Raises:
        UserError: tensors have other names.
    """
    shapes = source.shapes
    try:
        code_count = shapes["encoder/blocks.output.conv.w"][0]
        hidden = shapes["encoder/blocks.input.w"][0]
        decoder_in = shapes["decoder/blocks.input.w"][0]
        out = shapes["decoder/blocks.output.conv.w"][0]
        parts = {tuple(name.split(".")[1:3]) for name in shapes if "encoder/" in name}
        groups = len({group for group, *_ in parts if group.startswith("group_")})
        count = len({block for group, block in parts if group == "group_1"})
    except (KeyError, ValueError):
        raise UserError(
            f"{source.where} does not hold the tensors of OpenAI's discrete VAE "
            "(blocks.input.w, blocks.group_1.block_1...., blocks.output.conv.w); give its "
            "encoder.pkl and decoder.pkl, or their state dicts as encoder.safetensors and "
            "decoder.safetensors."
        ) from None
    return DvaeConfig(
        image_size=IMAGE_SIZE,
        hidden=hidden,
        groups=groups,
        blocks=count,
        decoder_in=decoder_in,
        code_count=code_count,
        out_channels=out,
    )


def _entries(cfg: DvaeConfig) -> list[Entry]:
    """Returns the table of both networks."""
    rows, shapes = [], abstract.dvae(cfg)
    for side in SIDES:
        first = "conv" if side == "encoder" else "conv_1x1"
        rows += _conv(f"{side}/conv_in", f"{side}/blocks.input", first)
        rows += _conv(f"{side}/conv_out", f"{side}/blocks.output.conv")
        for leaf, block in shapes[side].items():
            if not leaf.startswith("group_"):
                continue
            theirs = f"{side}/blocks.{leaf.replace('_block_', '.block_')}"
            for i in range(1, 5):
                rows += _conv(f"{side}/{leaf}/conv_{i}", f"{theirs}.res_path.conv_{i}")
            if "identity" in block:
                rows += _conv(f"{side}/{leaf}/identity", f"{theirs}.id_path")
    return rows


def _conv(leaf: str, name: str, form: str = "conv") -> list[Entry]:
    return [Entry(f"{leaf}/kernel", f"{name}.w", form), Entry(f"{leaf}/bias", f"{name}.b")]
