"""Tasks of an import: one shard each, independent of each other and of where they run.

A split of large archives is divided by files, so nothing has to be listed first: each task reads
its own archives. Any other split is one plan, of which each task has a range of examples.
"""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Sequence
from typing import Any

from unclip_jax.core.checks import UserError
from unclip_jax.core.config import as_dict
from unclip_jax.core.files import printable
from unclip_jax.core.folder import Folder
from unclip_jax.data import records, tar_index
from unclip_jax.data.tar_index import ReadOptions
from unclip_jax.preparation import importer, plan_specs, shard_writer
from unclip_jax.preparation.archives import Archive, Archives, find_archives
from unclip_jax.preparation.filters import Where
from unclip_jax.preparation.plan_specs import FileSpec, PlanSpec
from unclip_jax.preparation.remote_archives import find_remote
from unclip_jax.preparation.shard_writer import LOGS, ImportConfig, ShardWriter

_MB = 10**6
_PLAN = ".plan.json"


@dataclasses.dataclass(frozen=True)
class ShardTask:
    """A range of the examples of a plan, and the shard to which they are written.

    Attributes:
        name: file name of the shard.
        spec: the plan.
        part: index of the range ...
        parts: ... among this number of equal ranges.
        fingerprint: fingerprint of the split.
        signature: signature of the files that the plan reads (see `items.Plan`).
    """

    name: str
    spec: PlanSpec
    part: int
    parts: int
    fingerprint: str
    signature: str | None


@dataclasses.dataclass(frozen=True)
class SplitTasks:
    """The tasks of a split, and its entries in the manifest.

    Attributes:
        split: name of the split.
        total: number of shards.
        fingerprint: hash of inputs and options, without paths.
        sources: the inputs, as on the command line.
        signature: signature of all input files; "" = none.
        by_file: True if the tasks are divided by files, so that keys may repeat between them.
        others: kind -> number of files that belong to no example.
        note: description of these files for messages.
        dedup: kind of duplicates to remove.
        index: True if shards are indices of tars.
        tasks: tasks of the shards in order; () if unknown, as in a merge.
    """

    split: str
    total: int
    fingerprint: str
    sources: tuple[str, ...]
    signature: str
    by_file: bool
    others: dict[str, int]
    note: str
    dedup: str
    index: bool = False
    tasks: tuple[ShardTask, ...] = ()

    @property
    def names(self) -> list[str]:
        """File names of the shards in order."""
        names = [records.shard_name(self.split, i, self.total) for i in range(self.total)]
        return [pathlib.Path(n).stem + tar_index.SUFFIX for n in names] if self.index else names

    @property
    def has_hashes(self) -> bool:
        """True if duplicates are searched for between shards."""
        return self.by_file or self.dedup != "none"


def prepare_shard(task: ShardTask, *, folder: Folder, config: ImportConfig) -> dict[str, Any]:
    """Writes one shard and its log; returns the log, also if the shard was already finished.

    The memory needed depends on the archives of the task, not on the size of the data set.

    Raises:
        UserError: the disk is full or read-only.
    """
    facts = shard_writer.finished_log(folder, task.name)
    if facts and task.signature is not None and facts.get("signature") == task.signature:
        return facts
    hashes = (isinstance(task.spec, FileSpec) and task.spec.part) or config.dedup != "none"
    with plan_specs.using(task.spec) as plan:
        writer = ShardWriter(
            plan,
            folder=folder,
            config=config,
            fingerprint=task.fingerprint,
            signature=task.signature,
            hashes=hashes,
            read_options=_read_options(task.spec),
        )
        return writer.write(task.name, _indices(task, len(plan)))


def differing_keys(task: ShardTask, *, config: ImportConfig, inputs: str) -> str:
    """Returns the keys between which a task's inputs differ from those of digest `inputs`."""
    with plan_specs.using(task.spec) as plan:
        indices = _indices(task, len(plan))
        writer = ShardWriter(plan, folder=Folder(pathlib.Path()), config=config, fingerprint="")
        if writer.digest(indices) == inputs or not indices:
            return ""
        return f"{plan.key(indices[0])} .. {plan.key(indices[-1])}"


