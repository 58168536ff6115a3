"""Pipeline directories inside a folder that is named in their place.

Users keep the stages of DeepFloyd IF side by side in one folder, and the cache of huggingface_hub
has each pipeline two levels below its name (models--DeepFloyd--IF-I-M-v1.0/snapshots/COMMIT).
"""

import pathlib

from unclip_jax.convert import deepfloyd, karlo, original
from unclip_jax.core.checks import UserError, listed
from unclip_jax.weight_files import tensor_source, torch_files

DEPTH = 3  # levels below the folder: a cache of huggingface_hub given as a whole
WEIGHTS = (tensor_source.SAFE, *torch_files.SUFFIXES)


def sources_of(folder: pathlib.Path) -> list[pathlib.Path]:
    """Returns the sources for which a folder or file stands: itself, or the stages of IF in it.

    A folder directly above one stage I of DeepFloyd IF, and no pipelines of another kind, stands
    for stage I with the stage II beside it.

    Raises:
        UserError: the folder has no weights of its own, but holds several pipelines, or pipelines
            of another kind or further below.
    """
    if not folder.is_dir() or karlo.is_pipeline(folder) or original.is_original(folder):
        return [folder]
    if any(folder.glob("*/export")) or any(p.name.endswith(WEIGHTS) for p in folder.iterdir()):
        return [folder]
    inside = [
        path.parent
        for level in range(1, DEPTH + 1)
        for path in sorted(folder.glob("*/" * level + karlo.INDEX))
    ]
    if not inside:
        return [folder]
    beside = all(path.parent == folder and deepfloyd.is_pipeline(path) for path in inside)
    first = [path for path in inside if deepfloyd.name_of(path) == deepfloyd.BASE]
    if beside and len(first) == 1:
        return deepfloyd.chain_of(first[0])
    one = len(inside) == 1
    both = ", or both stages of one DeepFloyd IF to `convert`" if first and not one else ""
    raise UserError(
        f"{folder} is no pipeline directory, but {listed(inside, most=4, separator=', ')} "
        f"{'is one; give that folder' if one else 'are; give one of these folders'}{both}."
    )
