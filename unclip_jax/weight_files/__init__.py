"""weight_files: the files that public weights consist of, read and written without their networks.

Tensors by name in safetensors and PyTorch's files, tables that map them to parameters, prefixes
that trainers leave in names, checks of settings in JSON, CLIP's tokenizer. Loading is strict: every
tensor that is missing, extra or of another shape is listed, and then nothing is loaded. Torch is
touched in torch_files.py alone, and safetensors never need it. The layouts of single models are in
`convert`. Start at tensor_source.py, then tensor_table.py.
"""

MAY_IMPORT: tuple[str, ...] = ("core",)
