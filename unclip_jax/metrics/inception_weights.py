"""Inception-v3 for FID, from a file with pytorch-fid's state dict.

pytorch-fid publishes it as pt_inception-2015-12-05-6726825d.pth; safetensors with the same names
can be read without torch. The weights of torchvision's classifier are those of another network and
are rejected.
"""

import pathlib

import flax.linen as nn
import jax

from unclip_jax.core.types import Params
from unclip_jax.metrics.inception import SIDE, Inception, InceptionConfig, conv_paths
from unclip_jax.weight_files import tensor_table
from unclip_jax.weight_files.tensor_source import TensorSource, open_tensors
from unclip_jax.weight_files.tensor_table import Entry

COUNTER = ".num_batches_tracked"  # counter of training steps, not a weight
NORM = {"scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}


def load(path: pathlib.Path, *, cfg: InceptionConfig = InceptionConfig()) -> Params:
    """Reads the parameters of `metrics.inception.Inception`.

    Raises:
        UserError: the file does not exist, is damaged, or contains another network.
    """
    return tensor_table.fill(tidy(open_tensors(path)), entries(), abstract(cfg))


def tidy(source: TensorSource) -> TensorSource:
    """Removes the counters of training steps, which some files have."""
    return source.without([name for name in source.shapes if name.endswith(COUNTER)])


def entries() -> list[Entry]:
    """Returns the table of tensors."""
    table = [Entry("fc_kernel", "fc.weight", "linear"), Entry("fc_bias", "fc.bias")]
    for path in conv_paths():
        name = path.replace("/", ".")
        table.append(Entry(f"{path}/conv/kernel", f"{name}.conv.weight", "conv"))
        table += [Entry(f"{path}/bn/{o}", f"{name}.bn.{t}") for o, t in NORM.items()]
    return table


def abstract(cfg: InceptionConfig) -> Params:
    """Returns the shapes of the parameters."""
    image = jax.ShapeDtypeStruct((1, SIDE, SIDE, 3), "float32")
    shapes = jax.eval_shape(Inception(cfg).init, jax.random.key(0), image)
    return nn.meta.unbox(shapes["params"])
