"""data: from files and procedural worlds to batches that satisfy a `BatchSpec`.

Contains the record format and its sharded folders, sources (prepared folders, TFDS), the
loader, image decoding and corruption, and `data.shapes` and `data.portraits`, which turn the
procedural worlds into records and TFDS data sets; `preparation` writes what is read here.
Models, stages and everything that runs on an accelerator are elsewhere. Start at sources.py, then
dataset.py and loader.py.
"""

MAY_IMPORT: tuple[str, ...] = ("core", "portraits", "shapes", "tokenization")
