"""Codes of images on disk: one row of uint16 per record, in the order of the data set.

A folder contains `codes_0000.npy` [records, codes], `codes_0001.npy`, ... and `info.json` with the
discrete VAE, the digest of the records and whether all codes are written.
"""

import bisect
import json
import pathlib
from typing import Any

import numpy as np
from jaxtyping import Integer, UInt16

from unclip_jax.core import json_text
from unclip_jax.core.checks import UserError
from unclip_jax.core.files import atomic_path, open_array, read_small, write_atomically
from unclip_jax.data.dataset import Source, content_digest, without_image
from unclip_jax.data.records import Record

INFO, FINISHED = "info.json", "finished"
MOST = 2**16  # number of codes that uint16 can represent
SHARD = 65536  # rows per file
ADVICE = "compute them again with `python -m unclip_jax.embed codes`."


class CodeWriter:
    """Writes codes in order; `written` is the number of records on disk already."""

    def __init__(self, directory: pathlib.Path, *, info: dict[str, Any], shard: int = SHARD):
        """Opens or creates `directory`, and continues what is there.

        Args:
            directory: folder of the codes.
            info: origin of the codes (the discrete VAE and the records), JSON-ready.
            shard: rows per file.

        Raises:
            UserError: the folder contains codes of another origin, or there are too many codes.
        """
        if info["code_count"] > MOST:
            raise UserError(
                f"the discrete VAE has {info['code_count']} codes; files store at most {MOST}; "
                "leave out --config.data.codes, so that they are computed for each batch."
            )
        self.directory, self._info, self._shard = directory, info, shard
        directory.mkdir(parents=True, exist_ok=True)
        stored = read_info(directory) if (directory / INFO).is_file() else {**info, FINISHED: None}
        for name in sorted(info):
            if stored.get(name) != info[name]:
                raise UserError(
                    f"{directory} holds codes with {name} = {stored.get(name)!r}, now it is "
                    f"{info[name]!r}; choose another folder or delete it."
                )
        self._finished = stored.get(FINISHED)
        if self._finished is None:
            self._state(finished=False)
        self._files = _files(directory)
        self.written: int = sum(len(open_array(path, advice=ADVICE)) for path in self._files)
        self._rows: list[np.ndarray] = []

    def add(self, codes: Integer[np.ndarray, " b k"]) -> None:
        """Adds rows, and writes all full files."""
        self._rows += list(codes.astype(np.uint16))
        while len(self._rows) >= self._shard:
            self._flush()

    def finish(self) -> None:
        """Writes the last file, and marks the folder as complete."""
        if self._rows:
            self._flush()
        self._state(finished=True)

    def _state(self, *, finished: bool) -> None:
        """Writes whether all codes are present, unless info.json states it already."""
        if self._finished is not finished:
            content = json.dumps({**self._info, FINISHED: finished})
            write_atomically(self.directory / INFO, content)
            self._finished = finished

    def _flush(self) -> None:
        self._state(finished=False)
        path = self.directory / f"codes_{len(self._files):04d}.npy"
        with atomic_path(path) as partial, partial.open("wb") as file:
            np.save(file, np.stack(self._rows[: self._shard]))
        self.written += len(self._rows[: self._shard])
        self._rows, self._files = self._rows[self._shard :], [*self._files, path]


class CodedSource:
    """Records with their codes, matched by position."""

    def __init__(self, source: Source, directory: pathlib.Path):
        """Joins records with the codes that `embed codes` wrote for them.

        Raises:
            UserError: the folder has no codes, is incomplete, or belongs to other records.
        """
        self._source, self.directory = source, directory
        self.info = read_info(directory)
        if not self.info.get(FINISHED):
            raise UserError(
                f"{directory} is half-written; run the same `embed codes` command again."
            )
        if self.info.get("data_digest") != content_digest(source):
            raise UserError(f"the codes in {directory} are of other records; {ADVICE}")
        self._paths = _files(directory)
        arrays = self._arrays = self._open()
        length = int(self.info["grid"]) ** 2
        for path, array in zip(self._paths, arrays, strict=True):
            if array.ndim != 2 or array.shape[1] != length or array.dtype != np.uint16:
                raise UserError(
                    f"{path} is {array.dtype}{list(array.shape)}; expected rows of {length} codes "
                    f"as uint16; {ADVICE}"
                )
        self._ends = np.cumsum([len(array) for array in arrays]).tolist()
        if not self._ends or self._ends[-1] != len(source):
            count = self._ends[-1] if self._ends else 0
            raise UserError(
                f"{directory} holds codes of {count} images for {len(source)} records; {ADVICE}"
            )

    def _open(self) -> list[np.ndarray]:
        return [open_array(path, advice=ADVICE) for path in self._paths]

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_arrays"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._arrays = self._open()

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Record:
        return self._coded(self._source[index], index)

    def without_image(self, index: int) -> Record:
        """Reads a record whose image is not needed."""
        return self._coded(without_image(self._source, index), index)

    def _coded(self, record: Record, index: int) -> Record:
        return {**record, "codes": self._row(index).astype(np.int32)}

    def _row(self, index: int) -> UInt16[np.ndarray, " k"]:
        """Returns the codes of one image.

        Raises:
            UserError: the row contains a code that the discrete VAE does not have.
        """
        shard = bisect.bisect_right(self._ends, index)
        row = index - (self._ends[shard - 1] if shard else 0)
        codes = self._arrays[shard][row]
        if codes.max() >= self.info["code_count"]:
            raise UserError(
                f"{self._paths[shard]} holds code {codes.max()} in row {row}; the discrete VAE has "
                f"{self.info['code_count']}; {ADVICE}"
            )
        return codes


def read_info(directory: pathlib.Path) -> dict[str, Any]:
    """Returns the origin of the codes in a folder, and whether they are complete.

    Raises:
        UserError: the folder has no codes.
    """
    path = directory / INFO
    if not path.is_file():
        raise UserError(f"no codes in {directory}; {ADVICE}")
    return json_text.parse_object(read_small(path), where=str(path), advice=ADVICE)


def _files(directory: pathlib.Path) -> list[pathlib.Path]:
    return sorted(directory.glob("codes_*.npy"))
