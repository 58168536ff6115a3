"""Measures manipulations of images: reconstruction, variations, interpolation and text diffs.

python -m studies.manipulations --models=runs/shapes --data=runs/shapes/data \
        --out=docs/manipulations.md
"""
