"""The portraits world as data: PNG records (generator.py) and a TFDS data set (builder.py).

Vocabulary, grammar, artwork and renderer are in the pure package `unclip_jax.portraits`.
"""
