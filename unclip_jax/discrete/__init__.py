"""discrete: the mathematics of images as codes; arrays in, arrays out.

Pixels and their density (pixels.py), three ways from features to codes (relaxation.py, fsq.py,
vq.py), the attention masks of a grid of codes (patterns.py) and sampling from logits
(categorical.py). No networks and no parameters (see `models`), no training (see `stages`).
"""

MAY_IMPORT: tuple[str, ...] = ("core",)
