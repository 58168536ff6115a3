"""Plans of an import: the examples of a split in order, with functions to read them."""

import hashlib
import itertools
import json
import os
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tqdm import tqdm

from unclip_jax.core.checks import UserError, positive
from unclip_jax.core.files import printable
from unclip_jax.data import sources
from unclip_jax.data.dataset import FeatureKeys, content_digest
from unclip_jax.data.portraits import generator as portraits
from unclip_jax.data.records import Record
from unclip_jax.data.shapes import generator as shapes
from unclip_jax.preparation import import_inputs
from unclip_jax.preparation.filters import Uids, Where
from unclip_jax.preparation.items import (
    MAX_IMAGE_BYTES,
    MAX_TEXT_BYTES,
    Blob,
    Cell,
    FileReader,
    Item,
    Listing,
    RawExample,
    Skip,
    stamp,
)
from unclip_jax.preparation.parquet_images import ParquetReader

WORLDS = {"shapes": shapes.scenes, "portraits": portraits.scenes}
WORLD_COUNTS = {"train": 30_000, "validation": 1_000, "compositional": 1_000}
_SPLIT = re.compile(r"([A-Za-z][A-Za-z0-9_]*)=(.+)", re.DOTALL)
_NAMED = 5  # kinds of other files in a message


def group_inputs(inputs: Sequence[str], *, split: str) -> dict[str, list[str]]:
    """Groups inputs by split: "validation=GLOB" names its own, others belong to `split`.

    Raises:
        UserError: the name of a split cannot be part of a file name.
    """
    groups: dict[str, list[str]] = {}
    for text in inputs:
        match = None if pathlib.Path(text).exists() else _SPLIT.fullmatch(text)
        name, path = match.groups() if match else (split, text)
        groups.setdefault(name, []).append(path)
    for name in groups:
        if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name):
            raise UserError(f"split {name!r} is not a valid name; use letters, digits and _.")
    return groups


