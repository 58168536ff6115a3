"""`manifest.json` of a prepared folder: its splits, shards, record counts and content hashes."""

import dataclasses
import hashlib
import json
import pathlib
import shlex

from unclip_jax.core import storage
from unclip_jax.core.checks import UserError, suggest
from unclip_jax.core.config import as_dict, build
from unclip_jax.core.folder import Folder
from unclip_jax.core.storage import Location, Url
from unclip_jax.version import __version__

FILE = "manifest.json"
TOKENIZER = "tokenizer"  # folder beside the shards
FORMAT = 1


@dataclasses.dataclass(frozen=True)
class Shard:
    """One ArrayRecord file.

    Attributes:
        file: its name inside the folder.
        count: number of records.
        sha256: hash of the records' bytes in order.
        inputs: sha256 of the inputs that it was prepared from; "" = unknown.
    """

    file: str
    count: int
    sha256: str
    inputs: str = ""


@dataclasses.dataclass(frozen=True)
class Split:
    """The records of one split, in the order of its shards.

    Attributes:
        name: "train", "validation", ...
        count: number of records in all shards.
        hash: sha256 of the shards' hashes; equal content in equal order has an equal hash.
        plan: fingerprint of the inputs and options that it was prepared from.
        sources: the inputs, as on the command line.
        shards: the files.
        signature: sizes and times of the input files in the file system, hashed (`items.Plan`);
            "" = unknown.
        min_side: shorter side of the smallest image, in pixels; 0 = unknown.
    """

    name: str
    count: int
    hash: str
    plan: str
    sources: tuple[str, ...]
    shards: tuple[Shard, ...]
    signature: str = ""
    min_side: int = 0


@dataclasses.dataclass(frozen=True)
class DatasetManifest:
    """A prepared folder.

    Attributes:
        format: version of this layout.
        code_version: version of the package that last wrote the folder.
        tokenizer: hash of the tokenizer beside the data; "" = none.
        splits: in the order in which they were prepared.
    """

    format: int = FORMAT
    code_version: str = __version__
    tokenizer: str = ""
    splits: tuple[Split, ...] = ()

    def split(self, name: str) -> Split:
        """Returns the split called `name`.

        Raises:
            UserError: there is no such split.
        """
        for split in self.splits:
            if split.name == name:
                return split
        hint = suggest(name, [split.name for split in self.splits])
        raise UserError(f"the data set has no split {name!r}.{hint}")

    def with_split(self, split: Split) -> "DatasetManifest":
        """Returns this manifest with `split` added or replaced."""
        others = tuple(s for s in self.splits if s.name != split.name)
        return dataclasses.replace(self, splits=(*others, split), code_version=__version__)

    def with_tokenizer(self, tokenizer_hash: str) -> "DatasetManifest":
        """Returns this manifest with the hash of the tokenizer beside the data."""
        return dataclasses.replace(self, tokenizer=tokenizer_hash)


def make_split(
    name: str,
    shards: tuple[Shard, ...],
    *,
    plan: str,
    sources: tuple[str, ...],
    signature: str = "",
    min_side: int = 0,
) -> Split:
    """Returns a split with the total count and the combined hash of its shards."""
    digest = hashlib.sha256("".join(shard.sha256 for shard in shards).encode()).hexdigest()
    count = sum(shard.count for shard in shards)
    return Split(name, count, digest, plan, sources, shards, signature, min_side)


def read(directory: str | Location) -> DatasetManifest:
    """Reads the manifest of a prepared folder, local or in an object store.

    Raises:
            UserError: there is no such folder, its preparation did not finish, or its manifest has
                another format.
    """
    place = storage.location(directory) if isinstance(directory, str) else directory
    return _parse(_stored(place) if isinstance(place, Url) else _text(place), place)


def _stored(folder: Url) -> bytes:
    """Reads the text of the manifest in an object store."""
    if not (folder / FILE).exists():
        raise UserError(
            f"no data set at {folder}: it has no {FILE}, which `python -m unclip_jax.prepare` "
            "writes last; check the URL, or prepare the data."
        )
    return (folder / FILE).read_bytes()


def _text(directory: pathlib.Path) -> bytes:
    """Reads the text of the manifest in a local folder."""
    if not directory.is_dir():
        raise UserError(
            f"no data set at {directory}; make one with `python -m unclip_jax.prepare shapes "
            f"--out={shlex.quote(str(directory))}`, or from your images: give a folder, "
            "a tar or a quoted glob instead of `shapes`."
        )
    if not (directory / FILE).is_file():
        raise UserError(
            f"{directory} has no {FILE}: it is not a prepared data set, or its preparation did "
            "not finish; run the same `python -m unclip_jax.prepare` command again."
        )
    return (directory / FILE).read_bytes()


def _parse(text: bytes, directory: Location) -> DatasetManifest:
    """Parses the text of a manifest."""
    try:
        content = json.loads(text)
        version = content["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{directory / FILE} is damaged; prepare the data set again.") from error
    if version != FORMAT:
        raise UserError(
            f"{directory / FILE} has format {version}, this version reads {FORMAT}; prepare the "
            "data set again."
        )
    return build(DatasetManifest, content, where=str(directory / FILE))


def write(directory: Location, manifest: DatasetManifest) -> None:
    """Writes the manifest atomically to a folder."""
    Folder(directory).write(FILE, as_json(manifest))


def as_json(manifest: DatasetManifest) -> str:
    """Returns the text of the file."""
    return json.dumps(as_dict(manifest), indent=2, ensure_ascii=False)


def shard_paths(directory: Location, split: Split) -> list[Location]:
    """Returns the places of a split's non-empty shards.

    Raises:
        UserError: a shard is missing.
    """
    names = [shard.file for shard in split.shards if shard.count]
    if isinstance(directory, Url):  # one request for all
        stored = directory.files().keys()
    else:
        stored = {name for name in names if (directory / name).is_file()}
    paths = [directory / name for name in names]
    for path, name in zip(paths, names, strict=True):
        if name not in stored:
            raise UserError(
                f"{path} is missing, though {FILE} lists it; copy it again, or "
                "run the same `python -m unclip_jax.prepare` command."
            )
    return paths
