"""Reader of a CLIP on its own: a folder of transformers or open_clip, or a single file."""

import pathlib

from unclip_jax.convert import clip_tensors, openai_clip
from unclip_jax.convert.assembly import clip_stage
from unclip_jax.convert.converted_stage import ConvertedStage
from unclip_jax.convert.tensor_source import open_tensors, read_json
from unclip_jax.core.checks import UserError

CONFIG, OPEN_CLIP = "config.json", "open_clip_config.json"
PREPROCESSOR = "preprocessor_config.json"
TOKENIZER_FILES = ("tokenizer.json", "merges.txt", "bpe_simple_vocab_16e6.txt.gz")

# Names that the original U-Nets of GLIDE have and no CLIP has.
GLIDE = {"input_blocks.0.0.weight", "transformer_proj.weight", "token_embedding.weight"}


def clip_from(path: pathlib.Path) -> list[ConvertedStage]:
    """Reads the CLIP at `path` as a stage.

    Raises:
        UserError: neither a layout of transformers nor of OpenAI, or one that does not fit.
    """
    folder = path if path.is_dir() else path.parent
    tensors = open_tensors(path)
    if tensors.shapes.keys() >= GLIDE:
        raise UserError(
            f"{path} is a network of GLIDE, which is not supported: its captions are GPT-2's "
            "tokens and its upsampler attends to them; expected weights of CLIP, "
            "Karlo or Kandinsky's prior."
        )
    if openai_clip.is_openai(tensors):
        settings = folder / OPEN_CLIP
        cfg = openai_clip.config(tensors, read_json(settings) if settings.is_file() else None)
        return [clip_stage(cfg, openai_clip.as_transformers(tensors), clip_tensors.entries(cfg))]
    if not (folder / CONFIG).is_file():
        raise UserError(
            f"{path} has no {CONFIG} beside it and its tensors are not named as OpenAI's CLIP "
            "names them; give a CLIP folder of transformers, a CLIP file of OpenAI or open_clip, "
            "or a pipeline directory of diffusers."
        )
    cfg = clip_tensors.config(read_json(folder / CONFIG), where=str(folder / CONFIG))
    if (folder / PREPROCESSOR).is_file():
        cfg = clip_tensors.normalised(cfg, read_json(folder / PREPROCESSOR))
    return [clip_stage(cfg, clip_tensors.tidy(tensors, cfg), clip_tensors.entries(cfg))]


def tokenizer_beside(path: pathlib.Path) -> pathlib.Path | None:
    """Returns the folder of `path` if it holds a tokenizer."""
    folder = path if path.is_dir() else path.parent
    return folder if any((folder / name).is_file() for name in TOKENIZER_FILES) else None
