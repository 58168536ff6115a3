"""Studies: experiments on trained models, whose results are pages of docs/.

`python -m studies.findings` tests the paper's claims in miniature, `python -m studies.imagen` those
of Imagen, `python -m studies.priors` compares the sources of z_img, `python -m studies.history`
trains and compares DALL-E, GLIDE, unCLIP and Imagen, `python -m studies.gradient_guidance` compares
guidance by a CLIP or a classifier with classifier-free guidance, `python -m studies.manipulations`
measures edits of images by their latents, and `python -m studies.sampler_error` plots the error of
the samplers.
"""
