"""Merging of finished shards into a split, after removing duplicates."""

import functools
import json
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from unclip_jax.core.checks import UserError, listed
from unclip_jax.core.folder import Folder
from unclip_jax.data import dataset_manifest, records, tar_index
from unclip_jax.data.prepared import ShardSource
from unclip_jax.data.records import ShardSummary
from unclip_jax.preparation import duplicates, engines, import_report, importer, shard_writer
from unclip_jax.preparation.engines import Engine
from unclip_jax.preparation.import_report import Tally
from unclip_jax.preparation.shard_tasks import SplitTasks

DUPLICATE_KEY = "duplicate key"
_AT_ONCE = 2**24  # hashes that are sorted at once


class Removal(NamedTuple):
    """Rows to remove from a shard, and the reason for each."""

    name: str
    rows: tuple[int, ...]
    reasons: tuple[str, ...]


def merge_split(
    folder: Folder, split_plan: SplitTasks, *, engine: Engine, max_bad: float = 1.0
) -> tuple[dataset_manifest.Split, Tally]:
    """Returns the split of all finished shards, and its counts.

    Raises:
        UserError: shards are missing, too many records are bad, or none is good.
    """
    names = split_plan.names
    shards, tally = _read_logs(folder, split_plan)
    import_report.check_share(tally, total=tally.read, max_bad=max_bad, note=split_plan.note)
    if split_plan.has_hashes and remove_duplicates(folder, names, engine=engine):
        shards, tally = _read_logs(folder, split_plan)
    if not tally.written:
        raise importer.empty_split(split_plan.split, tally, split_plan.note)
    split = dataset_manifest.make_split(
        split_plan.split,
        shards,
        plan=split_plan.fingerprint,
        sources=split_plan.sources,
        signature=split_plan.signature,
        min_side=tally.min_side,
    )
    return split, tally


def remove_duplicates(folder: Folder, names: Sequence[str], *, engine: Engine) -> int:
    """Rewrites the shards with records whose key or image occurs in an earlier record.

    Returns:
        Number of rewritten shards.
    """
    repeated: dict[int, dict[int, str]] = {}
    with folder.local(map(shard_writer.hash_name, names)) as hashes:
        for column, reason in ((0, DUPLICATE_KEY), (1, duplicates.DUPLICATE)):
            for shard, row in _repeated(hashes, column, dict(repeated)):
                repeated.setdefault(shard, {})[row] = reason
    removals = []
    for shard in sorted(repeated):
        rows, reasons = zip(*sorted(repeated[shard].items()), strict=True)
        removals.append(Removal(names[shard], rows, reasons))
    for _ in engines.run(functools.partial(remove_rows, folder=folder), removals, engine):
        pass
    return len(removals)


def remove_rows(removal: Removal, *, folder: Folder) -> None:
    """Rewrites a shard and its log without some of its rows.

    The log is removed first, so that the shard is prepared again after an interruption.
    """
    name = removal.name
    content = folder.read(shard_writer.log_name(name))
    if content is None:  # after an interruption, if an engine retries
        raise UserError(f"{folder} lost the log of {name}; run the same command again.")
    facts = json.loads(content)
    folder.remove([shard_writer.log_name(name)])
    with folder.local([name, shard_writer.hash_name(name)]) as (shard, hashes):
        tally, summary, size = _write_again(removal, folder, shard, facts)
        remaining = np.delete(np.array(duplicates.read_hashes(hashes)), removal.rows, axis=0)
    shard_writer.write_hashes(folder, name, remaining)
    content = {**facts, "tally": tally.to_json(), "size": size, **summary._asdict()}
    shard_writer.write_log(folder, name, content)


def _write_again(
    removal: Removal, folder: Folder, path: pathlib.Path, facts: dict[str, Any]
) -> tuple[Tally, ShardSummary, int]:
    """Writes the remaining rows of the shard at `path`; returns counts, summary and size."""
    reasons = dict(zip(removal.rows, removal.reasons, strict=True))
    source = ShardSource([path], [facts["written"]])
    tally = import_report.from_json(facts["tally"])
    for row, reason in reasons.items():
        tally.written -= 1
        tally.skip(source[row]["key"], reason)
    remaining = [row for row in range(facts["written"]) if row not in reasons]
    with folder.output(removal.name) as target:
        if path.name.endswith(tar_index.SUFFIX):
            index = tar_index.TarShard(path)
            rows = ((source[row], index.place(row)) for row in remaining)
            summary = tar_index.write_index(target, rows, options=index.options)
        else:
            summary = records.write_shard(target, (source[row] for row in remaining))
        return tally, summary, target.stat().st_size


def _read_logs(
    folder: Folder, split_plan: SplitTasks
) -> tuple[tuple[dataset_manifest.Shard, ...], Tally]:
    """Returns the entries of all shards for the manifest, and their counts.

    Raises:
        UserError: shards are missing, or one was written from another plan.
    """
    tally, shards, missing = Tally(others=dict(split_plan.others)), [], []
    names = split_plan.names
    logs = folder.read_all(map(shard_writer.log_name, names))
    for name, content in zip(names, logs, strict=True):
        if content is None:
            missing.append(name)
            continue
        log = json.loads(content)
        if log["plan"] != split_plan.fingerprint:
            raise UserError(
                f"{name} in {folder} was prepared from other inputs or with other options than the "
                "shards beside it; delete the folder and prepare it again."
            )
        tally.add(import_report.from_json(log["tally"]))
        shards.append(dataset_manifest.Shard(name, log["written"], log["sha256"], log["inputs"]))
    if missing:
        raise UserError(
            f"{len(missing)} of the {len(names)} shards of split {split_plan.split!r} in {folder} "
            f"are missing ({listed(missing, most=3)}); run the --shard parts that write them."
        )
    return tuple(shards), tally


def _repeated(
    files: Sequence[pathlib.Path], column: int, left_out: dict[int, Any]
) -> Iterator[tuple[int, int]]:
    """Yields (shard, row) of all records whose hash occurs in an earlier record; 0 is no hash.

    The range of hashes is divided into parts that are sorted one at a time, to limit the memory.
    """
    total = sum(len(duplicates.read_hashes(file)) for file in files)
    bits = (total // _AT_ONCE).bit_length()
    for part in range(2**bits):
        values, places = [], []
        for shard, file in enumerate(files):
            column_values = np.asarray(duplicates.read_hashes(file)[:, column])
            chosen = column_values != 0
            chosen[list(left_out.get(shard, ()))] = False
            if bits:
                chosen &= (column_values >> np.uint64(64 - bits)) == part
            rows = np.flatnonzero(chosen)
            values.append(column_values[rows])
            places.append(np.stack([np.full(len(rows), shard), rows], axis=1))
        joined, where = np.concatenate(values), np.concatenate(places)
        repeats = np.ones(len(joined), bool)
        repeats[np.unique(joined, return_index=True)[1]] = False
        yield from map(tuple, where[repeats].tolist())
