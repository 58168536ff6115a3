"""Preparation of a data set: writes the splits, the tokenizer and the report."""

import contextlib
import dataclasses
import functools
import itertools
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent import futures

import numpy as np
from jaxtyping import Int64
from PIL import Image
from tqdm import tqdm

from unclip_jax.core.checks import UserError, in_range, positive
from unclip_jax.core.folder import Folder
from unclip_jax.core.storage import Location
from unclip_jax.data import dataset_manifest
from unclip_jax.data.dataset import Source, without_image
from unclip_jax.data.prepared import open_split
from unclip_jax.preparation import engines, import_report, merging, plan_specs, shard_tasks
from unclip_jax.preparation.engines import Engine
from unclip_jax.preparation.import_report import Tally
from unclip_jax.preparation.importer import Importer, forget, locked
from unclip_jax.preparation.plan_specs import PlanSpec
from unclip_jax.preparation.shard_tasks import ShardTask, SplitTasks
from unclip_jax.preparation.shard_writer import ImportConfig
from unclip_jax.tokenization import caption_tokenizer
from unclip_jax.tokenization.caption_tokenizer import Tokenizer

_READERS = 64  # records that are read concurrently, ...
_TOGETHER = 4096  # ... from batches of this size

Complete = Callable[[dataset_manifest.Split], str]  # the keys whose inputs differ; "" = none do


@dataclasses.dataclass(frozen=True)
class TokenizerConfig:
    """The tokenizer beside the data.

    Attributes:
        source: folder of a tokenizer, "train" to train one on the captions, or "none".
        vocab_size: largest number of entries of a trained tokenizer.
        sample: largest number of records on whose captions it is trained, evenly spaced.
    """

    source: str = "train"
    vocab_size: int = 8192
    sample: int = 1_000_000

    def __post_init__(self):
        positive("--tokenizer-sample", self.sample)
        in_range(
            "--vocab-size",
            self.vocab_size,
            caption_tokenizer.MIN_VOCAB,
            caption_tokenizer.MAX_VOCAB,
        )

    def load(self) -> Tokenizer | None:
        """Loads the tokenizer of the folder `source`; returns None for "train" and "none"."""
        return None if self.source in ("train", "none") else caption_tokenizer.load(self.source)


def prepare(
    specs: Mapping[str, PlanSpec],
    *,
    out: Location,
    config: ImportConfig,
    engine: Engine,
    share: tuple[int, int] | None = None,
    tokenizer: TokenizerConfig,
) -> dict[str, Tally]:
    """Writes every split of `specs` to `out`, then its tokenizer; reports what was left out.

    Args:
        specs: the plan of every split.
        out: folder or URL, created if missing; existing splits with the same inputs and options
            are kept.
        config: checks of records, and how they are stored.
        engine: engine that writes the shards.
        share: (i, n) writes only every n-th shard, starting with number i; `merge` combines all
            shares into a data set.
        tokenizer: the tokenizer beside the data.

    Returns:
        Counts of each split that was written.

    Raises:
        UserError: `out` contains another version of a split or tokenizer, or see `Importer`.
    """
    warnings.simplefilter("error", Image.DecompressionBombWarning)  # counted, not printed
    loaded = tokenizer.load()
    tallies: dict[str, Tally] = {}
    plan_specs.open_plan.cache_clear()  # the inputs may have changed
    plans = [
        shard_tasks.split_tasks(spec, split=split, config=config) for split, spec in specs.items()
    ]
    folder = Folder(out)
    with locked(folder, part="-of-".join(map(str, share)) if share else ""):
        for (split, spec), plan in zip(specs.items(), plans, strict=True):
            tally = _write_split(
                spec, plan, folder=folder, config=config, engine=engine, share=share
            )
            if tally is None:
                _say(f"split {split!r} of {out} is complete already.")
            else:
                tallies[split] = tally
        if not share:
            _save_tokenizer(folder, loaded, config=tokenizer)
    if tallies:
        _say(import_report.table(tallies))
    if share:
        _say(f"part {share[0]} of {share[1]} is written; when all are: prepare merge --out={out}")
    else:
        _say(f"data set: {out}; report: {out / import_report.FILE}")
    return tallies


