"""convert: conversion of public weights to exports of this package, and back.

Reads CLIP, Karlo (unCLIP), DeepFloyd IF and others from local files by layout, and writes stages
that were trained here in the layouts of diffusers and transformers. There is one module per layout,
with the names of its tensors and settings; `weight_files` opens and writes the files, and networks
are in `models`. importing.py converts any of the layouts to a run directory. Start at
clip_tensors.py, then assembly.py and karlo.py; __main__.py is the command.
"""

MAY_IMPORT: tuple[str, ...] = (
    "backbones",
    "core",
    "handoff",
    "models",
    "objectives",
    "stages",
    "tokenization",
    "weight_files",
)
