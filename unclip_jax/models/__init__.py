"""models: the networks, as Flax Linen modules over typed configs.

CLIP, both priors, the decoder and the upsamplers. No noise schedules, losses, optimisers or files:
a network maps arrays to arrays, and a stage interprets its output. Parameters are float32; norms
and softmaxes run in float32 whatever the compute dtype. Start at decoder.py; the transformer and
the U-Net are in `backbones`.
"""

MAY_IMPORT: tuple[str, ...] = ("backbones", "core", "parallel.axes")
