"""experiment: an experiment file as a typed run with its data loaders.

Reads a file and overrides of its keys (loading.py), types it and checks it across groups of keys
(config.py), opens its data (input_pipeline.py), and adds the frozen CLIP's text features to batches
(frozen_clip.py), trains and exports its stage (training_run.py), measures a prior's variance
(analytic_variance.py) and searches grids of few steps (sampling_grid.py). Start at config.py.
"""

MAY_IMPORT: tuple[str, ...] = (
    "conditioning",
    "core",
    "data",
    "diffusion",
    "handoff",
    "inference",
    "models",
    "objectives",
    "pairs",
    "parallel",
    "stages",
    "tokenization",
    "training",
)
