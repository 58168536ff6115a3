"""conditioning: conditions as stages read them, in batches and in sampling.

Captions as token ids or as features of a frozen CLIP or language model, their empty counterparts,
the text features of Imagen's stages with their nulls, and noise on the low-res image of upsamplers.
A stage combines them with its network and its objective. Start at captions.py.
"""

MAY_IMPORT: tuple[str, ...] = ("core", "diffusion", "models", "objectives")
