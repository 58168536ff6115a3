"""Reader of a single CLIP: a folder of transformers or open_clip, or a file."""

import pathlib
import sys

from unclip_jax.convert import clip_tensors, openai_clip, other_clips, preprocessing
from unclip_jax.convert.assembly import clip_stage
from unclip_jax.convert.converted_stage import ConvertedStage
from unclip_jax.convert.openai_clip import OPEN_CLIP
from unclip_jax.core.checks import UserError, listed
from unclip_jax.weight_files import configs, prefixes
from unclip_jax.weight_files.tensor_source import TensorSource, open_tensors, read_json

CONFIG = "config.json"
PREPROCESSOR = "preprocessor_config.json"
TOKENIZER_FILES = ("tokenizer.json", "merges.txt", "bpe_simple_vocab_16e6.txt.gz")
# Tensors by which a CLIP is recognised: OpenAI's names, transformers', and its bare text tower's.
ANCHORS = (
    "visual.conv1.weight",
    "text_model.embeddings.token_embedding.weight",
    "vision_model.embeddings.patch_embedding.weight",
    "embeddings.token_embedding.weight",
)

# Names that GLIDE's original U-Nets have and no CLIP has.
GLIDE = {"input_blocks.0.0.weight", "transformer_proj.weight", "token_embedding.weight"}


def clip_from(path: pathlib.Path) -> list[ConvertedStage]:
    """Reads the CLIP at `path` as a stage.

    Raises:
        UserError: the layout is neither that of transformers nor OpenAI's, or tensors do not fit.
    """
    folder = path if path.is_dir() else path.parent
    tensors = open_tensors(path)
    if tensors.shapes.keys() >= GLIDE:
        raise UserError(
            f"{path} is a network of GLIDE, which is not supported: its captions are GPT-2's "
            "tokens and its upsampler attends to them; expected weights of CLIP, "
            "Karlo or Kandinsky's prior."
        )
    open_clip, transformers = folder / OPEN_CLIP, folder / CONFIG
    tensors = openai_clip.own_names(prefixes.stripped(tensors, ANCHORS))
    if openai_clip.is_openai(tensors) or (open_clip.is_file() and not transformers.is_file()):
        return [_of_openai(tensors, open_clip)]
    if not transformers.is_file():
        other_clips.reject(tensors, {})
        names = listed(sorted(tensors.shapes), most=3, separator=", ")
        raise UserError(
            f"{path} has no {CONFIG} beside it and its tensors ({names}) are not named as OpenAI's "
            "CLIP names them; give a CLIP folder of transformers, a CLIP file of OpenAI or "
            "open_clip, or a pipeline directory of diffusers."
        )
    settings, where = read_json(transformers), str(transformers)
    other_clips.reject(tensors, settings)
    cfg = clip_tensors.config(settings, where=where)
    if (beside := folder / PREPROCESSOR).is_file():
        cfg = preprocessing.of_transformers(cfg, read_json(beside), where=str(beside))
    return [clip_stage(cfg, clip_tensors.tidy(tensors, cfg), clip_tensors.entries(cfg))]


def _of_openai(tensors: TensorSource, beside: pathlib.Path) -> ConvertedStage:
    """Returns the stage of a CLIP with OpenAI's names; `beside` is open_clip's config, if any.

    Raises:
        UserError: the model is another one, or does not match its config.
    """
    settings = read_json(beside) if beside.is_file() else None
    if settings is not None and "model_cfg" not in settings and "vision_cfg" in settings:
        settings = {"model_cfg": settings}  # the form of the configs in open_clip's package
    model = configs.group(settings or {}, "model_cfg", where=str(beside))
    other_clips.reject(tensors, model)
    if settings is None:
        sys.stderr.write(
            f"{tensors.where} has no {OPEN_CLIP} beside it, so it is read as OpenAI's: quick_gelu "
            "and heads of 64. For weights of open_clip put that file beside them.\n"
        )
    cfg = openai_clip.config(tensors, settings, where=str(beside))
    return clip_stage(cfg, openai_clip.as_transformers(tensors), clip_tensors.entries(cfg))


def tokenizer_beside(path: pathlib.Path) -> pathlib.Path | None:
    """Returns the folder of `path` if it holds a tokenizer."""
    folder = path if path.is_dir() else path.parent
    return folder if any((folder / name).is_file() for name in TOKENIZER_FILES) else None
