"""Writes sampled embeddings as files that other programs read.

    z.npy            [rows num *target] float32, without `num` if it is 1
    z.safetensors    tensors image_embeds [rows * num, *target] and row
    z.parquet        columns key, row, sample and embedding (lists of float32, or lists of them)
    FOLDER           img_emb, text_emb and metadata of clip-retrieval; vectors alone

`image_embeds` is the argument of diffusers' pipelines, which take embeddings as CLIP computes them,
not of norm 1.
"""

import pathlib
from collections.abc import Sequence

import numpy as np
import pyarrow
import pyarrow.parquet
import safetensors.numpy

from unclip_jax.core.checks import UserError
from unclip_jax.core.files import atomic_path
from unclip_jax.data.embedding_writer import EmbeddingFolder

SUFFIXES = (".npy", ".safetensors", ".parquet", "")


def write_embeddings(
    samples: np.ndarray,
    path: str | pathlib.Path,
    *,
    keys: Sequence[str] | None = None,
    numbers: np.ndarray | None = None,
) -> None:
    """Writes samples, [rows num *target], in the format of the file's suffix.

    Args:
        samples: the result of `EmbeddingPriorModel.sample`.
        path: the file, or a folder of clip-retrieval.
        keys: name of every row; None = its number.
        numbers: row numbers; None = 0, 1, ...

    Raises:
        UserError: an unknown format, keys that do not match, or a file that cannot be written.
    """
    path, (rows, num) = pathlib.Path(path), samples.shape[:2]
    numbers = np.arange(rows) if numbers is None else numbers
    names = [str(number) for number in numbers] if keys is None else list(keys)
    if len(names) != rows:
        raise UserError(f"there are {len(names)} keys for {rows} rows; give one each.")
    if path.suffix not in SUFFIXES:
        raise UserError(
            f"{path} has an unknown format; end it in .npy, .safetensors or .parquet, or name a "
            "folder."
        )
    flat = samples.reshape(rows * num, *samples.shape[2:])
    try:
        if not path.suffix:
            _write_folder(flat, path, [f"{name}/{j}" for name in names for j in range(num)])
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as draft, draft.open("wb") as file:
            if path.suffix == ".npy":
                np.save(file, samples[:, 0] if num == 1 else samples)
            elif path.suffix == ".safetensors":
                row = np.repeat(numbers, num)
                file.write(safetensors.numpy.save({"image_embeds": flat, "row": row}))
            else:
                pyarrow.parquet.write_table(_table(flat, names, numbers, num), file)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error}; give another path.") from None


def _table(flat: np.ndarray, names: list[str], numbers: np.ndarray, num: int) -> pyarrow.Table:
    keys = [name for name in names for _ in range(num)]
    embedding = pyarrow.array(flat.reshape(-1))
    for size in reversed(flat.shape[1:]):
        embedding = pyarrow.FixedSizeListArray.from_arrays(embedding, size)
    return pyarrow.table(
        {
            "key": keys,
            "row": np.repeat(numbers, num),
            "sample": np.tile(np.arange(num), len(names)),
            "embedding": embedding,
        }
    )


def _write_folder(flat: np.ndarray, path: pathlib.Path, keys: list[str]) -> None:
    if flat.ndim != 2:
        raise UserError(
            f"{path} would hold sequences, but clip-retrieval's folders hold vectors; give a file "
            "that ends in .npy, .safetensors or .parquet."
        )
    info = {"data": "samples of an embedding_prior"}
    folder = EmbeddingFolder(path, info=info, dtype="float32")
    if folder.finished:
        raise UserError(f"{path} holds embeddings already; give another folder.")
    folder.write(0, keys=keys, captions=[""] * len(keys), vectors={"z_img": flat})
    folder.complete(1)
