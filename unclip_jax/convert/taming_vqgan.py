"""VQGANs of taming-transformers (arXiv 2012.09841): f8 with Gumbel codes, f16 with a codebook.

Sizes are inferred from names and shapes. The pixel range is not in the file and varies between
models with the same network, so the caller has to give it.
"""

import pathlib
import re
from collections.abc import Sequence

from unclip_jax.convert import abstract
from unclip_jax.convert.converted_stage import ConvertedStage
from unclip_jax.core.checks import UserError
from unclip_jax.core.config import as_dict
from unclip_jax.models.dvae import DvaeConfig
from unclip_jax.models.vqgan import PIXELS, VqganConfig
from unclip_jax.weight_files import torch_files
from unclip_jax.weight_files.tensor_source import SAFE, TensorSource, open_tensors
from unclip_jax.weight_files.tensor_table import Entry, linear, norm

LICENCE = "MIT (CompVis/taming-transformers)"
IMAGE_SIZE = 256  # as in the published models; the networks are convolutional
MARK = "quantize.embedding.weight", "quantize.embed.weight"
LOSS = re.compile(r"^loss\.|\.num_batches_tracked$")  # discriminator and LPIPS


def open_vqgan(sources: Sequence[pathlib.Path]) -> TensorSource | None:
    """Returns the tensors of a VQGAN in a single file; None if the file has other contents.

    Raises:
        UserError: the file is damaged, or its pickle contains more than tensors.
    """
    path = sources[0]
    if len(sources) > 1 or not path.is_file() or path.suffix not in (SAFE, *torch_files.SUFFIXES):
        return None
    source = open_tensors(path)
    names = source.shapes.keys()
    if "encoder.conv_in.weight" not in names or not set(MARK) & names:
        return None
    return source.without(name for name in names if LOSS.search(name))


def stage(source: TensorSource, *, pixels: str | None) -> ConvertedStage:
    """Reads a VQGAN as the stage `dvae`.

    Args:
        source: its tensors.
        pixels: range of its images, "signed" or "unit".

    Raises:
        UserError: the range is missing, or tensors differ.
    """
    if pixels not in PIXELS:
        raise UserError(
            f"{source.where} is a VQGAN, of which there are two kinds: images in [-1, 1] (taming-"
            "transformers: --pixels=signed) and in [0, 1] (DALL-E mini's: --pixels=unit); give the "
            "one whose reconstruction of a mid-grey image is mid-grey."
        )
    cfg = config(source, pixels=pixels)
    return ConvertedStage(
        name="dvae",
        stage="dvae",
        config={"model": as_dict(cfg), "reconstruction": "l1"},
        facts={"image_size": cfg.image_size, "grid": cfg.grid, "code_count": cfg.code_count},
        source=source,
        entries=entries(cfg),
        abstract=abstract.dvae(cfg),
    )


