"""Compares the sources of z_img: no prior, either prior, guidance, the best of several samples.

python -m studies.priors --models=runs/shapes --data=runs/shapes/data --out=docs/priors.md
"""
