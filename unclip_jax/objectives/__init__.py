"""objectives: the losses of stages, sampling, and metrics of training, without any network.

Gaussian diffusion as all stages that diffuse have it (settings, noised batches, the loss, samplers
by name), the contrastive loss with mixed conditions, the rank of an embedding space, the fidelity
of upsampled images. A network is an argument. The mathematics is in `diffusion`; losses of one
stage alone are in its module in `stages`. Start at gaussian.py.
"""

MAY_IMPORT: tuple[str, ...] = ("core", "diffusion")
