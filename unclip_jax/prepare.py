"""Turns captioned pictures into the sharded data set that training reads.

    python -m unclip_jax.prepare 'train=emoji/train-*.tar' 'validation=emoji/val*.tar' --out=DIR
    python -m unclip_jax.prepare photos/ --split=train --max_side=512 --out=DIR
    python -m unclip_jax.prepare shapes:train=30000,validation=1000 --out=DIR

An input is a folder (Hugging Face `metadata.jsonl`, or name.txt beside name.png), a WebDataset
tar, a picture, or a quoted glob of these; SPLIT= before it says which split it belongs to. `shapes`
is the procedural world. What is stopped, by ctrl-C or worse, continues when the same command runs
again. Without an input, the data set in DIR gets the tokenizer that it lacks.
"""

import argparse
import contextlib
import pathlib
import sys
import warnings
from collections.abc import Sequence

from PIL import Image
from tqdm import tqdm

from unclip_jax.cli import entry
from unclip_jax.core.checks import UserError
from unclip_jax.data import dataset_manifest, import_report, text
from unclip_jax.data.checking import CheckConfig
from unclip_jax.data.image_codec import Limits
from unclip_jax.data.import_plans import make_plans
from unclip_jax.data.import_report import Tally
from unclip_jax.data.importer import ImportConfig, Importer, locked
from unclip_jax.data.items import Plan
from unclip_jax.data.prepared import open_split
from unclip_jax.data.text import Tokenizer


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line and do the work."""
    args = _parser().parse_args(argv)
    warnings.simplefilter("error", Image.DecompressionBombWarning)  # counted, not printed
    limits = Limits(args.max_pixels, args.min_side, args.max_aspect)
    check = CheckConfig(limits, max_side=args.max_side, image_size=args.image_size)
    config = ImportConfig(check, args.shards, args.max_bad, args.workers)
    if not args.inputs:
        dataset_manifest.read(args.out)  # before the folder is made for its lock
    plans = make_plans(
        args.inputs,
        split=args.split,
        caption_field=args.caption_field,
        prefix=args.prefix_keys,
        image_size=args.image_size or 64,
        seed=args.seed,
    )
    prepare(
        plans, out=args.out, config=config, tokenizer=args.tokenizer, vocab_size=args.vocab_size
    )


def prepare(
    plans: dict[str, Plan],
    *,
    out: pathlib.Path,
    config: ImportConfig,
    tokenizer: str = "train",
    vocab_size: int = 8192,
) -> dict[str, Tally]:
    """Make every split of `plans` in folder `out`, then its tokenizer; report what was left out.

    Args:
        plans: split -> what to read.
        out: made if missing; splits that it holds already, made alike, are left alone.
        config: what is kept and how it is stored.
        tokenizer: a folder with one, "train" to learn one from the captions, or "none".
        vocab_size: of a tokenizer that is learned, at most.

    Raises:
        UserError: see `Importer`; or `out` holds another version of a split or tokenizer.
    """
    given = None if tokenizer in ("train", "none") else text.load(tokenizer)
    tallies: dict[str, Tally] = {}
    with locked(out):
        for split, plan in plans.items():
            tally = _make_split(plan, split, out=out, config=config)
            if tally is None:
                _say(f"split {split!r} of {out} is complete already.")
            else:
                tallies[split] = tally
        if tokenizer != "none":
            _keep_tokenizer(out, given, vocab_size=vocab_size)
    if tallies:
        _say(import_report.table(tallies))
    _say(f"data set: {out}; report: {out / import_report.FILE}")
    return tallies


def _make_split(plan: Plan, split: str, *, out: pathlib.Path, config: ImportConfig) -> Tally | None:
    """Make one split; None if it is there already."""
    before = (
        dataset_manifest.read(out)
        if (out / dataset_manifest.FILE).is_file()
        else dataset_manifest.DatasetManifest()
    )
    importer = Importer(plan, directory=out, split=split, config=config)
    for known in before.splits:
        if known.name == split and _is_there(known, importer.fingerprint, out):
            return None
    with tqdm(total=len(plan), desc=split, unit="record", mininterval=0.5) as bar:
        try:
            made = importer.run(bar.update)
        finally:
            with contextlib.suppress(OSError):  # a full disk has been complained about
                import_report.write(out, {split: importer.tally})
    dataset_manifest.write(out, before.with_split(made))
    importer.forget()
    return importer.tally


def _is_there(known: dataset_manifest.Split, fingerprint: str, out: pathlib.Path) -> bool:
    """Whether the split was made alike and is whole; if not whole, it is made again.

    Raises:
        UserError: it was made from other inputs or with other options.
    """
    if known.plan != fingerprint:
        raise UserError(
            f"{out} already holds a split {known.name!r} made from other inputs or with other "
            "options; choose another --out or --split, or delete the folder."
        )
    try:
        return len(open_split(out, split=known.name)) == known.count
    except UserError as error:
        _say(f"making split {known.name!r} again: {error}")
        return False


def _keep_tokenizer(out: pathlib.Path, given: Tokenizer | None, *, vocab_size: int) -> None:
    """Put the tokenizer beside the data, unless it is there.

    Raises:
        UserError: another one is there.
    """
    before, folder = dataset_manifest.read(out), out / dataset_manifest.TOKENIZER
    if before.tokenizer and (folder / "tokenizer.json").is_file():
        if given is not None and given.hash != before.tokenizer:
            raise UserError(
                f"{folder} holds another tokenizer than the one given; delete the folder {out}, or "
                "leave --tokenizer out."
            )
        return
    tokenizer = given or _learn(out, before, vocab_size=vocab_size)
    tokenizer.save(folder)
    dataset_manifest.write(out, before.with_tokenizer(tokenizer.hash))
    _say(f"tokenizer: {tokenizer.vocab_size} entries, hash {tokenizer.hash[:12]}")


def _learn(
    out: pathlib.Path, content: dataset_manifest.DatasetManifest, *, vocab_size: int
) -> Tokenizer:
    """A tokenizer of the captions of split "train", or of the first one."""
    names = [split.name for split in content.splits]
    source = open_split(out, split="train" if "train" in names else names[0])
    indices = tqdm(range(len(source)), desc="reading captions", delay=2, leave=False)
    return text.train((source[i]["caption"] for i in indices), vocab_size=vocab_size)


def _say(line: str) -> None:
    tqdm.write(line, file=sys.stdout)


def _parser() -> argparse.ArgumentParser:
    description, *_ = (__doc__ or "").split("\n\n")
    parser = argparse.ArgumentParser(
        prog="python -m unclip_jax.prepare",
        description=description,
        epilog=(__doc__ or "").removeprefix(description),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("inputs", nargs="*", metavar="[SPLIT=]INPUT", help="folder, tar, glob, or shapes[:...]")
    add("--out", required=True, type=pathlib.Path, help="folder of the data set")
    add("--split", default="train", help="split of inputs without SPLIT= (default: train)")
    add("--shards", type=int, default=0, help="files per split (default: one per 8,192 records)")
    add("--tokenizer", default="train", help="folder with one, 'train' (default) or 'none'")
    add("--vocab_size", type=int, default=8192, help="of a trained tokenizer, at most (8192)")
    add("--caption_field", default="", help="JSON field with the caption (default: usual names)")
    add("--prefix_keys", action="store_true", help="for tars that use the same keys again")
    add("--image_size", type=int, help="store square pictures of this side (shapes: 64)")
    add("--max_side", type=int, help="store pictures with a longer short side reduced to this")
    add("--min_side", type=int, default=Limits.min_side, help="skip smaller pictures (8)")
    add("--max_aspect", type=float, default=Limits.max_aspect, help="skip longer pictures (8)")
    add("--max_pixels", type=int, default=Limits.max_pixels, help="skip greater ones (64 million)")
    add("--max_bad", type=float, default=0.05, help="stop when more are skipped (share, 0.05)")
    add("--workers", type=int, default=2, help="checking threads (2)")
    add("--seed", type=int, default=0, help="of the procedural world (0)")
    return parser


if __name__ == "__main__":
    entry.run(main)
