"""The shapes world as data: PNG records (generator.py) and a TFDS data set (builder.py).

Scenes, renderer and grammar are in the pure package `unclip_jax.shapes`.
"""
