"""models: the networks, as Flax Linen modules over typed configs.

CLIP, both priors, the decoder and the upsamplers. No noise schedules, losses, optimisers or files:
a network maps arrays to arrays, and a stage interprets its output. Parameters are float32; norms
and softmaxes run in float32 whatever the compute dtype. Start at decoder.py; transformer.py and
unet.py are the building blocks.
"""

MAY_IMPORT: tuple[str, ...] = ("core", "parallel.axes")
