"""Descriptions of plans, which can be sent to other processes and opened there."""

import contextlib
import dataclasses
import functools
import glob
import pathlib
from collections.abc import Iterator, Sequence

from unclip_jax.core import storage
from unclip_jax.core.checks import UserError, check_seed
from unclip_jax.data import sources
from unclip_jax.preparation.filters import Uids, Where
from unclip_jax.preparation.import_plans import (
    FilePlan,
    SourcePlan,
    WorldPlan,
    group_inputs,
    world_counts,
)
from unclip_jax.preparation.items import Plan
from unclip_jax.preparation.remote_archives import RemotePlan


@dataclasses.dataclass(frozen=True)
class FileSpec:
    """A `FilePlan`.

    Attributes:
        inputs: the inputs, as on the command line.
        caption_field: see `FilePlan`.
        prefix: see `FilePlan`.
        where: condition on metadata; "" = none.
        uids: file with the uids of examples to keep; "" = keep all.
        part: True for some of the inputs of a split, which may contain no example.
    """

    inputs: tuple[str, ...]
    caption_field: str = ""
    prefix: bool = False
    where: str = ""
    uids: str = ""
    part: bool = False

    def open(self) -> Plan:
        """Lists the inputs; archives in object stores are copied first."""
        plan = RemotePlan if storage.is_url(self.inputs[0]) else FilePlan
        return plan(
            self.inputs,
            caption_field=self.caption_field,
            prefix=self.prefix,
            where=Where(self.where) if self.where else None,
            uids=_uids(self.uids) if self.uids else None,
            part=self.part,
        )

    @property
    def options(self) -> list[str]:
        """The settings that change the examples, for fingerprints."""
        plain = [self.caption_field, "prefix" if self.prefix else "", self.where]
        return [*plain, *(_uids(self.uids).identity if self.uids else ())]


@dataclasses.dataclass(frozen=True)
class SourceSpec:
    """A `SourcePlan`; the attributes are its arguments."""

    path: str
    split: str
    caption_field: str = ""

    def open(self) -> Plan:
        """Opens the split."""
        return SourcePlan(self.path, split=self.split, caption_field=self.caption_field)


@dataclasses.dataclass(frozen=True)
class WorldSpec:
    """A `WorldPlan`; the attributes are its arguments."""

    world: str
    split: str
    count: int
    image_size: int
    seed: int

    def open(self) -> Plan:
        """Plans the scenes."""
        size, seed = self.image_size, self.seed
        return WorldPlan(self.world, self.split, count=self.count, image_size=size, seed=seed)


PlanSpec = FileSpec | SourceSpec | WorldSpec


@functools.lru_cache(maxsize=8)
def open_plan(spec: PlanSpec) -> Plan:
    """Returns the plan of `spec`; caches the last ones, because more shards follow."""
    return spec.open()


@contextlib.contextmanager
def using(spec: PlanSpec) -> Iterator[Plan]:
    """Opens the plan of `spec`, closes it afterwards, and removes copies of archives."""
    plan = open_plan(spec)
    try:
        yield plan
    finally:
        plan.close()
        if isinstance(plan, RemotePlan):
            open_plan.cache_clear()
            plan.remove()


@functools.lru_cache(maxsize=1)
def _uids(path: str) -> Uids:
    return Uids(pathlib.Path(path))


def make_specs(
    inputs: Sequence[str],
    *,
    split: str,
    caption_field: str = "",
    prefix: bool = False,
    where: str = "",
    uids: str = "",
    image_size: int = 64,
    seed: int = 0,
) -> dict[str, PlanSpec]:
    """Describes the plan of every split.

    Args:
        inputs: folders, tars, images, globs, data sets such as "tfds:NAME", SPLIT=one of these,
            or a world, "shapes[:...]".
        split: split of inputs that do not name their own.
        caption_field: JSON field, or feature of a data set, with the caption.
        prefix: see `FilePlan`.
        where: condition on the metadata of files; "" = none.
        uids: file with the uids of examples to keep; "" = keep all.
        image_size: side of a world's images.
        seed: seed of a world.

    Raises:
        UserError: an input cannot be used, or inputs of one split cannot be mixed.
    """
    check_seed("--seed", seed)
    if where:
        Where(where)  # reports a malformed condition now
    specs: dict[str, PlanSpec] = {}
    files: list[str] = []
    for text in inputs:
        counts = world_counts(text)
        if counts is None:
            files.append(text)
        for name, count in (counts or {}).items():
            if name in specs:
                raise UserError(f"split {name!r} would mix two worlds; give each its own folder.")
            specs[name] = WorldSpec(text.partition(":")[0], name, count, image_size, seed)
    if (where or uids) and specs:
        raise UserError(
            "--where and --uids filter files; procedural worlds have no metadata. Leave them out."
        )
    for name, group in group_inputs(files, split=split).items():
        if isinstance(world := specs.get(name), WorldSpec):
            raise UserError(
                f"split {name!r} would mix {world.world} and files; use --split or SPLIT=."
            )
        named = [path for path in group if sources.parse_path(path)[0] and not glob.has_magic(path)]
        if named and len(group) > 1:
            raise UserError(
                f"split {name!r} would mix {named[0]} with other inputs; give it a split of its "
                "own with --split or SPLIT=."
            )
        if named and (where or uids):
            raise UserError(f"--where and --uids filter files, not {named[0]}; leave them out.")
        if named:
            specs[name] = SourceSpec(named[0], name, caption_field)
        else:
            specs[name] = FileSpec(tuple(group), caption_field, prefix, where, uids)
    return specs
