"""Compares the sources of z_img: no prior, both priors, guidance, the best of several samples.

python -m studies.priors --models=runs/shapes --data=runs/shapes/data --out=docs/priors.md
"""