def merge(
    out: Location, *, config: ImportConfig, engine: Engine, tokenizer: TokenizerConfig
) -> dict[str, Tally]:
    """Combines the shards that shares of a preparation have written to `out` into a data set.

    Raises:
        UserError: there are no shards, or some are missing.
    """
    loaded = tokenizer.load()
    tallies: dict[str, Tally] = {}
    folder = Folder(out)
    with locked(folder):
        plans = shard_tasks.read_plans(folder)
        if not plans:
            raise UserError(f"{out} holds no shards to merge; run `prepare ... --shard=I/N` first.")
        for plan in plans:
            tallies[plan.split] = _merge_split(folder, plan, config=config, engine=engine)
        _save_tokenizer(folder, loaded, config=tokenizer)
    _say(import_report.table(tallies))
    _say(f"data set: {out}; report: {out / import_report.FILE}")
    return tallies


def _write_split(
    spec: PlanSpec,
    plan: SplitTasks,
    *,
    folder: Folder,
    config: ImportConfig,
    engine: Engine,
    share: tuple[int, int] | None,
) -> Tally | None:
    """Writes one split; returns None if it is already complete."""
    if engine.name == "local" and not (share or plan.has_hashes):
        return _write_here(spec, plan, folder=folder, config=config)
    alone = dataclasses.replace(config, workers=0)  # every task has one core
    differing = functools.partial(_differing_keys, plan, config=alone, engine=engine)
    if _is_complete(folder, plan, differing):
        return None
    shard_tasks.write_plan(folder, plan)
    tasks = shard_tasks.selected(plan.tasks, share)
    tally = _run_tasks(tasks, plan, folder=folder, config=alone, engine=engine)
    return tally if share else _merge_split(folder, plan, config=config, engine=engine)


def _write_here(
    spec: PlanSpec, plan: SplitTasks, *, folder: Folder, config: ImportConfig
) -> Tally | None:
    """Writes a split of one plan in this process, checking records in threads."""
    opened = plan_specs.open_plan(spec)
    importer = Importer(opened, folder=folder, split=plan.split, config=config)
    if _is_complete(folder, plan, importer.differing_inputs):
        return None
    with tqdm(total=len(opened), desc=plan.split, unit="record", mininterval=0.5) as bar:
        try:
            written = importer.run(bar.update)
        finally:
            with contextlib.suppress(OSError, UserError):  # a full disk has been reported
                import_report.write(folder, {plan.split: importer.tally})
    dataset_manifest.write(folder.place, _manifest(folder).with_split(written))
    forget(folder, plan.split)
    return importer.tally


def _run_tasks(
    tasks: list[ShardTask],
    plan: SplitTasks,
    *,
    folder: Folder,
    config: ImportConfig,
    engine: Engine,
) -> Tally:
    """Writes shards; stops if the share of bad records is too large."""
    write = functools.partial(shard_tasks.prepare_shard, folder=folder, config=config)
    tally, done = Tally(others=dict(plan.others)), 0
    with tqdm(total=len(tasks), desc=plan.split, unit="shard", mininterval=0.5) as bar:
        try:
            for log in engines.run(write, tasks, engine):
                bar.update()
                done += 1
                if log is None:
                    continue
                tally.add(import_report.from_json(log["tally"]))
                expected = tally.read * len(tasks) // done
                import_report.check_share(
                    tally, total=expected, max_bad=config.max_bad, note=plan.note
                )
        finally:
            with contextlib.suppress(OSError, UserError):
                import_report.write(folder, {plan.split: tally})
    return tally


def _merge_split(
    folder: Folder, plan: SplitTasks, *, config: ImportConfig, engine: Engine
) -> Tally:
    """Writes the split of finished shards to the manifest."""
    written, tally = merging.merge_split(folder, plan, engine=engine, max_bad=config.max_bad)
    import_report.write(folder, {plan.split: tally})
    dataset_manifest.write(folder.place, _manifest(folder).with_split(written))
    forget(folder, plan.split)
    return tally


def _manifest(folder: Folder) -> dataset_manifest.DatasetManifest:
    """Reads the manifest of a folder; returns an empty one if it does not exist."""
    if folder.size(dataset_manifest.FILE) is None:
        return dataset_manifest.DatasetManifest()
    return dataset_manifest.read(folder.place)


