"""Pairs of arrays as a data set: conditions x and a target y, matched by row or by key.

Rows of all columns are matched by key if every column has keys, else by their number. A key may
occur several times, for repeated trials of one stimulus or several targets of one condition. Every
combination is then one pair, or the conditions of one key are averaged. All pairs of one group or
key are in the same split.
"""

import functools
import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from jaxtyping import Bool, Int

from unclip_jax.core.batch import Field
from unclip_jax.core.checks import UserError, listed, one_of
from unclip_jax.pairs import column_files, subject_labels
from unclip_jax.pairs.columns import Column
from unclip_jax.pairs.config import SUBJECT, TARGET, PairsConfig
from unclip_jax.pairs.finite_rows import BLOCK, SKIP, finite_rows, row_counts

SPLITS = ("train", "validation")
_SAMPLES = 256  # pairs that are hashed to identify a data set

log = logging.getLogger(__name__)

Rows = Int[np.ndarray, " n"]


class Pairs(NamedTuple):
    """Matched columns.

    Attributes:
        columns: columns by name, the target last.
        rows: [pairs columns], row in each column; with `means`, the conditions have the index of
            their key instead.
        keys: key of every pair.
        validation: True for pairs of the validation split.
        subjects: index of the subject of every pair, and the labels; None without subjects.
        means: rows of the conditions to average, by index of the key; None = no average.
        groups: group of every pair; pairs of one group are in the same split.
    """

    columns: dict[str, Column]
    rows: Int[np.ndarray, "n c"]
    keys: np.ndarray
    validation: Bool[np.ndarray, " n"]
    subjects: tuple[np.ndarray, tuple[str, ...]] | None
    means: tuple[np.ndarray, ...] | None
    groups: np.ndarray

    def divided(self, share: float) -> "Pairs":
        """Returns these pairs with a random choice of groups as the validation split.

        Args:
            share: share of the groups that is chosen; 1 = all pairs.
        """
        return self._replace(validation=_random_choice(self.groups, share))

    def fields(self) -> dict[str, Field]:
        """Returns the batch fields of these pairs."""
        fields: dict[str, Field] = {}
        for name, column in self.columns.items():
            dtype = "int32" if column.integer else "float32"
            low, high = column.range() if column.integer else (None, None)
            fields[name] = Field(column.shape, dtype, low, high)
            if column.ragged:
                fields[mask_name(name)] = Field(column.shape[:1], "bool")
        if self.subjects:
            labels = self.subjects[1]
            fields[SUBJECT] = Field((), "int32", 0, len(labels) - 1, labels)
        return fields

    def open_split(self, split: str, fields: Mapping[str, Field]) -> "PairSource":
        """Returns the pairs of a split as a source of records with `fields`.

        Raises:
            UserError: the split has no pairs, or the data do not match the fields.
        """
        one_of("split of pairs", split, SPLITS)
        _check_fields(self, fields)
        numbers = np.flatnonzero(self.validation == (split == "validation"))
        if not len(numbers):
            raise UserError(
                f"the {split} split has none of the {len(self.rows)} pairs; change "
                "config.data.eval_share, splits or groups."
            )
        subjects = fields.get(SUBJECT)
        own = self if subjects is None else self._numbered(subjects.labels)
        return PairSource(own, numbers, fields)

    def _numbered(self, labels: tuple[str, ...]) -> "Pairs":
        """Returns the pairs with subjects numbered as by a model with these labels.

        Raises:
            UserError: the model has no layer for a subject.
        """
        if self.subjects is None or not labels:
            return self
        numbers, own = self.subjects
        places = subject_labels.layer_numbers(own, labels)
        return self._replace(subjects=(places[numbers], labels))


