"""convert: conversion of public weights to exports of this package, and back.

Reads CLIP, Karlo (unCLIP) and Kandinsky's prior from local files by layout, and writes stages that
were trained here in the layouts of diffusers and transformers. One module per layout has the names
of its tensors and settings; files are opened and written by `weight_files`, networks are in
`models`. importing.py turns any of the layouts into a run directory.
Start at clip_tensors.py, then assembly.py and karlo.py; __main__.py is the command.
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
