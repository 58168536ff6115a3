"""tokenization: encoding of captions to token ids.

Reads and trains byte-pair encodings like CLIP's, reads the tokenizers of language models, and
segments captions of training at random (BPE dropout). A tokenizer is a folder; two with one hash
encode alike. Networks that read the ids are in `models`. Start at caption_tokenizer.py.
"""

MAY_IMPORT: tuple[str, ...] = ("core",)
