"""Writer of CLIP's tokenizer as files for any version of transformers."""

import pathlib
import shutil
from typing import Any

from unclip_jax.core.checks import UserError
from unclip_jax.weight_files.tensor_source import read_json
from unclip_jax.weight_files.writing import write_json

START, END = "<|startoftext|>", "<|endoftext|>"


def special_ids(folder: pathlib.Path) -> dict[str, int]:
    """Returns the ids of the start and end token: {"bos": ..., "eos": ...}."""
    vocab = _vocabulary(read_json(folder / "tokenizer.json"), folder)
    return {"bos": vocab[START], "eos": vocab[END]}


def write(folder: pathlib.Path, out: pathlib.Path, *, context: int) -> None:
    """Writes tokenizer.json into `out`, and the files for versions that do not read it.

    Args:
        folder: the tokenizer of an export.
        out: folder to write.
        context: length to which captions are padded.

    Raises:
        UserError: no tokenizer.json in `folder`, or not one of CLIP's kind.
    """
    description = read_json(folder / "tokenizer.json")
    vocab = _vocabulary(description, folder)
    out.mkdir(parents=True, exist_ok=True)
    shutil.copy(folder / "tokenizer.json", out / "tokenizer.json")
    write_json(out / "vocab.json", vocab)
    pairs = (pair if isinstance(pair, str) else " ".join(pair) for pair in _merges(description))
    (out / "merges.txt").write_text("\n".join(["#version: 0.2", *pairs]) + "\n", "utf-8")
    named = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": _padding(vocab)}
    write_json(out / "special_tokens_map.json", named)
    kind = {"tokenizer_class": "CLIPTokenizer", "model_max_length": context}
    write_json(out / "tokenizer_config.json", {**named, **kind})


def _vocabulary(description: dict[str, Any], folder: pathlib.Path) -> dict[str, int]:
    vocab = description.get("model", {}).get("vocab")
    if not isinstance(vocab, dict):
        raise UserError(
            f"{folder} holds no byte-pair tokenizer; expected one of CLIP's kind. Give its folder."
        )
    added = {token["content"]: token["id"] for token in description.get("added_tokens", [])}
    return {**vocab, **added}


def _merges(description: dict[str, Any]) -> list[Any]:
    return description["model"].get("merges", [])


def _padding(vocab: dict[str, int]) -> str:
    """Returns the token of id 0, with which captions are padded here and in Karlo."""
    return next(token for token, number in vocab.items() if number == 0)