class PairSource:
    """Pairs of one split by index: records with "key" and one array per batch field."""

    def __init__(self, pairs: Pairs, numbers: Rows, fields: Mapping[str, Field]):
        """Selects the pairs `numbers`; `fields` determines the lengths of sequences."""
        self.pairs, self.numbers, self.fields = pairs, numbers, fields

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        number = self.numbers[index]
        record: dict[str, Any] = {"key": str(self.pairs.keys[number])}
        for place, name in enumerate(self.pairs.columns):
            record |= self._filled(name, self._row(name, place, int(number)))
        if self.pairs.subjects and SUBJECT in self.fields:
            record[SUBJECT] = np.int32(self.pairs.subjects[0][number])
        return record

    @property
    def digest(self) -> str:
        """Hash that identifies the pairs: their number, and the content of up to 256 of them."""
        digest = hashlib.sha256(f"{len(self)} pairs".encode())
        for index in np.linspace(0, len(self) - 1, min(_SAMPLES, len(self)), dtype=int):
            for name, value in sorted(self[int(index)].items()):
                digest.update(f"{name} ".encode())
                content = value.encode() if isinstance(value, str) else np.asarray(value).tobytes()
                digest.update(content)
        return digest.hexdigest()

    def blocks(self, most: int, *, size: int = BLOCK) -> Iterator[dict[str, np.ndarray]]:
        """Yields the fields of at most `most` evenly spaced pairs, `size` at a time."""
        chosen = self._evenly(most)
        for start in range(0, len(chosen), size):
            records = [self[int(i)] for i in chosen[start : start + size]]
            yield {name: np.stack([record[name] for record in records]) for name in self.fields}

    def subjects(self, most: int) -> list[str] | None:
        """Returns the labels of the subjects of the pairs of `blocks`; None without subjects."""
        if self.pairs.subjects is None:
            return None
        numbers, labels = self.pairs.subjects
        return [labels[number] for number in numbers[self.numbers[self._evenly(most)]]]

    def _evenly(self, most: int) -> Rows:
        count = min(most, len(self))
        return np.arange(count) * len(self) // count

    def _row(self, name: str, place: int, number: int) -> np.ndarray:
        pairs, row = self.pairs, int(self.pairs.rows[number, place])
        column = pairs.columns[name]
        if pairs.means is None or name == TARGET:
            return column[row]
        trials = np.stack([column[int(i)] for i in pairs.means[row]])
        return np.asarray(trials.mean(axis=0, dtype=np.float32))

    def _filled(self, name: str, row: np.ndarray) -> dict[str, np.ndarray]:
        """Returns a row padded to the length of its field, and the mask of its tokens."""
        field = self.fields[name]
        mask = mask_name(name)
        if mask not in self.fields:
            return {name: row.astype(field.dtype)}
        padded = np.zeros(field.shape, field.dtype)
        padded[: len(row)] = row
        return {name: padded, mask: np.arange(field.shape[0]) < len(row)}


def mask_name(name: str) -> str:
    """Returns the batch field with the mask of the tokens of a sequence."""
    return f"{name}_mask"


def open_pairs(cfg: PairsConfig) -> Pairs:
    """Opens and matches the columns of `cfg`; the result is cached while no file changes.

    Raises:
        UserError: a column cannot be read or used, columns do not match, rows are not finite and
            not skipped, or a group is in two splits.
    """
    places = [*cfg.named().values(), cfg.y, cfg.groups, cfg.subjects, cfg.splits]
    return _open_pairs(cfg, tuple(column_files.column_state(place) for place in places if place))


@functools.lru_cache(maxsize=2)
def _open_pairs(cfg: PairsConfig, states: tuple[Any, ...]) -> Pairs:
    opened = {name: column_files.open_column(where) for name, where in cfg.named().items()}
    opened[TARGET] = column_files.open_column(cfg.y)
    for name, column in opened.items():
        _check_numbers(name, column)
    good = {
        name: finite_rows(name, column, bad_rows=cfg.bad_rows) for name, column in opened.items()
    }
    rows, keys, means = _matched(opened, good, cfg)
    first = np.array([group[0] for group in means])[rows[:, 0]] if means else rows[:, 0]
    column = next(iter(opened.values()))
    subjects = _subjects(cfg, column, first)
    groups = _labels(cfg.groups, column, "groups")[first] if cfg.groups else keys
    validation = _validation(cfg, column, first, groups)
    if subjects:
        log.info("subjects: %s", subject_labels.listing(subjects, validation=validation))
    return Pairs(opened, rows, keys, validation, subjects, means, groups)


def _check_numbers(name: str, column: Column) -> None:
    if not column.shape:
        raise UserError(
            f"{column.where} has shape [{len(column)}]; give vectors [n, d], of one number [n, 1]."
        )
    dtype = np.dtype(column.values.dtype)
    floating = dtype.kind == "f" or dtype == ml_dtypes.bfloat16
    if name == TARGET and not floating:
        raise UserError(f"{column.where} holds {dtype}; the target must be floating point numbers.")
    if not floating and dtype.kind not in "iu":
        raise UserError(f"{column.where} holds {dtype}; give floating point numbers or token ids.")


