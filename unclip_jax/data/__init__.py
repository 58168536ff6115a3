"""data: from files and procedural worlds to batches that satisfy a `BatchSpec`.

What lives here: the record format and its sharded folders, sources (TFDS, ArrayRecord, image
folders, tars), the loader, tokenizers, image decoding and corruption, and `data.shapes`, which
turns the procedural world into records and a TFDS data set. uint8 lives here and only here.
What doesn't: models, stages, anything that runs on an accelerator. Start at sources.py.
"""

MAY_IMPORT: tuple[str, ...] = ("core", "shapes")
