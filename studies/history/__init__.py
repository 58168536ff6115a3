"""The history of text-to-image generation on one data set: `python -m studies.history`.

DALL-E, GLIDE, unCLIP with both priors and Imagen are trained with equal data and equal training
compute, and sample the same captions. docs/history.md is the page.
"""
