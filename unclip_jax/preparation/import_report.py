"""Reports of an import: counts of records that were read, written and skipped, with reasons."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from unclip_jax.core.checks import UserError
from unclip_jax.core.folder import Folder
from unclip_jax.preparation.duplicates import DUPLICATE
from unclip_jax.preparation.filters import FILTERED

FILE = "report.json"
_NO_FAULT = (FILTERED, DUPLICATE)
_NAMED = 100_000  # keys stored per reason
_EXAMPLES = 5  # of these in a message
_WIDTH = 80  # characters of a key in messages


@dataclasses.dataclass
class Tally:
    """Counts of one split, or of one shard of it.

    Attributes:
        written: number of records written to shards.
        skipped: reason -> number of records.
        named: reason -> keys of the first 100,000 of these records.
        others: kind -> number of files in the inputs that belong to no example.
        min_side: shorter side of the smallest written image, in pixels; 0 = unknown.
        seconds: time spent reading, checking and writing.
    """

    written: int = 0
    skipped: dict[str, int] = dataclasses.field(default_factory=dict)
    named: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    others: dict[str, int] = dataclasses.field(default_factory=dict)
    min_side: int = 0
    seconds: float = 0.0

    @property
    def bad(self) -> int:
        """Number of records that cannot be used, without those that filters leave out."""
        return sum(self.skipped.values()) - sum(self.skipped.get(why, 0) for why in _NO_FAULT)

    @property
    def read(self) -> int:
        """Number of records read."""
        return self.written + sum(self.skipped.values())

    def write(self, side: int) -> None:
        """Counts one record whose image has this shorter side."""
        self.written += 1
        self.min_side = min(self.min_side or side, side)

    def skip(self, key: str, reason: str) -> None:
        """Counts one skipped record."""
        self.skipped[reason] = self.skipped.get(reason, 0) + 1
        keys = self.named.setdefault(reason, [])
        if len(keys) < _NAMED:
            keys.append(key)

    def add(self, other: "Tally") -> None:
        """Adds the counts of another tally to this one."""
        self.written += other.written
        self.min_side = min(filter(None, (self.min_side, other.min_side)), default=0)
        self.seconds += other.seconds
        for reason, number in other.skipped.items():
            self.skipped[reason] = self.skipped.get(reason, 0) + number
            keys = self.named.setdefault(reason, [])
            keys += other.named.get(reason, [])[: _NAMED - len(keys)]

    def to_json(self) -> dict[str, Any]:
        """Returns all counts, JSON-ready, the most frequent reason first."""
        ordered = dict(sorted(self.skipped.items(), key=lambda pair: -pair[1]))
        rate = self.read / self.seconds if self.seconds else 0.0
        return {
            "read": self.read,
            "kept": self.written,
            "skipped": ordered,
            "named": {reason: self.named[reason] for reason in ordered},
            "other_files": self.others,
            "min_side": self.min_side,
            "seconds": round(self.seconds, 3),
            "records_per_second": round(rate, 1),
        }


def from_json(record: Mapping[str, Any]) -> Tally:
    """Inverts `Tally.to_json`."""
    return Tally(
        written=record["kept"],
        skipped=dict(record["skipped"]),
        named={reason: list(keys) for reason, keys in record["named"].items()},
        others=dict(record.get("other_files", {})),
        min_side=record.get("min_side", 0),
        seconds=record["seconds"],
    )


def check_share(tally: Tally, *, total: int, max_bad: float, note: str = "") -> None:
    """Checks that not more than `max_bad` of all `total` records are bad; one always may be.

    Raises:
        UserError: more are bad; lists the reasons, some of the keys, and `note`.
    """
    if tally.bad <= max(1, int(max_bad * total)):
        return
    raise UserError(
        f"stopped: {tally.bad} of the first {tally.read} records cannot be used, more than "
        f"--max-bad={max_bad:g} of {total} allows: {reasons(tally)}{note}. "
        "Finished shards are kept; repair the input, or raise --max-bad and run the same command "
        "again."
    )


def reasons(tally: Tally) -> str:
    """Returns the reasons of skipped records on one line."""
    counts = tally.to_json()["skipped"].items()
    return "; ".join(f"{number} {why} ({_some(tally.named[why])})" for why, number in counts)


def _some(keys: list[str]) -> str:
    """Returns the first keys, shortened and on one line."""
    lines = (" ".join(key.split()) for key in keys[:_EXAMPLES])
    short = [line if len(line) <= _WIDTH else f"{line[:_WIDTH]}..." for line in lines]
    return ", ".join(short + ["..."] * (len(keys) > _EXAMPLES))


def write(folder: Folder, tallies: Mapping[str, Tally]) -> None:
    """Updates the splits of `tallies` in report.json; keeps the others."""
    content = json.loads(folder.read(FILE) or b"{}")
    content.update({split: tally.to_json() for split, tally in tallies.items()})
    folder.write(FILE, json.dumps(content, indent=2, ensure_ascii=False))


def table(tallies: Mapping[str, Tally]) -> str:
    """Formats the report: one row per split, then one line per reason."""
    rows: list[tuple[str, ...]] = [("split", "read", "kept", "skipped", "per second")]
    for split, tally in tallies.items():
        facts = tally.to_json()
        skipped = facts["read"] - facts["kept"]
        numbers = (facts["read"], facts["kept"], skipped, round(facts["records_per_second"]))
        rows.append((split, *(f"{number:,}" for number in numbers)))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join(cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(pairs))
        for pairs in (list(zip(row, widths, strict=True)) for row in rows)
    ]
    for split, tally in tallies.items():
        for reason, number in tally.to_json()["skipped"].items():
            lines.append(f"  {split}: {number:,} skipped, {reason}: {_some(tally.named[reason])}")
        if tally.others:
            kinds = ", ".join(f"{count:,} {kind}" for kind, count in tally.others.items())
            lines.append(f"  {split}: other files there: {kinds}")
    return "\n".join(lines)
