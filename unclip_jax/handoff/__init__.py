"""handoff: exports, by which one independently trained stage is passed on to the next.

An export is a folder: `params/` (Orbax) or `params.safetensors`, `manifest.json` (facts that other
stages must match) and `tokenizer/` (for stages that read text). This package writes exports
atomically, reads them strictly, and rejects stages that do not fit together. Data only: JSON and
arrays, no pickled code. It does not depend on the stages: callers pass in the fields that a stage
requires and shares. Start at manifest.py, then export.py and load.py.
"""

MAY_IMPORT: tuple[str, ...] = ("core",)
