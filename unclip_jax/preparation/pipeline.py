"""Preparation of a data set: writes the splits, the tokenizer and the report."""

import contextlib
import dataclasses
import functools
import itertools
import pathlib
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping

import numpy as np
from PIL import Image
from tqdm import tqdm

from unclip_jax.core.checks import UserError, positive
from unclip_jax.data import dataset_manifest, text
from unclip_jax.data.prepared import open_split
from unclip_jax.data.text import Tokenizer
from unclip_jax.preparation import engines, import_report, merging, plan_specs, shard_tasks
from unclip_jax.preparation.engines import Engine
from unclip_jax.preparation.import_report import Tally
from unclip_jax.preparation.importer import Importer, forget, locked
from unclip_jax.preparation.plan_specs import PlanSpec
from unclip_jax.preparation.shard_tasks import ShardTask, SplitTasks
from unclip_jax.preparation.shard_writer import ImportConfig

Complete = Callable[[dataset_manifest.Split], str]  # the keys whose inputs differ, "" = none do


@dataclasses.dataclass(frozen=True)
class TokenizerConfig:
    """The tokenizer beside the data.

    Attributes:
        source: a folder with one, "train" to train one on the captions, or "none".
        vocab_size: of a trained one, at most.
        sample: number of records on whose captions it is trained, evenly spaced, at most.
    """

    source: str = "train"
    vocab_size: int = 8192
    sample: int = 1_000_000

    def __post_init__(self):
        positive("--tokenizer-sample", self.sample)

    def load(self) -> Tokenizer | None:
        """Loads the tokenizer that `source` names, if it names one."""
        return None if self.source in ("train", "none") else text.load(self.source)


def prepare(
    specs: Mapping[str, PlanSpec],
    *,
    out: pathlib.Path,
    config: ImportConfig,
    engine: Engine,
    share: tuple[int, int] | None = None,
    tokenizer: TokenizerConfig,
) -> dict[str, Tally]:
    """Writes every split of `specs` to `out`, then its tokenizer; reports what was left out.

    Args:
        specs: the plan of every split.
        out: folder, created if missing; splits that it holds already, written alike, are kept.
        config: checks of records, and how they are stored.
        engine: where shards are written.
        share: (i, n) writes every n-th shard, beginning with number i, and no more: `merge` makes a
            data set of them.
        tokenizer: the tokenizer beside the data.

    Returns:
        Counts of each split that was written.

    Raises:
        UserError: see `Importer`; or `out` holds another version of a split or tokenizer.
    """
    warnings.simplefilter("error", Image.DecompressionBombWarning)  # counted, not printed
    loaded = tokenizer.load()
    tallies: dict[str, Tally] = {}
    plan_specs.opened.cache_clear()  # the inputs may have changed since
    plans = [
        shard_tasks.split_tasks(spec, split=split, config=config) for split, spec in specs.items()
    ]
    with locked(out, part="-of-".join(map(str, share)) if share else ""):
        for (split, spec), plan in zip(specs.items(), plans, strict=True):
            tally = _write_split(spec, plan, out=out, config=config, engine=engine, share=share)
            if tally is None:
                _say(f"split {split!r} of {out} is complete already.")
            else:
                tallies[split] = tally
        if not share:
            _save_tokenizer(out, loaded, config=tokenizer)
    if tallies:
        _say(import_report.table(tallies))
    if share:
        _say(f"part {share[0]} of {share[1]} is written; when all are: prepare merge --out={out}")
    else:
        _say(f"data set: {out}; report: {out / import_report.FILE}")
    return tallies


def merge(
    out: pathlib.Path, *, config: ImportConfig, engine: Engine, tokenizer: TokenizerConfig
) -> dict[str, Tally]:
    """Makes a data set of the shards that parts of a preparation have written to `out`.

    Raises:
        UserError: there are none, or some are missing.
    """
    loaded = tokenizer.load()
    tallies: dict[str, Tally] = {}
    with locked(out):
        plans = shard_tasks.read_plans(out)
        if not plans:
            raise UserError(f"{out} holds no shards to merge; run `prepare ... --shard=I/N` first.")
        for plan in plans:
            tallies[plan.split] = _merge_split(out, plan, config=config, engine=engine)
        _save_tokenizer(out, loaded, config=tokenizer)
    _say(import_report.table(tallies))
    _say(f"data set: {out}; report: {out / import_report.FILE}")
    return tallies


def _write_split(
    spec: PlanSpec,
    plan: SplitTasks,
    *,
    out: pathlib.Path,
    config: ImportConfig,
    engine: Engine,
    share: tuple[int, int] | None,
) -> Tally | None:
    """Writes one split; returns None if it is complete already."""
    if engine.name == "local" and not (share or plan.has_hashes):
        return _write_here(spec, plan, out=out, config=config)
    alone = dataclasses.replace(config, workers=0)  # a task has one core
    differing = functools.partial(_differing_keys, plan, config=alone, engine=engine)
    if _is_complete(out, plan, differing):
        return None
    shard_tasks.write_plan(out, plan)
    tasks = shard_tasks.selected(plan.tasks, share)
    tally = _run_tasks(tasks, plan, out=out, config=alone, engine=engine)
    return tally if share else _merge_split(out, plan, config=config, engine=engine)


