"""engine: typed requests, and loaded models that run them; a library without flags.

Every request is a dataclass (requests.py), whose fields request_fields.py describes.
`InferenceEngine` (inference_engine.py) loads a cascade and runs a request by the module of its name
in handlers/, which returns images with their provenance (result.py). Start at requests.py, then
inference_engine.py and handlers/text.py.
"""

MAY_IMPORT: tuple[str, ...] = (
    "conditioning",
    "convert",
    "core",
    "data",
    "diffusion",
    "editing",
    "handoff",
    "inference",
    "metrics",
    "objectives",
    "stages",
    "tokenization",
)
