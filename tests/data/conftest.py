import io
import pathlib
import tarfile

import numpy as np
import pytest
from PIL import Image

from unclip_jax.data import dataset_manifest, prepared, records


class Samples:
    """Small data sets of flat pictures, each of which shows its number as its colour."""

    @staticmethod
    def picture(number: int, *, height: int = 16, width: int = 16) -> np.ndarray:
        colour = (number % 256, number // 256, 255 - number % 256)
        return np.full((height, width, 3), colour, np.uint8)

    @staticmethod
    def number_of(pixels: np.ndarray) -> int:
        """The number of a picture, given as uint8 or in [-1, 1]."""
        red, green = (float(value) for value in pixels[0, 0, :2])
        if pixels.dtype != np.uint8:
            red, green = ((value + 1) * 127.5 for value in (red, green))
        return round(red) + 256 * round(green)

    @classmethod
    def png(cls, number: int, *, height: int = 16, width: int = 16) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(cls.picture(number, height=height, width=width)).save(buffer, "PNG")
        return buffer.getvalue()

    @classmethod
    def record(cls, number: int, *, height: int = 16, width: int = 16) -> records.Record:
        return {
            "image": cls.png(number, height=height, width=width),
            "caption": f"picture number {number}",
            "key": f"k{number:04d}",
            "scene": "",
        }

    @classmethod
    def write_folder(
        cls, directory: pathlib.Path, counts: list[int], *, split: str = "train"
    ) -> None:
        """A prepared folder with `counts[i]` records in shard i, numbered from 0."""
        directory.mkdir(parents=True, exist_ok=True)
        shards, first = [], 0
        for index, count in enumerate(counts):
            name = records.shard_name(split, index, len(counts))
            numbers = range(first, first + count)
            result = records.write_shard(directory / name, (cls.record(i) for i in numbers))
            shards.append(dataset_manifest.Shard(name, result.written, result.sha256))
            first += count
        case = dataset_manifest.make_split(split, tuple(shards), plan="test", sources=("test",))
        dataset_manifest.write(directory, dataset_manifest.DatasetManifest().with_split(case))

    @staticmethod
    def write_tar(path: pathlib.Path, members: list[tuple[str, bytes]], mode: str = "w") -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(path, mode) as tar:  # pyright: ignore[reportCallIssue,reportArgumentType]
            for member, data in members:
                info = tarfile.TarInfo(member)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))

    @classmethod
    def pairs(cls, numbers: range) -> list[tuple[str, bytes]]:
        """Members of a WebDataset tar: k0000.png, k0000.txt, ..."""
        members = []
        for i in numbers:
            members.append((f"k{i:04d}.png", cls.png(i)))
            members.append((f"k{i:04d}.txt", f"picture number {i}".encode()))
        return members


@pytest.fixture(scope="session")
def samples() -> type[Samples]:
    return Samples


@pytest.fixture
def folder(samples: type[Samples], tmp_path: pathlib.Path) -> pathlib.Path:
    """Ten records in shards of 4, 0 and 6."""
    samples.write_folder(tmp_path / "data", [4, 0, 6])
    return tmp_path / "data"


@pytest.fixture
def source(folder: pathlib.Path) -> prepared.ShardSource:
    return prepared.open_split(folder, split="train")
