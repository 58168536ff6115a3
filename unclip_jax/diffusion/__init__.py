"""diffusion: the mathematics of Gaussian diffusion; arrays in, arrays out.

Noise schedules, the forward process and its conversions, losses, guidance, samplers, inversion.
No networks and no parameters (see `models`), no training (see `stages`). Start at process.py, then
samplers.py: a denoiser is a function `(x_t, t) -> Prediction`, and everything else wraps one.
"""

MAY_IMPORT: tuple[str, ...] = ("core",)
