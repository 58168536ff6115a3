"""backbones: the trunks that several networks share, and their layers, as Flax Linen modules.

Linear maps, norms and attention with named axes, the transformer with and without a cache, the
trunk of diffusion priors, and the U-Net with its topology as data. The networks in `models` embed
their inputs, run a trunk and read its output. Start at layers.py, then transformer.py and unet.py.
"""

MAY_IMPORT: tuple[str, ...] = ("core", "parallel.axes")
