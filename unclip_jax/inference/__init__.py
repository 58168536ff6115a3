"""inference: loads a trained cascade, samples it, embeds data sets, exports the sampler.

A cascade is data (cascade.py), read from a run directory (load.py) and sampled as one pure function
(text_to_image.py): in batches over all devices (batch_sampling.py) or one stage at a time
(offload.py). decoding.py is the decoder alone, from any (z_img, x_T). sampler_export.py writes the
sampler as one file, which exported_sampler.py runs. Start at cascade.py, then text_to_image.py.
"""

MAY_IMPORT: tuple[str, ...] = (
    "backbones.attention",
    "conditioning",
    "core",
    "data",
    "diffusion",
    "discrete",
    "handoff",
    "models",
    "objectives",
    "pairs",
    "parallel",
    "stages",
    "tokenization",
)
