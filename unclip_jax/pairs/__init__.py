"""pairs: paired arrays of any two spaces, the data of the stage `embedding_prior`.

Opens columns of arrays in the usual formats, matches their rows by number or by key, and divides
the pairs into splits that keep rows of one key or group together. Arrays in the layout of
clip-retrieval are opened by `data.embeddings`. Start at matching.py, then column_files.py.
"""

MAY_IMPORT: tuple[str, ...] = ("core", "data")
