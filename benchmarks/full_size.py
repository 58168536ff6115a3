"""The cost of Karlo at its full size: converts random weights and samples one image.

    python -m benchmarks.full_size --out=/tmp/full_size --steps=2

Writes OUT/karlo in the layout of diffusers (float16, 7 GB) and OUT/run (bfloat16, 7 GB), then
samples OUT/picture.png stage by stage, each command in its own process. Prints seconds, CPU seconds
and peak memory of both.
"""

import json
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from safetensors.numpy import save_file

from unclip_jax.cli import entry
from unclip_jax.cli.parser import Parser
from unclip_jax.convert import (
    abstract,
    assembly,
    clip_tensors,
    prior_tensors,
    schedulers,
    unet_tensors,
)
from unclip_jax.handoff.export import replace_manifest
from unclip_jax.handoff.load import read_manifest
from unclip_jax.tokenization import caption_tokenizer
from unclip_jax.weight_files import clip_tokenizer, tensor_table

CAPTION = "a red bicycle"
WIDTHS = [320, 640, 960, 1280]
CLASSES = {
    "text_encoder": ("transformers", "CLIPTextModelWithProjection"),
    "tokenizer": ("transformers", "CLIPTokenizer"),
    "prior": ("diffusers", prior_tensors.CLASS),
    "text_proj": ("unclip", assembly.TEXT_PROJ),
    "decoder": ("diffusers", unet_tensors.CONDITIONED),
    "super_res_first": ("diffusers", unet_tensors.PLAIN),
    "super_res_last": ("diffusers", unet_tensors.PLAIN),
}
# Sizes of Karlo v1 alpha, according to its public configs.
SETTINGS: Mapping[str, dict[str, Any]] = {
    "text_encoder": {
        "architectures": ["CLIPTextModelWithProjection"],
        "model_type": "clip_text_model",
        "vocab_size": 49408,
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "max_position_embeddings": 77,
        "projection_dim": 768,
        "hidden_act": "quick_gelu",
    },
    "prior": {
        "num_attention_heads": 32,
        "attention_head_dim": 64,
        "num_layers": 20,
        "embedding_dim": 768,
        "num_embeddings": 77,
    },
    "text_proj": dict(zip(assembly.TEXT_PROJ_SIZES, (4, 768, 1280, 1536), strict=True)),
    "decoder": {
        "sample_size": 64,
        "in_channels": 3,
        "out_channels": 6,
        "layers_per_block": 3,
        "block_out_channels": WIDTHS,
        "down_block_types": [unet_tensors.RESIDUAL["down"], *[unet_tensors.ATTENTION["down"]] * 3],
        "up_block_types": [*[unet_tensors.ATTENTION["up"]] * 3, unet_tensors.RESIDUAL["up"]],
        "cross_attention_dim": 1536,
        "attention_head_dim": 64,
    },
    "super_res_first": {
        "sample_size": 256,
        "in_channels": 6,
        "out_channels": 3,
        "layers_per_block": 3,
        "block_out_channels": WIDTHS,
        "down_block_types": [unet_tensors.RESIDUAL["down"]] * 4,
        "up_block_types": [unet_tensors.RESIDUAL["up"]] * 4,
    },
}


class Cost(NamedTuple):
    """Seconds, CPU seconds and peak memory of one command."""

    name: str
    seconds: float
    cpu: float
    gigabytes: float


def write(folder: pathlib.Path) -> None:
    """Writes a pipeline directory of Karlo's size, one component in memory at a time."""
    words = caption_tokenizer.train([CAPTION], vocab_size=caption_tokenizer.MIN_VOCAB + 16)
    words.save(folder / "words")
    clip_tokenizer.write(folder / "words", folder / "tokenizer", context=77)
    _json(folder / "model_index.json", {"_class_name": "UnCLIPPipeline", **_index()})
    for name, settings in _settings(words).items():
        _json(folder / name / "config.json", settings)
    for role, settings in schedulers.KARLO.items():
        named = {"_class_name": schedulers.CLASS, **settings}
        _json(folder / f"{role}_scheduler" / "scheduler_config.json", named)
    for name, shapes in _shapes(folder):
        tensors = {tensor: _random(tensor, shape) for tensor, shape in shapes.items()}
        file = "model" if name == "text_encoder" else "diffusion_pytorch_model"
        save_file(tensors, folder / name / f"{file}.safetensors")


def _index() -> dict[str, tuple[str, str]]:
    chain = {f"{role}_scheduler": ("diffusers", schedulers.CLASS) for role in schedulers.KARLO}
    return {**CLASSES, **chain}


