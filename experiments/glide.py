r"""GLIDE: a 64x64 image from its caption alone, the baseline that unCLIP is compared with.

The decoder with the null in place of every z_img; all else is as in experiments/decoder.py, so
that the two differ in the condition alone. A run that holds it and an upsampler is sampled like
any cascade; to be judged it needs a link to RUN/clip.

Paper: Nichol et al. 2021 (arXiv 2112.10741), sections 4.1 and 4.2; Ramesh et al. 2022, section 5.
Run:   python -m unclip_jax.train --config=experiments/glide.py:shapes \
           --workdir=runs/shapes_glide/decoder
Cost:  that of experiments/decoder.py. paper: 2.5M steps at batch 2,048, and a fine-tune.
       Its two fine-tunes, for guidance and for inpainting, are in docs/evaluation.md.
Expect: shapes: a loss above that of experiments/decoder.py, which is told z_img too.
Needs: images with captions; neither a CLIP nor embeddings.
"""

from ml_collections import ConfigDict

from unclip_jax.core.checks import one_of

from . import decoder


def paper() -> ConfigDict:
    # Section 4.1 of GLIDE: 512 channels, 24 text blocks of width 2048, 250 steps for metrics, as
    # the decoder has them. It is silent on the learning rate.
    config = _without_z(decoder.paper())
    config.model.sampling.guidance_scale = 1.5  # the best of FID
    config.train.steps = 2_500_000  # section 4.1 of GLIDE
    return config


def _without_z(config: ConfigDict) -> ConfigDict:
    config.name = "glide"
    config.model.model.reads_z = False  # the one difference
    config.data.embeddings = ""
    config.model.drop_text = 0.2  # section 4.2 of GLIDE, which fine-tunes with it
    del config.model.drop_z, config.model.condition
    return config


# The upsamplers of a size fit the decoders of both files.
SIZES = ("paper", "shapes", "shapes_long", "portraits", "portraits_long", "emoji", "tiny")


def get_config(size: str = "paper") -> ConfigDict:
    one_of("size of experiments/glide.py", size, SIZES)
    return paper() if size == "paper" else _without_z(decoder.get_config(size))
