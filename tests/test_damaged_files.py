"""Damaged files are rejected or mean what they meant: no silent change, no traceback, no hang."""

import contextlib
import json
import pathlib
import shutil
import signal
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from tests import damage
from tests.convert import test_kinds as weights
from unclip_jax.convert import importing
from unclip_jax.core import digests
from unclip_jax.core.checks import UserError
from unclip_jax.data.embedding_writer import EmbeddingWriter
from unclip_jax.data.embeddings import EmbeddingSource
from unclip_jax.editing import latents
from unclip_jax.handoff import load as handoff
from unclip_jax.handoff import sidecar
from unclip_jax.handoff.export import params_id
from unclip_jax.inference import exported_sampler, load
from unclip_jax.tokenization import caption_tokenizer

SECONDS = 60  # for one file; what takes longer counts as a hang
# Subject -> number of damaged copies in the nightly tier, and in the usual one.
COUNTS = {
    "export": (1400, 20),
    "bundle": (600, 10),
    "transformers": (500, 10),
    "open_clip": (500, 10),
    "latent": (200, 5),
    "embeddings": (200, 5),
}
UNSEALED = ("transformers", "open_clip")  # files of others, which hold no digests


def write_export(place: pathlib.Path) -> pathlib.Path:
    """The export of a small converted CLIP, with a sidecar."""
    source = weights.put(place / "source", weights.openai())
    caption_tokenizer.train(["a red circle"] * 3, vocab_size=518).save(source)
    importing.convert([source], place / "run")
    path = place / "run" / "clip" / "export"
    sidecar.write(path, sidecar.VARIANCE, {"timesteps": [1, 2], "examples": 8})
    return path


def write_bundle(place: pathlib.Path) -> pathlib.Path:
    """A bundle whose program is one product."""
    from unclip_jax.inference import sampler_export

    def run(arrays, tokens, seed, indices):
        numbers = seed + indices + tokens[0][0][:, 1]
        return (arrays["w"] * numbers[:, None, None, None]).astype(jnp.uint8)

    w = np.arange(12, dtype=np.float32).reshape(1, 2, 2, 3)
    shaped = jax.ShapeDtypeStruct
    inputs = ({"w": shaped(w.shape, w.dtype)}, ((shaped((2, 8), jnp.int32), shaped((2, 8), bool)),))
    inputs += (shaped((), jnp.int32), shaped((2,), jnp.int32))
    program = export.export(jax.jit(run), platforms=["cpu"])(*inputs)
    entries, blob = sampler_export._packed({"w": w})
    caption_tokenizer.train(["a red circle"] * 3, vocab_size=518).save(place)
    members = {
        exported_sampler.WEIGHTS: blob,
        exported_sampler.TOKENIZER: (place / "tokenizer.json").read_bytes(),
        exported_sampler.program_name(2): bytes(program.serialize()),
    }
    card = exported_sampler.BundleCard(
        batch_sizes=(2,),
        contexts=(8,),
        image_size=2,
        platforms=("cpu",),
        weights=entries,
        digests={name: digests.of_bytes(content) for name, content in members.items()},
        models={"name": "x"},
        options={},
        code_version="0",
        jax_version=jax.__version__,
    )
    sampler_export._save(place / "x.unclip", card, members)
    return place / "x.unclip"


def write_transformers(place: pathlib.Path) -> pathlib.Path:
    folder = weights.put(place / "hf", weights.transformers(), weights.CLIP, beside={"resample": 3})
    caption_tokenizer.train(["a red circle"] * 3, vocab_size=518).save(folder)
    return folder


def write_open_clip(place: pathlib.Path) -> pathlib.Path:
    folder = weights.put(place / "oc", weights.under("module."))
    caption_tokenizer.train(["a red circle"] * 3, vocab_size=518).save(folder)
    return folder


def write_latent(place: pathlib.Path) -> pathlib.Path:
    origin = latents.LatentOrigin(clip_id="c" * 64, decoder_id="d" * 64, image_size=4)
    noise = np.random.default_rng(0).normal(size=(1, 4, 4, 3)).astype(np.float32)
    latent = latents.Latent(jnp.ones((1, 8)), jnp.asarray(noise))
    latents.save(place / "x.npz", latent, origin=origin)
    return place / "x.npz"