def config(source: TensorSource, *, pixels: str) -> DvaeConfig:
    """Infers the sizes from names and shapes of tensors.

    Raises:
        UserError: tensors have other names.
    """
    shapes = source.shapes
    try:
        levels = _count(shapes, r"encoder\.down\.(\d+)\.")
        blocks = _count(shapes, r"encoder\.down\.0\.block\.(\d+)\.")
        width = shapes["encoder.conv_in.weight"][0]
        outputs = [shapes[f"encoder.down.{i}.block.0.conv1.weight"][0] for i in range(levels)]
        gumbel = "quantize.proj.weight" in shapes
        code_count, code_dim = shapes[MARK[gumbel]]
        attended = [i for i in range(levels) if f"encoder.down.{i}.attn.0.q.weight" in shapes]
        z_channels, _ = shapes["post_quant_conv.weight"][:2]
    except (KeyError, ValueError):
        raise UserError(
            f"{source.where} does not hold the tensors of a VQGAN of taming-transformers "
            "(encoder.conv_in, encoder.down.0.block.0...., quantize, post_quant_conv); copy it "
            "again."
        ) from None
    return DvaeConfig(
        image_size=IMAGE_SIZE,
        hidden=width,
        groups=levels,
        blocks=blocks,
        quantizer="gumbel" if gumbel else "vq",
        code_count=code_count,
        code_dim=code_dim,
        out_channels=3,
        vqgan=VqganConfig(
            multiples=tuple(output // width for output in outputs),
            attention_at=tuple(attended),
            z_channels=z_channels,
            pixels=pixels,
        ),
    )


def _count(names: object, pattern: str) -> int:
    """Returns one more than the largest number that a pattern matches in names."""
    matches = (re.match(pattern, str(name)) for name in names)  # pyright: ignore[reportGeneralTypeIssues]
    return 1 + max(int(match[1]) for match in matches if match)


def entries(cfg: DvaeConfig) -> list[Entry]:
    """Returns the table of both networks and of the codebook."""
    sizes, rows = cfg.vqgan, []
    assert sizes is not None
    gumbel = cfg.quantizer == "gumbel"
    before = cfg.hidden
    for level, multiple in enumerate(sizes.multiples):
        for i in range(cfg.blocks):
            here = (f"encoder/down_{level}_{i}", f"encoder.down.{level}")
            attends = level in sizes.attention_at
            rows += _unit(*here, i, shortcut=before != cfg.hidden * multiple, attends=attends)
            before = cfg.hidden * multiple
        if level < len(sizes.multiples) - 1:
            name = f"encoder.down.{level}.downsample.conv"
            rows += linear(f"encoder/down_{level}_sample", name, form="conv")
    for level, multiple in reversed(list(enumerate(sizes.multiples))):
        for i in range(cfg.blocks + 1):
            here = (f"decoder/up_{level}_{i}", f"decoder.up.{level}")
            attends = level in sizes.attention_at
            rows += _unit(*here, i, shortcut=before != cfg.hidden * multiple, attends=attends)
            before = cfg.hidden * multiple
        if level:
            rows += linear(
                f"decoder/up_{level}_sample", f"decoder.up.{level}.upsample.conv", form="conv"
            )
    for side in ("encoder", "decoder"):
        rows += _block(f"{side}/middle_0", f"{side}.mid.block_1", shortcut=False)
        rows += _attention(f"{side}/middle_attention", f"{side}.mid.attn_1")
        rows += _block(f"{side}/middle_1", f"{side}.mid.block_2", shortcut=False)
        rows += norm(f"{side}/head_norm", f"{side}.norm_out")
        for name in ("conv_in", "conv_out"):
            rows += linear(f"{side}/{name}", f"{side}.{name}", form="conv")
    rows += linear("encoder/to_code", "quant_conv", form="conv_1x1")
    rows += linear("decoder/from_code", "post_quant_conv", form="conv_1x1")
    rows += linear("encoder/logits", "quantize.proj", form="conv_1x1") if gumbel else []
    return [*rows, Entry("codebook", MARK[gumbel])]


def _unit(leaf: str, name: str, index: int, *, shortcut: bool, attends: bool) -> list[Entry]:
    """Returns the rows of one block of a level, and of its attention."""
    rows = _block(leaf, f"{name}.block.{index}", shortcut=shortcut)
    return rows + (_attention(f"{leaf}_attention", f"{name}.attn.{index}") if attends else [])


def _block(leaf: str, name: str, *, shortcut: bool) -> list[Entry]:
    rows = []
    for i in (1, 2):
        rows += norm(f"{leaf}/norm_{i}", f"{name}.norm{i}")
        rows += linear(f"{leaf}/conv_{i}", f"{name}.conv{i}", form="conv")
    if shortcut:
        rows += linear(f"{leaf}/shortcut", f"{name}.nin_shortcut", form="conv_1x1")
    return rows


def _attention(leaf: str, name: str) -> list[Entry]:
    rows = norm(f"{leaf}/norm", f"{name}.norm")
    for ours, theirs in (("q", "q"), ("k", "k"), ("v", "v"), ("out", "proj_out")):
        rows += linear(f"{leaf}/{ours}", f"{name}.{theirs}", form="conv_1x1")
    return rows
