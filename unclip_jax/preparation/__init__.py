"""preparation: captioned images of any origin, checked and written as a data set to train on.

A plan lists the examples of every split (import_plans.py, over the inputs of import_inputs.py, in
folders.py, tables.py, tars.py and parquet_images.py); the importer checks each and writes shards
(importer.py, checking.py), every example counted (import_report.py). pipeline.py runs a plan to a
finished data set.
"""

MAY_IMPORT: tuple[str, ...] = (
    "core",
    "data",
)
