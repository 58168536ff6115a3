"""Tests Imagen's claims in miniature: `python -m studies.imagen`.

The chain under study is Imagen's miniature of the shapes world, such as the one that
`python -m studies.history` trains; unCLIP's chain beside it is the other side of the comparison,
and its CLIP embeds all images. One module per finding (`CLAIM`, `SOURCE`, `measure`), as in
`studies.findings`, whose report this study shares.
"""
