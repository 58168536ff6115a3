"""Plans of an import: the examples of every split in order, and how to read one."""

import glob
import hashlib
import pathlib
import re
from collections.abc import Iterator, Sequence

from tqdm import tqdm

from unclip_jax.core.checks import UserError, positive
from unclip_jax.data import sources
from unclip_jax.data.dataset import FeatureKeys
from unclip_jax.data.portraits import generator as portraits
from unclip_jax.data.shapes import generator as shapes
from unclip_jax.preparation.folders import METADATA, list_folder, list_picture
from unclip_jax.preparation.items import (
    IMAGE_SUFFIXES,
    MAX_IMAGE_BYTES,
    MAX_TEXT_BYTES,
    FileReader,
    Item,
    Plan,
    Raw,
    Skip,
    check_exists,
)
from unclip_jax.preparation.tars import TAR_SUFFIXES, list_tar

WORLDS = {"shapes": shapes.scenes, "portraits": portraits.scenes}
WORLD_COUNTS = {"train": 30_000, "validation": 1_000, "compositional": 1_000}
_NAMED = re.compile(r"([A-Za-z][A-Za-z0-9_]*)=(.+)", re.DOTALL)


def group_inputs(inputs: Sequence[str], *, split: str) -> dict[str, list[str]]:
    """Groups inputs by split: "validation=GLOB" names its own, others go to `split`.

    Raises:
        UserError: the name of a split that cannot be part of a file name.
    """
    groups: dict[str, list[str]] = {}
    for text in inputs:
        match = None if pathlib.Path(text).exists() else _NAMED.fullmatch(text)
        name, path = match.groups() if match else (split, text)
        groups.setdefault(name, []).append(path)
    for name in groups:
        if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name):
            raise UserError(f"split {name!r} is not a valid name; use letters, digits and _.")
    return groups


def world_counts(text: str) -> dict[str, int] | None:
    """Returns the scenes per split of an input that names a world of `WORLDS`, else None.

    Args:
        text: such as "shapes" or "portraits:train=30000,validation=1000".

    Raises:
        UserError: anything but split=number after the colon.
    """
    name, colon, counts = text.partition(":")
    if name not in WORLDS:
        return None
    if not colon:
        return dict(WORLD_COUNTS)
    pairs = [re.fullmatch(r"(\w+)=(\d+)", part) for part in counts.split(",")]
    if not all(pairs):
        raise UserError(f"input {text!r} is not of the form {name}:train=30000,validation=1000.")
    return {pair[1]: positive(f"{pair[1]} of {text!r}", int(pair[2])) for pair in pairs if pair}


class FilePlan:
    """Examples in folders and tars."""

    def __init__(self, inputs: Sequence[str], *, caption_field: str = "", prefix: bool = False):
        """Lists everything that `inputs` (folders, tars, images, globs of them) hold.

        Args:
            inputs: the sources, read in this order and each once.
            caption_field: JSON field with the caption; "" = one of CAPTION_FIELDS.
            prefix: put the input's name before every key, for tars that reuse keys.

        Raises:
            UserError: an input matches nothing, has an unknown format or holds no image.
        """
        self.sources = tuple(inputs)
        self._items: list[Item] = []
        self._reader = FileReader()
        keys: set[str] = set()
        paths = list(_expand(inputs))
        for path in tqdm(paths, desc="listing", unit="input", delay=2, leave=False):
            for item in _list(path, caption_field):
                key = f"{path.name}/{item.key}" if prefix else item.key
                skip = item.skip or ("duplicate key" if key in keys else "")
                keys.add(key)
                self._items.append(item._replace(key=key, skip=skip))
        if not self._items:
            raise UserError(
                f"no images in {', '.join(inputs)}; expected a folder with metadata.jsonl or "
                ".txt files beside the images, or a WebDataset tar."
            )
        self.fingerprint = _fingerprint(repr(item) for item in self._items)

    def __len__(self) -> int:
        return len(self._items)

    def key(self, index: int) -> str:
        """Returns the name of example `index`."""
        return self._items[index].key

    def read(self, index: int) -> Raw:
        """Reads the bytes of example `index`.

        Raises:
            Skip: it has no image or caption, or its bytes cannot be read.
        """
        item = self._items[index]
        if item.skip:
            raise Skip(item.skip)
        if item.image is None or item.caption is None:
            raise Skip("no image" if item.image is None else "no caption")
        caption = item.caption
        if not isinstance(caption, str):
            caption = self._reader.read(caption, limit=MAX_TEXT_BYTES)
        image = self._reader.read(item.image, limit=MAX_IMAGE_BYTES)
        return Raw(image, caption, item.field)

    def close(self) -> None:
        """Closes the file that was read last."""
        self._reader.close()