def _write_here(
    spec: PlanSpec, plan: SplitTasks, *, out: pathlib.Path, config: ImportConfig
) -> Tally | None:
    """Writes a split of one plan in this process, with checking threads."""
    opened = plan_specs.opened(spec)
    importer = Importer(opened, directory=out, split=plan.split, config=config)
    if _is_complete(out, plan, importer.differing_inputs):
        return None
    with tqdm(total=len(opened), desc=plan.split, unit="record", mininterval=0.5) as bar:
        try:
            written = importer.run(bar.update)
        finally:
            with contextlib.suppress(OSError):  # a full disk has been reported
                import_report.write(out, {plan.split: importer.tally})
    dataset_manifest.write(out, _manifest(out).with_split(written))
    forget(out, plan.split)
    return importer.tally


def _run_tasks(
    tasks: list[ShardTask],
    plan: SplitTasks,
    *,
    out: pathlib.Path,
    config: ImportConfig,
    engine: Engine,
) -> Tally:
    """Writes shards; stops when the share of bad records of those so far is too large."""
    write = functools.partial(shard_tasks.prepare_shard, out=out, config=config)
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
            with contextlib.suppress(OSError):
                import_report.write(out, {plan.split: tally})
    return tally


def _merge_split(
    out: pathlib.Path, plan: SplitTasks, *, config: ImportConfig, engine: Engine
) -> Tally:
    """Makes a split of finished shards."""
    written, tally = merging.merge_split(out, plan, engine=engine, max_bad=config.max_bad)
    import_report.write(out, {plan.split: tally})
    dataset_manifest.write(out, _manifest(out).with_split(written))
    forget(out, plan.split)
    return tally


def _manifest(out: pathlib.Path) -> dataset_manifest.DatasetManifest:
    """Reads the manifest of a folder; an empty one if it has none yet."""
    exists = (out / dataset_manifest.FILE).is_file()
    return dataset_manifest.read(out) if exists else dataset_manifest.DatasetManifest()


def _is_complete(out: pathlib.Path, plan: SplitTasks, differing: Complete) -> bool:
    """True if the split was written alike and is whole; if it is not whole, it is written again.

    Raises:
        UserError: it was made from other inputs or with other options.
    """
    before = _manifest(out)
    entries = [entry for entry in before.splits if entry.name == plan.split]
    if not entries:
        return False
    entry, advice = entries[0], "choose another --out or --split, or delete the folder."
    if entry.plan != plan.fingerprint:
        raise UserError(
            f"{out} already holds a split {entry.name!r} made from other inputs or with other "
            f"options; {advice}"
        )
    keys = differing(entry)
    if keys:
        raise UserError(
            f"{out} already holds a split {entry.name!r}, whose inputs have changed since (an "
            f"image or caption of {keys}); {advice}"
        )
    try:
        if len(open_split(out, split=entry.name)) != entry.count:
            return False
    except UserError as error:
        _say(f"making split {entry.name!r} again: {error}")
        return False
    if entry.signature != plan.signature:  # the same inputs elsewhere
        moved = dataclasses.replace(entry, signature=plan.signature, sources=plan.sources)
        dataset_manifest.write(out, before.with_split(moved))
    return True


def _differing_keys(
    plan: SplitTasks, entry: dataset_manifest.Split, *, config: ImportConfig, engine: Engine
) -> str:
    """Returns the keys between which the inputs differ from those of a split; "" = nowhere."""
    if plan.signature and entry.signature == plan.signature:
        return ""
    pairs = [(task, s.inputs) for task, s in zip(plan.tasks, entry.shards, strict=True) if s.inputs]
    compare = functools.partial(_differs, config=config)
    differences: Iterator[str | None] = engines.run(compare, pairs, engine)
    return next((keys for keys in differences if keys), "")


def _differs(pair: tuple[ShardTask, str], *, config: ImportConfig) -> str:
    return shard_tasks.differing_keys(pair[0], config=config, inputs=pair[1])


def _save_tokenizer(
    out: pathlib.Path, tokenizer: Tokenizer | None, *, config: TokenizerConfig
) -> None:
    """Saves the tokenizer beside the data, unless one is there; None = trains one.

    Raises:
        UserError: another one is there.
    """
    if config.source == "none":
        return
    before, folder = dataset_manifest.read(out), out / dataset_manifest.TOKENIZER
    if before.tokenizer and (folder / "tokenizer.json").is_file():
        if tokenizer is not None and tokenizer.hash != before.tokenizer:
            raise UserError(
                f"{folder} holds another tokenizer than the one given; delete the folder {out}, or "
                "leave --tokenizer out."
            )
        return
    tokenizer = tokenizer or _train_tokenizer(out, before, config=config)
    tokenizer.save(folder)
    dataset_manifest.write(out, before.with_tokenizer(tokenizer.hash))
    _say(f"tokenizer: {tokenizer.vocab_size} entries, hash {tokenizer.hash[:12]}")


def _train_tokenizer(
    out: pathlib.Path, content: dataset_manifest.DatasetManifest, *, config: TokenizerConfig
) -> Tokenizer:
    """Trains a tokenizer on captions of split "train", or of the first one."""
    names = [split.name for split in content.splits]
    source = open_split(out, split="train" if "train" in names else names[0])
    count = min(config.sample, len(source))
    indices = (int(i) for i in np.arange(count) * len(source) // count)
    read = tqdm(indices, total=count, desc="reading captions", delay=2, leave=False)
    records = (source[i] for i in read)
    captions = itertools.chain.from_iterable(
        record.get("captions", [record["caption"]]) for record in records
    )
    return text.train(captions, vocab_size=config.vocab_size)


def _say(line: str) -> None:
    tqdm.write(line, file=sys.stdout)