def _matched(
    opened: Mapping[str, Column], good: Mapping[str, np.ndarray], cfg: PairsConfig
) -> tuple[np.ndarray, np.ndarray, tuple[np.ndarray, ...] | None]:
    """Returns the rows of every pair, the keys of the pairs, and the rows to average."""
    if all(column.keys is not None for column in opened.values()):
        return _by_key(opened, good, cfg)
    counts = {name: len(column) for name, column in opened.items()}
    if len(set(counts.values())) != 1:
        raise UserError(
            f"columns have different numbers of rows ({row_counts(counts)}) and not all have "
            "keys; give arrays of one length, or keys for all (pairs/column_files.py)."
        )
    if cfg.repeats == "mean":
        raise UserError(
            "config.data.repeats is 'mean', but the columns have no keys that tell which rows "
            "belong together; add keys (pairs/column_files.py)."
        )
    rows = np.flatnonzero(np.logical_and.reduce(list(good.values())))
    _check_some(len(rows))
    return np.repeat(rows[:, None], len(opened), axis=1), rows, None


def _by_key(
    opened: Mapping[str, Column], good: Mapping[str, np.ndarray], cfg: PairsConfig
) -> tuple[np.ndarray, np.ndarray, tuple[np.ndarray, ...] | None]:
    tables = {name: _rows_of_keys(column, good[name]) for name, column in opened.items()}
    order = next(iter(tables.values()))
    shared = [key for key in order if all(key in table for table in tables.values())]
    _check_partners(opened, good, set(shared), cfg)
    _check_some(len(shared))
    if cfg.repeats == "mean":
        return _averaged(opened, tables, shared, cfg)
    parts, names = [], []
    for key in shared:
        grid = np.meshgrid(*(tables[name][key] for name in opened), indexing="ij")
        parts.append(np.stack([axis.reshape(-1) for axis in grid], axis=1))
        names += [key] * len(parts[-1])
    return np.concatenate(parts), np.array(names), None


def _averaged(
    opened: Mapping[str, Column],
    tables: Mapping[str, dict[str, list[int]]],
    shared: Sequence[str],
    cfg: PairsConfig,
) -> tuple[np.ndarray, np.ndarray, tuple[np.ndarray, ...]]:
    """Returns pairs whose conditions are averaged over rows of one key with equal labels.

    Trials of one subject are averaged, those of different subjects remain different pairs.
    """
    conditions = [name for name in opened if name != TARGET]
    if len(conditions) > 1 or opened[conditions[0]].ragged or opened[conditions[0]].integer:
        raise UserError(
            "config.data.repeats is 'mean', which averages one condition of vectors or sequences "
            "of equal length; use 'each'."
        )
    column, table = opened[conditions[0]], tables[conditions[0]]
    labels = [
        _labels(getattr(cfg, name), column, name)
        for name in ("subjects", "groups", "splits")
        if getattr(cfg, name)
    ]
    means: list[np.ndarray] = []
    pairs, keys = [], []
    for key in shared:
        alike: dict[tuple[str, ...], list[int]] = {}
        for row in table[key]:
            alike.setdefault(tuple(str(one[row]) for one in labels), []).append(row)
        for trials in alike.values():
            pairs += [(len(means), row) for row in tables[TARGET][key]]
            keys += [key] * len(tables[TARGET][key])
            means.append(np.array(trials))
    return np.array(pairs), np.array(keys), tuple(means)


def _rows_of_keys(column: Column, good: np.ndarray) -> dict[str, list[int]]:
    assert column.keys is not None
    table: dict[str, list[int]] = {}
    for row in np.flatnonzero(good).tolist():
        table.setdefault(str(column.keys[row]), []).append(row)
    return table


def _check_partners(
    opened: Mapping[str, Column], good: Mapping[str, np.ndarray], shared: set[str], cfg: PairsConfig
) -> None:
    """Rejects or skips keys that occur in one column but not in another."""
    for name, column in opened.items():
        assert column.keys is not None
        alone = [
            key for key in dict.fromkeys(column.keys[good[name]].tolist()) if key not in shared
        ]
        if not alone:
            continue
        line = f"{len(alone)} keys of {name} ({column.where}) have no partner, first {alone[0]!r}"
        if cfg.bad_rows == "reject":
            raise UserError(f"{line}; {SKIP}.")
        log.warning("%s; left out", line)