def _is_complete(folder: Folder, plan: SplitTasks, differing: Complete) -> bool:
    """True if the split has been written from the same plan and all its shards are intact.

    Raises:
        UserError: it was written from other inputs or with other options.
    """
    before = _manifest(folder)
    entries = [entry for entry in before.splits if entry.name == plan.split]
    if not entries:
        return False
    entry, advice = entries[0], "choose another --out or --split, or delete the folder."
    if entry.plan != plan.fingerprint:
        raise UserError(
            f"{folder} already holds a split {entry.name!r} made from other inputs or with other "
            f"options; {advice}"
        )
    keys = differing(entry)
    if keys:
        raise UserError(
            f"{folder} already holds a split {entry.name!r}, whose inputs have changed since (an "
            f"image or caption of {keys}); {advice}"
        )
    try:
        source = open_split(folder.place, split=entry.name)
        source.check()
        if len(source) != entry.count:
            return False
    except UserError as error:
        _say(f"making split {entry.name!r} again: {error}")
        return False
    if entry.signature != plan.signature:  # the same inputs in another place
        moved = dataclasses.replace(entry, signature=plan.signature, sources=plan.sources)
        dataset_manifest.write(folder.place, before.with_split(moved))
    return True


def _differing_keys(
    plan: SplitTasks, entry: dataset_manifest.Split, *, config: ImportConfig, engine: Engine
) -> str:
    """Returns the keys between which the inputs differ from those of a split; "" if equal."""
    if plan.signature and entry.signature == plan.signature:
        return ""
    pairs = [(task, s.inputs) for task, s in zip(plan.tasks, entry.shards, strict=True) if s.inputs]
    compare = functools.partial(_differs, config=config)
    differences: Iterator[str | None] = engines.run(compare, pairs, engine)
    return next((keys for keys in differences if keys), "")


def _differs(pair: tuple[ShardTask, str], *, config: ImportConfig) -> str:
    return shard_tasks.differing_keys(pair[0], config=config, inputs=pair[1])


def _save_tokenizer(
    folder: Folder, tokenizer: Tokenizer | None, *, config: TokenizerConfig
) -> None:
    """Saves the tokenizer beside the data, unless it is there already; None = trains one.

    Raises:
        UserError: there is another tokenizer.
    """
    if config.source == "none":
        return
    before, place = dataset_manifest.read(folder.place), dataset_manifest.TOKENIZER
    if before.tokenizer and folder.size(f"{place}/tokenizer.json") is not None:
        if tokenizer is not None and tokenizer.hash != before.tokenizer:
            raise UserError(
                f"{folder.place / place} holds another tokenizer than the one given; delete the "
                f"folder {folder}, or leave --tokenizer out."
            )
        return
    tokenizer = tokenizer or _train_tokenizer(folder, before, config=config)
    with folder.output(f"{place}/tokenizer.json") as path:
        tokenizer.save(path.parent)
    dataset_manifest.write(folder.place, before.with_tokenizer(tokenizer.hash))
    _say(f"tokenizer: {tokenizer.vocab_size} entries, hash {tokenizer.hash[:12]}")


def _train_tokenizer(
    folder: Folder, content: dataset_manifest.DatasetManifest, *, config: TokenizerConfig
) -> Tokenizer:
    """Trains a tokenizer on captions of the split "train", or of the first one."""
    names = [split.name for split in content.splits]
    source = open_split(folder.place, split="train" if "train" in names else names[0])
    count = min(config.sample, len(source))
    indices = np.arange(count) * len(source) // count
    captions = itertools.chain.from_iterable(_captions(source, indices))
    return caption_tokenizer.train(captions, vocab_size=config.vocab_size)


def _captions(source: Source, indices: Int64[np.ndarray, " n"]) -> Iterator[list[str]]:
    """Yields the captions of some records in order, reading many concurrently."""

    def read(index: np.int64) -> list[str]:
        record = without_image(source, int(index))
        return record.get("captions", [record["caption"]])

    bar = tqdm(total=len(indices), desc="reading captions", delay=2, leave=False)
    with bar, futures.ThreadPoolExecutor(_READERS) as pool:
        for start in range(0, len(indices), _TOGETHER):
            part = indices[start : start + _TOGETHER]
            yield from pool.map(read, part)
            bar.update(len(part))


def _say(line: str) -> None:
    tqdm.write(line, file=sys.stdout)