def write_embeddings(place: pathlib.Path) -> pathlib.Path:
    rows = np.random.default_rng(0).normal(size=(40, 8)).astype(np.float32)
    writer = EmbeddingWriter(place / "embeddings", info={"clip": "abc"}, shard_size=16)
    keys = [f"k{i}" for i in range(40)]
    writer.add(keys, keys, z_img=rows, z_txt=rows[::-1])
    writer.finish()
    return place / "embeddings"


def read_export(path: pathlib.Path) -> Any:
    cfg, params, card = load.load_clip(path)
    tokenizer = caption_tokenizer.load(handoff.tokenizer_dir(path))
    return cfg, params_id(params), card, tokenizer.hash, sidecar.read(path, sidecar.VARIANCE)


def read_bundle(path: pathlib.Path) -> Any:
    bundle = exported_sampler.open_bundle(path)
    return bundle.card, bundle.draw(["a red circle", "a"], seed=3).tobytes()


def read_foreign(path: pathlib.Path) -> Any:
    (part,), folder = importing._stages_in([path], importing.ImportOptions(stages=("clip",)))
    if folder is not None:
        caption_tokenizer.load(folder, literal=caption_tokenizer.declared_padding(folder))
    return importing._typed(part, "float32").config, params_id(part.params())


def read_latent(path: pathlib.Path) -> Any:
    latent, origin = latents.load(path)
    return origin, np.asarray(latent.z_img).tobytes(), np.asarray(latent.x_T).tobytes()


def read_embeddings(path: pathlib.Path) -> Any:
    source = EmbeddingSource(path)
    rows = [source[i] for i in range(len(source))]
    stats = source.stats("z_img").mean.tobytes(), source.info()
    return stats, [(r["key"], r["caption"], r["z_img"].tobytes()) for r in rows]


SUBJECTS: dict[str, tuple[Callable[[pathlib.Path], pathlib.Path], Callable[..., Any]]] = {
    "export": (write_export, read_export),
    "bundle": (write_bundle, read_bundle),
    "transformers": (write_transformers, read_foreign),
    "open_clip": (write_open_clip, read_foreign),
    "latent": (write_latent, read_latent),
    "embeddings": (write_embeddings, read_embeddings),
}


class Hang(BaseException):
    """A reader took too long."""


@contextlib.contextmanager
def time_limit(seconds: int) -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def outcome(read: Callable[[pathlib.Path], Any], path: pathlib.Path, expected: Any) -> str:
    """Returns "rejected", "same" or "changed" of a damaged subject, or what it ended in."""
    try:
        with time_limit(SECONDS):
            return "same" if read(path) == expected else "changed"
    except UserError as error:
        return "rejected" if len(str(error)) < 2000 else f"a message of {len(str(error))} letters"
    except Hang:
        return "hang"
    except BaseException as error:  # PanicException of a library is no Exception
        if isinstance(error, KeyboardInterrupt):
            raise
        return f"{type(error).__name__}: {str(error)[:300]}"


def damage_all(subject: str, place: pathlib.Path, *, count: int) -> dict[str, int]:
    """Damages a subject in `count` ways; returns the number of each outcome."""
    write, read = SUBJECTS[subject]
    (place / "whole").mkdir()
    whole = write(place / "whole")
    expected = read(whole)
    assert read(whole) == expected
    allowed = {"rejected", "same"} | ({"changed"} if subject in UNSEALED else set())
    results: dict[str, int] = {}
    wrong = []
    for seed in range(count):
        rng = np.random.default_rng([seed, *subject.encode()])
        copy = damage.copy(whole, place / f"copy{whole.suffix}")
        what = damage.damage(copy, rng)
        result = outcome(read, copy, expected)
        results[result] = results.get(result, 0) + 1
        if result not in allowed:
            wrong.append(f"{seed}: {what}: {result}")
        shutil.rmtree(copy) if copy.is_dir() else copy.unlink(missing_ok=True)
    assert not wrong, f"{len(wrong)} of {count}:\n" + "\n".join(wrong[:40])
    return results


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("subject", COUNTS)
def test_a_sample_of_damages(tmp_path, subject):
    results = damage_all(subject, tmp_path, count=COUNTS[subject][1])
    assert results.get("rejected", 0) > COUNTS[subject][1] // 4, json.dumps(results)


@pytest.mark.nightly
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("subject", COUNTS)
def test_all_damages(tmp_path, subject):
    results = damage_all(subject, tmp_path, count=COUNTS[subject][0])
    assert results.get("rejected", 0) > COUNTS[subject][0] // 4, json.dumps(results)