def world_counts(text: str) -> dict[str, int] | None:
    """Returns the number of scenes per split of an input that names a world of `WORLDS`, else None.

    Args:
        text: input such as "shapes" or "portraits:train=30000,validation=1000".

    Raises:
        UserError: the part after the colon is not a list of split=number.
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
    """Examples in folders, tars, Parquet files and tables."""

    def __init__(
        self,
        inputs: Sequence[str],
        *,
        caption_field: str = "",
        prefix: bool = False,
        where: Where | None = None,
        uids: Uids | None = None,
        part: bool = False,
    ):
        """Lists all examples in `inputs` (see `import_inputs`).

        Args:
            inputs: the sources, read in this order and each once.
            caption_field: field or column with the caption; "" = one of the usual names.
            prefix: puts the input's name before every key, for tars that reuse keys.
            where: condition on metadata; other examples are filtered out.
            uids: examples to keep; others are filtered out.
            part: True if these are only some inputs of a split; they may be damaged or have no
                image.

        Raises:
            UserError: an input matches nothing, has an unknown format or has no image.
        """
        self.sources = tuple(printable(text) for text in inputs)
        self._items: list[Item] = []
        self._where, self._uids = where, uids
        self._files, self._cells = FileReader(), ParquetReader()
        self._classes: dict[str, tuple[str, ...]] = {}
        others = Listing()
        keys: set[str] = set()
        for path, listing in tqdm(
            import_inputs.listings(inputs, caption_field=caption_field, part=part),
            desc="listing",
            unit="input",
            delay=2,
            leave=False,
            disable=part,
        ):
            others.others.update(listing.others)
            others.examples = {**listing.examples, **others.examples}
            others.unlisted |= listing.unlisted
            for item in listing.items:
                key = printable(f"{path.name}/{item.key}" if prefix else item.key)
                skip = item.skip or _key_problem(item.key) or ("duplicate key" * (key in keys))
                keys.add(key)
                facts = item.facts if where or uids else None
                self._items.append(item._replace(key=key, skip=skip, facts=facts))
        self.others: Mapping[str, int] = dict(others.others)
        self.note = _note(others)
        if not (self._items or part):
            raise UserError(
                f"no images in {', '.join(self.sources)}{self.note}; expected a folder of images "
                "with captions in a table or beside them, a WebDataset tar, or Parquet with images."
            )
        filters = [where.text] if where else []
        filters += uids.identity if uids else []
        content = (_content(item) for item in self._items)
        self.fingerprint = _fingerprint(itertools.chain(filters, content))
        stamps = {item.classes: stamp(item.classes) for item in self._items if item.classes}
        places = (
            (item.image, item.caption, stamps.get(item.classes), *([item.facts] if filters else ()))
            for item in self._items
        )
        signature = _fingerprint(repr(place) for place in places)
        self.signature: str | None = None if others.unlisted else signature

    def __len__(self) -> int:
        return len(self._items)

    def key(self, index: int) -> str:
        """Returns the key of example `index`."""
        return self._items[index].key

    def read(self, index: int) -> RawExample:
        """Reads the bytes of example `index`.

        Raises:
            Skip: it has no image or caption, or its bytes cannot be read.
        """
        item = self._items[index]
        if item.skip:
            raise Skip(item.skip)
        if item.image is None or item.caption is None:
            raise Skip("no image" if item.image is None else "no caption")
        facts = self._filter(item) if self._where or self._uids else None
        caption = item.caption
        if isinstance(caption, Blob):
            caption = self._files.read(caption, limit=MAX_TEXT_BYTES)
        elif isinstance(caption, Cell):
            caption = self._cells.captions(caption)
        if isinstance(item.image, Cell):
            image = self._cells.image(item.image)
        else:
            image = self._files.read(item.image, limit=MAX_IMAGE_BYTES)
        classes = self._names(item.classes)
        return RawExample(image, caption, item.form, item.field, classes=classes, facts=facts)

    def span(self, index: int) -> Blob | None:
        """Returns the range of a tar with exactly the members of example `index`; None if none."""
        return self._items[index].span

    def origin(self, path: str) -> str:
        """Returns the absolute path or URL under which other readers find a file of this plan."""
        return os.path.abspath(path)

    def close(self) -> None:
        """Closes all open files."""
        self._files.close()
        self._cells.close()

    def _filter(self, item: Item) -> Mapping[str, Any]:
        """Applies the filters to an example; returns the metadata that they used.

        Raises:
            Skip: the example is filtered out, or its metadata cannot be read.
        """
        facts = item.facts or {}
        if isinstance(facts, Blob):
            try:
                facts = json.loads(self._files.read(facts, limit=MAX_TEXT_BYTES))
            except (ValueError, RecursionError) as error:
                raise Skip("bad metadata") from error
        elif isinstance(facts, Cell):
            facts = self._cells.facts(facts)
        if not isinstance(facts, Mapping):
            raise Skip("bad metadata")
        if self._uids:
            self._uids.check(item.key, facts)
        if self._where:
            self._where.check(facts)
        names = (*(self._where.columns if self._where else ()), *(["uid"] if self._uids else ()))
        return {name: facts[name] for name in names if name in facts}

    def _names(self, path: str) -> tuple[str, ...]:
        """Returns the lines of a file with class names; () without one."""
        if path and path not in self._classes:
            try:
                text = pathlib.Path(path).read_text("utf-8-sig", errors="replace")
            except OSError:
                text = ""
            self._classes[path] = tuple(line.strip() for line in text.splitlines())
        return self._classes.get(path, ())


def _key_problem(key: str) -> str:
    """Returns the reason for which a key cannot be stored; "" if it can."""
    try:
        key.encode("utf-8")
    except UnicodeEncodeError:
        return "name is not UTF-8"
    return ""


def _content(item: Item) -> str:
    """Returns a description of an item without the paths and times of its files."""
    sizes = [
        place.size if isinstance(place, Blob) else place.row if isinstance(place, Cell) else place
        for place in (item.image, item.caption)
    ]
    return repr((item.key, sizes, item.form, item.field, bool(item.classes), item.skip))


def _note(listing: Listing) -> str:
    """Describes the files that belong to no example, the most frequent kinds first."""
    common = listing.others.most_common(_NAMED)
    words = [f"{count} {kind} ({printable(listing.examples[kind])})" for kind, count in common]
    return f" (other files there: {', '.join(words)})" if words else ""


class SourcePlan:
    """Records of a split of a data set with a scheme of `sources.SOURCES`."""

    def __init__(self, path: str, *, split: str, caption_field: str = ""):
        """Opens a split.

        Args:
            path: SCHEME:LOCATION.
            split: name of the split in that data set.
            caption_field: name of the captions in that data set; "" = the default.

        Raises:
            UserError: there is no such data set or split.
        """
        keys = FeatureKeys(caption=caption_field) if caption_field else FeatureKeys()
        self._source = sources.open_source(path, split=split, keys=keys)
        self.sources = (path,)
        self.fingerprint = _fingerprint([split, caption_field, content_digest(self._source)])
        self._index: int = -1
        self._last: Record = {}
        self.signature: str | None = None
        self.others: Mapping[str, int] = {}
        self.note = ""

    def __len__(self) -> int:
        return len(self._source)

    def key(self, index: int) -> str:
        """Returns the key of example `index`."""
        return str(self._record(index)["key"])

    def read(self, index: int) -> RawExample:
        """Reads the bytes of example `index`."""
        record = self._record(index)
        caption = tuple(record.get("captions", ())) or record["caption"]
        return RawExample(record["image"], caption, scene=record["scene"])

    def close(self) -> None:
        """Does nothing; the source manages its files."""

    def _record(self, index: int) -> Record:
        """Reads a record, or returns the last one again: its key is read after its content."""
        if index != self._index:
            self._last, self._index = self._source[index], index
        return self._last


class WorldPlan:
    """Scenes of a procedural world, rendered when they are read."""

    def __init__(self, world: str, split: str, *, count: int, image_size: int, seed: int):
        """Plans the first `count` scenes of `split` of a world in `WORLDS`."""
        self.sources = (f"{world}:{split}={count}",)
        plan = f"{split} {count} {image_size} {seed}"
        self.fingerprint = _fingerprint([plan] if world == "shapes" else [world, plan])
        self.signature: str | None = ""
        self.others: Mapping[str, int] = {}
        self.note = ""
        self._generate = WORLDS[world]
        self._split, self._count, self._size, self._seed = split, count, image_size, seed
        self._next, self._stream = -1, iter(())
        next(self._scenes(0))  # reports an invalid split or size now

    def __len__(self) -> int:
        return self._count

    def key(self, index: int) -> str:
        """Returns the key of scene `index`."""
        return f"{self._split}-{self._seed}-{index:08d}"

    def read(self, index: int) -> RawExample:
        """Renders scene `index`; read in order, scenes are rendered in batches."""
        if index != self._next:
            self._stream = self._scenes(index)
        self._next = index + 1
        record = next(self._stream)
        return RawExample(record["image"], record["caption"], scene=record["scene"])

    def close(self) -> None:
        """Does nothing; no files are open."""

    def _scenes(self, start: int) -> Iterator[dict]:
        count = self._count - start
        return self._generate(
            self._split, seed=self._seed, start=start, count=count, image_size=self._size
        )


def _fingerprint(parts: Sequence[str] | Iterator[str]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode("utf-8", "surrogatepass"))
        digest.update(b"\0")
    return digest.hexdigest()