def _check_some(count: int) -> None:
    if not count:
        raise UserError(
            "no pair is left; x and y share no key, or every row holds NaN or inf: check keys "
            "and values."
        )


def _labels(location: str, column: Column, name: str) -> np.ndarray:
    labels = column_files.labels(location)
    if len(labels) != len(column):
        raise UserError(
            f"config.data.{name} has {len(labels)} labels, {column.where} has {len(column)} rows; "
            "give one label per row."
        )
    return labels


def _subjects(cfg: PairsConfig, column: Column, rows: Rows) -> Any:
    if not cfg.subjects:
        return None
    names, numbers = np.unique(_labels(cfg.subjects, column, "subjects"), return_inverse=True)
    return numbers[rows].astype(np.int32), tuple(str(name) for name in names)


def _validation(
    cfg: PairsConfig, column: Column, rows: Rows, groups: np.ndarray
) -> Bool[np.ndarray, " n"]:
    """Returns True for the pairs of the validation split.

    Raises:
        UserError: a split has an unknown name, or a group is in both.
    """
    if not cfg.splits:
        return _random_choice(groups, cfg.eval_share)
    names, numbers = np.unique(groups, return_inverse=True)
    splits = _labels(cfg.splits, column, "splits")[rows]
    for split in np.unique(splits):
        one_of("split in config.data.splits", str(split), SPLITS)
    validation = splits == "validation"
    share = np.bincount(numbers, validation) / np.bincount(numbers)
    torn = np.flatnonzero((share > 0) & (share < 1))
    if len(torn):
        raise UserError(
            f"{len(torn)} groups are in both splits of {cfg.splits}, first "
            f"{str(names[torn[0]])!r}; validation would measure pairs similar to the trained ones. "
            "Give every group one split."
        )
    return validation


def _random_choice(groups: np.ndarray, share: float) -> Bool[np.ndarray, " n"]:
    """Returns True for the pairs of a share of the groups; the choice is deterministic."""
    names, numbers = np.unique(groups, return_inverse=True)
    count = round(share * len(names))
    count = max(count, 1) if share and len(names) > 1 else count
    chosen = np.zeros(len(names), bool)
    chosen[np.random.default_rng(0).permutation(len(names))[:count]] = True
    return chosen[numbers]


def _check_fields(pairs: Pairs, fields: Mapping[str, Field]) -> None:
    """Rejects data whose names, types or widths differ from a model's, and too long sequences."""
    measured = pairs.fields()
    sequences = {name for name, f in measured.items() if len(f.shape) == 2 or f.dtype == "int32"}
    expected = {name for name in fields if not name.endswith("_mask")}
    if SUBJECT in expected - measured.keys():
        layers = listed(fields[SUBJECT].labels, most=8) or f"{fields[SUBJECT].high} and less"
        raise UserError(
            f"the model has a layer per subject ({layers}); give the label of every row of x with "
            "config.data.subjects (--subjects of evaluate pairs)."
        )
    if expected - measured.keys():
        raise UserError(
            f"the model reads {', '.join(sorted(expected))}; config.data.x has "
            f"{', '.join(name for name in measured if name != TARGET)}. Name the conditions alike."
        )
    for name in pairs.columns:
        if name not in fields:
            raise UserError(
                f"config.data.x has {name!r}, which the model does not read; leave it out."
            )
        have, want = measured[name], fields[name]
        same = have.dtype == want.dtype and len(have.shape) == len(want.shape)
        axes = slice(1 if name in sequences else 0, None)
        if not same or have.shape[axes] != want.shape[axes]:
            raise UserError(
                f"{name} has rows {list(have.shape)} of {have.dtype}; the model takes "
                f"{list(want.shape)} of {want.dtype}. Train a model of that size."
            )
        padded = mask_name(name) in fields
        if have.shape[0] > want.shape[0] or (not padded and have.shape != want.shape):
            raise UserError(
                f"{name} has rows {list(have.shape)}, the model takes {list(want.shape)}"
                f"{' at most' if padded else ''}; shorten them or train a model of that size."
            )
