"""Tests Imagen's claims in miniature: `python -m studies.imagen`.

The chain under study is Imagen's miniature of the shapes world, such as the one trained by
`python -m studies.history`. It is compared with a chain of unCLIP, whose CLIP embeds all images.
There is one module per finding (`CLAIM`, `SOURCE`, `measure`), as in `studies.findings`, with which
this study shares the report.
"""
