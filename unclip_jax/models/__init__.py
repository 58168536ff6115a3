"""models: the networks, as Flax Linen modules over typed configs.

CLIP, the diffusion prior, the decoder and the upsamplers. No noise schedule, loss, optimiser or
file lives here: a network maps arrays to arrays, and a stage gives its output a meaning. Parameters
are float32 and named; norms and softmaxes run in float32 whatever `dtype` says.
Start at decoder.py; transformer.py and unet.py are what everything is made of.
"""

MAY_IMPORT: tuple[str, ...] = ("core", "parallel.axes")
