"""editing: images as bipartite latents (z_img, x_T), and edits of them as pure functions.

latents.py encodes an image for the decoder, upsampler_latents.py for the upsamplers, and
ddpm_latents.py by the noise of every step; edits.py edits latents, and pca_probe.py decodes
principal components of embeddings. Start at latents.py, then edits.py.
"""

MAY_IMPORT: tuple[str, ...] = ("conditioning", "core", "diffusion", "inference", "stages")
