"""convert: conversion of public weights to exports of this package, and back.

Reads CLIP, Karlo (unCLIP) and Kandinsky's prior from local files by layout, and writes stages that
were trained here in the layouts of diffusers and transformers. Loading is strict: every tensor
that is missing, extra or of another shape is listed, and then nothing is loaded. Torch is touched
in torch_files.py alone, and safetensors never need it. Names of tensors are here; networks are in
`models`. importing.py turns any of the layouts into a run directory.
Start at tensor_table.py, then clip_tensors.py and karlo.py; __main__.py is the command.
"""

MAY_IMPORT: tuple[str, ...] = ("core", "handoff", "models", "stages", "tokenization")
