"""fitting: closed-form fits to training embeddings, as parameters that are not learned.

In float64 on the host, in few passes over blocks of rows: the PCA quantizer of autoregressive
priors, and the statistics and ridge regression between two embedding spaces. Stages run the fits
(`Stage.fit`). Start at quantizer_fit.py.
"""

MAY_IMPORT: tuple[str, ...] = ("core", "models")
