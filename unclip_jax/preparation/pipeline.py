"""Executes import plans: writes the splits, the tokenizer and the report of a data set."""

import contextlib
import dataclasses
import pathlib
import sys
import warnings

from PIL import Image
from tqdm import tqdm

from unclip_jax.core.checks import UserError
from unclip_jax.data import dataset_manifest, text
from unclip_jax.data.prepared import open_split
from unclip_jax.data.text import Tokenizer
from unclip_jax.preparation import import_report
from unclip_jax.preparation.import_report import Tally
from unclip_jax.preparation.importer import ImportConfig, Importer, locked
from unclip_jax.preparation.items import Plan


def prepare(
    plans: dict[str, Plan],
    *,
    out: pathlib.Path,
    config: ImportConfig,
    tokenizer: str = "train",
    vocab_size: int = 8192,
) -> dict[str, Tally]:
    """Writes every split of `plans` to `out`, then its tokenizer; reports what was left out.

    Args:
        plans: the plan of every split.
        out: folder, created if missing; splits that it holds already, written alike, are kept.
        config: checks of records, and how they are stored.
        tokenizer: a folder with one, "train" to train one on the captions, or "none".
        vocab_size: of a trained tokenizer, at most.

    Returns:
        Counts of each split that was written.

    Raises:
        UserError: see `Importer`; or `out` holds another version of a split or tokenizer.
    """
    warnings.simplefilter("error", Image.DecompressionBombWarning)  # counted, not printed
    loaded = None if tokenizer in ("train", "none") else text.load(tokenizer)
    tallies: dict[str, Tally] = {}
    with locked(out):
        for split, plan in plans.items():
            tally = _write_split(plan, split, out=out, config=config)
            if tally is None:
                _say(f"split {split!r} of {out} is complete already.")
            else:
                tallies[split] = tally
        if tokenizer != "none":
            _save_tokenizer(out, loaded, vocab_size=vocab_size)
    if tallies:
        _say(import_report.table(tallies))
    _say(f"data set: {out}; report: {out / import_report.FILE}")
    return tallies


def _write_split(
    plan: Plan, split: str, *, out: pathlib.Path, config: ImportConfig
) -> Tally | None:
    """Writes one split; returns None if it is complete already."""
    before = (
        dataset_manifest.read(out)
        if (out / dataset_manifest.FILE).is_file()
        else dataset_manifest.DatasetManifest()
    )
    importer = Importer(plan, directory=out, split=split, config=config)
    for entry in before.splits:
        if entry.name == split and _is_complete(entry, importer, out):
            signature = plan.signature or ""
            if entry.signature != signature:  # the same inputs elsewhere
                moved = dataclasses.replace(entry, signature=signature, sources=plan.sources)
                dataset_manifest.write(out, before.with_split(moved))
            return None
    with tqdm(total=len(plan), desc=split, unit="record", mininterval=0.5) as bar:
        try:
            written = importer.run(bar.update)
        finally:
            with contextlib.suppress(OSError):  # a full disk has been reported
                import_report.write(out, {split: importer.tally})
    dataset_manifest.write(out, before.with_split(written))
    importer.forget()
    return importer.tally


def _is_complete(entry: dataset_manifest.Split, importer: Importer, out: pathlib.Path) -> bool:
    """True if the split was written alike and is whole; if it is not whole, it is written again.

    Raises:
        UserError: it was made from other inputs or with other options.
    """
    advice = "choose another --out or --split, or delete the folder."
    if entry.plan != importer.fingerprint:
        raise UserError(
            f"{out} already holds a split {entry.name!r} made from other inputs or with other "
            f"options; {advice}"
        )
    keys = importer.differing_inputs(entry)
    if keys:
        raise UserError(
            f"{out} already holds a split {entry.name!r}, whose inputs have changed since (an "
            f"image or caption of {keys}); {advice}"
        )
    try:
        return len(open_split(out, split=entry.name)) == entry.count
    except UserError as error:
        _say(f"making split {entry.name!r} again: {error}")
        return False


def _save_tokenizer(out: pathlib.Path, tokenizer: Tokenizer | None, *, vocab_size: int) -> None:
    """Saves the tokenizer beside the data, unless one is there; None = trains one.

    Raises:
        UserError: another one is there.
    """
    before, folder = dataset_manifest.read(out), out / dataset_manifest.TOKENIZER
    if before.tokenizer and (folder / "tokenizer.json").is_file():
        if tokenizer is not None and tokenizer.hash != before.tokenizer:
            raise UserError(
                f"{folder} holds another tokenizer than the one given; delete the folder {out}, or "
                "leave --tokenizer out."
            )
        return
    tokenizer = tokenizer or _train_tokenizer(out, before, vocab_size=vocab_size)
    tokenizer.save(folder)
    dataset_manifest.write(out, before.with_tokenizer(tokenizer.hash))
    _say(f"tokenizer: {tokenizer.vocab_size} entries, hash {tokenizer.hash[:12]}")


def _train_tokenizer(
    out: pathlib.Path, content: dataset_manifest.DatasetManifest, *, vocab_size: int
) -> Tokenizer:
    """Trains a tokenizer on the captions of split "train", or of the first one."""
    names = [split.name for split in content.splits]
    source = open_split(out, split="train" if "train" in names else names[0])
    indices = tqdm(range(len(source)), desc="reading captions", delay=2, leave=False)
    records = (source[i] for i in indices)
    captions = (one for each in records for one in each.get("captions", [each["caption"]]))
    return text.train(captions, vocab_size=vocab_size)


def _say(line: str) -> None:
    tqdm.write(line, file=sys.stdout)
