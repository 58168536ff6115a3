"""stages: the parts of the cascade that are trained independently, as sets of pure functions.

Each module combines one network (models) with one objective (diffusion, discrete codes, or a
contrastive loss) and specifies its batches: clip, the priors, the decoders, upsampler. No files, no
loops, no devices. Common parts are in `objectives`, `conditioning` and `fitting`. Start at
entry.py, then prior.py.
"""

MAY_IMPORT: tuple[str, ...] = (
    "backbones",
    "conditioning",
    "core",
    "diffusion",
    "discrete",
    "fitting",
    "models",
    "objectives",
)
