"""Array aliases, in the alphabet of shapes of WORKSPACE.md.

b batch, h w c image, l m query/key tokens, d model width, n heads, k head size, f hidden,
z embedding size, T timesteps. Images are NHWC float32 in [-1, 1].
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, Real, Shaped

Image = Float[Array, " b h w c"]
LowRes = Float[Array, " b h_low w_low c_low"]
Tokens = Int[Array, " b l"]
Mask = Bool[Array, " b l"]
Embedding = Float[Array, " b z"]
PerExample = Float[Array, " b"]
Steps = Real[Array, " b"]  # timesteps of a trained chain; fractional ones lie between two of them
Scalar = Float[Array, ""]
Scale = float | Scalar  # of guidance; an array where it is data of a compiled program
Key = PRNGKeyArray  # a new-style jax.random.key, scalar unless a docstring says otherwise
Keys = Shaped[PRNGKeyArray, " b"]  # one key per example

Params = Mapping[str, Any]  # a Flax `params` collection
Batch = Mapping[str, Any]  # field name -> array with a leading batch axis
Metrics = dict[str, Any]  # name -> scalar array
HostBatch = dict[str, np.ndarray]  # a batch as loaders yield it