class SourcePlan:
    """Records of one split of a data set with a scheme of `sources.SOURCES`."""

    def __init__(self, path: str, *, split: str, caption_field: str = ""):
        """Opens a split.

        Args:
            path: SCHEME:LOCATION.
            split: of that data set.
            caption_field: name under which it stores captions; "" = the default one.

        Raises:
            UserError: no such data set or split.
        """
        keys = FeatureKeys(caption=caption_field) if caption_field else FeatureKeys()
        self._source = sources.open_source(path, split=split, keys=keys)
        self.sources = (path,)
        self.fingerprint = _fingerprint([path, split, caption_field, str(len(self._source))])

    def __len__(self) -> int:
        return len(self._source)

    def key(self, index: int) -> str:
        """Returns the name of example `index`."""
        return str(self._source[index]["key"])

    def read(self, index: int) -> Raw:
        """Reads the bytes of example `index`."""
        record = self._source[index]
        return Raw(record["image"], record["caption"], scene=record["scene"])

    def close(self) -> None:
        """Does nothing: the source manages its files."""


class WorldPlan:
    """Scenes of a procedural world, rendered as they are read."""

    def __init__(self, world: str, split: str, *, count: int, image_size: int, seed: int):
        """Plans scenes 0 to `count` of `split` of a member of `WORLDS`."""
        self.sources = (f"{world}:{split}={count}",)
        plan = f"{split} {count} {image_size} {seed}"
        self.fingerprint = _fingerprint([plan] if world == "shapes" else [world, plan])
        self._generate = WORLDS[world]
        self._split, self._count, self._size, self._seed = split, count, image_size, seed
        self._next, self._stream = -1, iter(())
        next(self._scenes(0))  # reports a wrong split or size now

    def __len__(self) -> int:
        return self._count

    def key(self, index: int) -> str:
        """Returns the name of scene `index`."""
        return f"{self._split}-{self._seed}-{index:08d}"

    def read(self, index: int) -> Raw:
        """Renders scene `index`; in order, many scenes are rendered at once."""
        if index != self._next:
            self._stream = self._scenes(index)
        self._next = index + 1
        record = next(self._stream)
        return Raw(record["image"], record["caption"], scene=record["scene"])

    def close(self) -> None:
        """Does nothing: no file is open."""

    def _scenes(self, start: int) -> Iterator[dict]:
        count = self._count - start
        return self._generate(
            self._split, seed=self._seed, start=start, count=count, image_size=self._size
        )


def _expand(inputs: Sequence[str]) -> Iterator[pathlib.Path]:
    """Yields the paths that match, each real file once."""
    visited = set()
    for text in inputs:
        matches = [text] if pathlib.Path(text).exists() else sorted(glob.glob(text, recursive=True))
        if not matches and glob.has_magic(text):
            raise UserError(f"input {text} matches no file; check the pattern and quote it.")
        for name in matches or [text]:
            path = pathlib.Path(name)
            check_exists(path)
            if path.resolve() not in visited:
                visited.add(path.resolve())
                yield path


def _list(path: pathlib.Path, caption_field: str) -> list[Item]:
    name = path.name.lower()
    if path.is_dir():
        return list_folder(path, caption_field=caption_field)
    if name == METADATA:
        return list_folder(path.parent, caption_field=caption_field)
    if name.endswith(TAR_SUFFIXES):
        return list_tar(str(path), caption_field=caption_field or "caption")
    if name.endswith(IMAGE_SUFFIXES):
        return [list_picture(path, root=path.parent)]
    if name.endswith(".txt"):  # a glob such as folder/* matches captions too
        return []
    kinds = ", ".join(TAR_SUFFIXES)
    raise UserError(f"input {path} is neither a folder nor a tar ({kinds}) nor an image.")


def _fingerprint(parts: Sequence[str] | Iterator[str]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode("utf-8", "surrogateescape"))
        digest.update(b"\0")
    return digest.hexdigest()


def make_plans(
    inputs: Sequence[str],
    *,
    split: str,
    caption_field: str = "",
    prefix: bool = False,
    image_size: int = 64,
    seed: int = 0,
) -> dict[str, Plan]:
    """Makes a plan for every split.

    Args:
        inputs: folders, tars, images, globs, data sets such as "tfds:NAME", SPLIT=one of these,
            or a world, "shapes[:...]".
        split: of inputs that do not name theirs.
        caption_field: JSON field, or feature of a data set, with the caption.
        prefix: see `FilePlan`.
        image_size: of a world's images.
        seed: of a world.

    Raises:
        UserError: an input that cannot be used, or one split of inputs that cannot be mixed.
    """
    plans: dict[str, Plan] = {}
    files: list[str] = []
    for text in inputs:
        counts = world_counts(text)
        if counts is None:
            files.append(text)
        for name, count in (counts or {}).items():
            if name in plans:
                raise UserError(f"split {name!r} would mix two worlds; give each its own folder.")
            world = text.partition(":")[0]
            plans[name] = WorldPlan(world, name, count=count, image_size=image_size, seed=seed)
    for name, group in group_inputs(files, split=split).items():
        if name in plans:
            world = plans[name].sources[0].partition(":")[0]
            raise UserError(f"split {name!r} would mix {world} and files; use --split or SPLIT=.")
        named = [path for path in group if sources.parse_path(path)[0] and not glob.has_magic(path)]
        if named and len(group) > 1:
            raise UserError(
                f"split {name!r} would mix {named[0]} with other inputs; give it a split of its "
                "own with --split or SPLIT=."
            )
        if named:
            plans[name] = SourcePlan(named[0], split=name, caption_field=caption_field)
        else:
            plans[name] = FilePlan(group, caption_field=caption_field, prefix=prefix)
    return plans
