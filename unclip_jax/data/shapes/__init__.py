"""The shapes world as data: PNG records (generator.py) and a TFDS data set (builder.py).

What a scene is, how it is drawn and how it is told live in the pure room `unclip_jax.shapes`.
"""
