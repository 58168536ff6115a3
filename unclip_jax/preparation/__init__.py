"""preparation: checks captioned images of any source and writes them as a data set for training.

A plan lists the examples of a split (import_plans.py, from the inputs of import_inputs.py, in
folders.py, tables.py, tars.py and parquet_images.py; plan_specs.py describes plans for other
processes). Shards are written from ranges of a plan (shard_writer.py, checking.py) and every
example is counted (import_report.py). Either importer.py writes them in this process, or an engine
(engines.py) runs independent tasks (shard_tasks.py, archives.py; remote_archives.py for archives in
object stores) whose shards are merged (merging.py, duplicates.py). pipeline.py combines all of it.
The output is a `core.folder`, local or in an object store.
"""

MAY_IMPORT: tuple[str, ...] = ("core", "data", "tokenization")
