"""preparation: captioned images of any origin, checked and written as a data set to train on.

A plan lists the examples of a split (import_plans.py, over the inputs of import_inputs.py, in
folders.py, tables.py, tars.py and parquet_images.py; plan_specs.py describes plans for other
processes). Shards are written from ranges of it (shard_writer.py, checking.py), every example
counted (import_report.py): by importer.py in this process, or as independent tasks (shard_tasks.py,
archives.py; remote_archives.py for those in object stores) on an engine (engines.py), merged
afterwards (merging.py, duplicates.py). pipeline.py does all of it. The output is a `core.folder`,
local or in an object store.
"""

MAY_IMPORT: tuple[str, ...] = ("core", "data", "tokenization")