def split_tasks(spec: PlanSpec, *, split: str, config: ImportConfig) -> SplitTasks:
    """Plans the shards of a split; lists its examples unless it is divided by files.

    Raises:
        UserError: an input cannot be used.
    """
    remote = find_remote(spec.inputs) if isinstance(spec, FileSpec) else None
    if remote and config.shards:
        raise UserError("--shards is for local inputs; for archives at URLs use --shard-mb.")
    if isinstance(spec, FileSpec) and not config.shards:
        archives = remote or find_archives(spec.inputs)
        if config.index and not _are_tars(archives):
            raise UserError(
                f"--index reads tars that are not compressed; {', '.join(spec.inputs)} holds other "
                "files. Leave --index out."
            )
        by_file = remote or config.index
        if archives and (by_file or archives.size() > config.shard_mb * _MB):
            return _tasks_by_file(spec, archives, split=split, config=config)
    if config.index:
        raise UserError(f"--index is for tars; split {split!r} has other inputs. Leave it out.")
    plan = plan_specs.open_plan(spec)
    total = importer.shard_count(plan, config)
    split_plan = SplitTasks(
        split=split,
        total=total,
        fingerprint=importer.plan_fingerprint(plan, config),
        sources=plan.sources,
        signature=plan.signature or "",
        by_file=False,
        others=dict(plan.others),
        note=plan.note,
        dedup=config.dedup,
    )
    tasks = (
        ShardTask(name, spec, index, total, split_plan.fingerprint, plan.signature)
        for index, name in enumerate(split_plan.names)
    )
    return dataclasses.replace(split_plan, tasks=tuple(tasks))


def _are_tars(archives: Archives | None) -> bool:
    return archives is not None and all(f.path.lower().endswith(".tar") for f in archives.files)


def _tasks_by_file(
    spec: FileSpec, archives: Archives, *, split: str, config: ImportConfig
) -> SplitTasks:
    most = config.shard_mb * _MB
    groups = archives.groups(most)
    parts = [max(1, int(sum(file.size for file in group) // (2 * most))) for group in groups]
    contents = ([pathlib.PurePath(f.path).name, f.size] for f in archives.files)
    options = [spec.options, config.options, parts, list(map(len, groups)), list(contents)]
    kinds = [f"{count} {kind}" for kind, count in archives.others.most_common(5)]
    split_plan = SplitTasks(
        split=split,
        total=sum(parts),
        fingerprint=_hash(options),
        sources=tuple(printable(text) for text in spec.inputs),
        signature=_signature(archives.files),
        by_file=True,
        others=dict(archives.others),
        note=f" (other files there: {', '.join(kinds)})" if kinds else "",
        dedup=config.dedup,
        index=config.index,
    )
    names = iter(split_plan.names)
    tasks = []
    for group, number in zip(groups, parts, strict=True):
        inputs = tuple(file.path for file in group)
        part_of = dataclasses.replace(spec, inputs=inputs, part=True)
        for part in range(number):
            place = (next(names), part_of, part, number)
            tasks.append(ShardTask(*place, split_plan.fingerprint, _signature(group)))
    return dataclasses.replace(split_plan, tasks=tuple(tasks))


def write_plan(folder: Folder, split_plan: SplitTasks) -> None:
    """Writes everything that a merge needs beside the logs.

    Raises:
        UserError: the folder contains an unfinished split of other inputs or options.
    """
    content = json.dumps(as_dict(dataclasses.replace(split_plan, tasks=())), ensure_ascii=False)
    before = folder.read(_plan_name(split_plan.split))
    if before is None:
        importer.check_logs(folder, split_plan.split, split_plan.fingerprint)
    elif json.loads(before)["fingerprint"] != split_plan.fingerprint:
        raise importer.other_version(folder, split_plan.split)
    if before is None or before.decode() != content:
        folder.write(_plan_name(split_plan.split), content)


def read_plans(folder: Folder) -> list[SplitTasks]:
    """Reads the plans of the unfinished splits of a folder, without their tasks."""
    names = [name for name in folder.names(LOGS) if name.endswith(_PLAN)]
    plans = []
    for text in folder.read_all(f"{LOGS}/{name}" for name in names):
        content = json.loads(text or b"{}")
        content |= {"sources": tuple(content["sources"]), "tasks": ()}
        plans.append(SplitTasks(**content))
    return plans


def _plan_name(split: str) -> str:
    return f"{LOGS}/{split}{_PLAN}"


def selected(tasks: Sequence[ShardTask], share: tuple[int, int] | None) -> list[ShardTask]:
    """Returns every N-th task starting with number I, for the share (I, N); None = all."""
    return list(tasks) if share is None else list(tasks[share[0] :: share[1]])


def _read_options(spec: PlanSpec) -> ReadOptions:
    """Returns the options with which an index reads the records of a plan."""
    if not isinstance(spec, FileSpec):
        return ReadOptions()
    facts = (*(Where(spec.where).columns if spec.where else ()), *(["uid"] if spec.uids else ()))
    return ReadOptions(spec.caption_field, spec.prefix, tuple(facts))


def _indices(task: ShardTask, count: int) -> range:
    return shard_writer.share(count, task.part, task.parts)


def _signature(files: Sequence[Archive]) -> str:
    return _hash([list(file) for file in files])


def _hash(content: Any) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()