def _settings(words: caption_tokenizer.Tokenizer) -> dict[str, dict[str, Any]]:
    both = {"super_res_last": SETTINGS["super_res_first"]}
    ids = {"bos_token_id": words.start, "eos_token_id": words.end}
    settings = {n: {"_class_name": CLASSES[n][1], **s} for n, s in {**SETTINGS, **both}.items()}
    return {**settings, "text_encoder": {**SETTINGS["text_encoder"], **ids}}


def _shapes(folder: pathlib.Path) -> Iterator[tuple[str, dict[str, tuple[int, ...]]]]:
    """Yields names and shapes of every component's tensors, from the tables used for reading."""

    def read(name: str) -> dict[str, Any]:
        return json.loads((folder / name / "config.json").read_text())

    words = clip_tensors.config(read("text_encoder"), where="text_encoder")
    yield "text_encoder", tensor_table.expected(clip_tensors.entries(words), abstract.clip(words))
    one = prior_tensors.config(read("prior"), vocab_size=words.vocab_size, where="prior")
    statistics = dict.fromkeys(prior_tensors.STATISTICS, (1, one.embed_dim))
    yield (
        "prior",
        tensor_table.expected(prior_tensors.entries(one), abstract.prior(one)) | statistics,
    )
    network = unet_tensors.config(read("decoder"), where="decoder")
    base = assembly.decoder_config(network, read("text_proj"), words)
    joined = tensor_table.expected(assembly.decoder_entries(base), abstract.decoder(base))
    for name in ("text_proj", "decoder"):
        prefix = f"{name}/"
        yield name, {n.removeprefix(prefix): s for n, s in joined.items() if n.startswith(prefix)}
    enlarging = assembly.upsampler_config(
        unet_tensors.config(read("super_res_first"), where=""), network
    )
    for name in ("super_res_first", "super_res_last"):
        table = unet_tensors.entries(enlarging.unet)
        yield name, tensor_table.expected(table, abstract.upsampler(enlarging))


def _random(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Returns gains and deviations of 1, offsets of 0, and random maps that preserve variance."""
    if len(shape) < 2 or name in prior_tensors.STATISTICS:
        ones = name == "clip_std" or (name.endswith("weight") and len(shape) == 1)
        return np.full(shape, float(ones), np.float16)
    scale = float(np.prod(shape[1:])) ** -0.5
    values = np.random.default_rng(0).standard_normal(1 << 20, np.float32)
    return np.resize((values * scale).astype(np.float16), shape)


def measure(name: str, arguments: Sequence[str]) -> Cost:
    """Runs a command of the package; returns its wall and CPU time and its peak memory."""
    started = time.monotonic()
    child = subprocess.Popen([sys.executable, "-m", *arguments])
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        raise subprocess.CalledProcessError(os.waitstatus_to_exitcode(status), arguments)
    cpu = usage.ru_utime + usage.ru_stime
    return Cost(name, time.monotonic() - started, cpu, usage.ru_maxrss / 1024**2)


def main(argv: Sequence[str]) -> None:
    """Writes the directory unless it exists, converts it, and samples from it."""
    parser = Parser("full_size", prog="python -m benchmarks.full_size")
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument(
        "--steps", default="2", help="sampling steps of every stage; Karlo's are 25, 25, 7"
    )
    args = parser.parse_args(argv)
    source, run = args.out / "karlo", args.out / "run"
    if not source.is_dir():
        write(source)
    convert = [str(source), f"--out={run}", "--dtype=bfloat16"]
    sample = [
        CAPTION,
        f"--models={run}",
        f"--out={args.out / 'picture.png'}",
        "--batch=1",
        "--by-stage",
    ]
    sample += [f"--prior-steps={args.steps}", f"--steps={args.steps}"]
    if not run.is_dir():
        _report(measure("convert", ["unclip_jax.convert", *convert]))
    _shorten(run / "upsampler_256" / "export", args.steps)
    _report(measure("sample", ["unclip_jax.sample", *sample]))


def _report(cost: Cost) -> None:
    name, seconds, cpu, size = cost
    sys.stdout.write(f"{name}: {seconds:.0f} s ({cpu:.0f} s of CPU), {size:.1f} GiB at most\n")


def _shorten(export: pathlib.Path, steps: str) -> None:
    """Sets the steps of super-resolution, for which `sample` has no flag."""
    manifest = read_manifest(export)
    manifest.config["sampling"]["steps"] = steps
    replace_manifest(export, manifest)


def _json(path: pathlib.Path, value: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    entry.run(lambda: main(sys.argv[1:]))
