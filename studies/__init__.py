"""Studies: experiments on trained models that end in a page of docs/.

`python -m studies.findings` tests the paper's claims in miniature, `python -m studies.priors`
compares the sources of z_img, `python -m studies.history` trains and compares DALL-E, GLIDE, unCLIP
and Imagen, `python -m studies.gradient_guidance` compares guidance by a CLIP or a classifier with
classifier-free guidance, `python -m studies.manipulations` measures what the latent of an image
makes possible, and `python -m studies.sampler_error` plots the error of the samplers.
"""
