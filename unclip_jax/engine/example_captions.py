"""Example captions of the procedural worlds, for models that were trained on them."""

CAPTIONS = {
    "portraits": (
        "a person with curly red hair and round glasses, smiling, in a blue hoodie, on a yellow "
        "background",
        "a person with no hair, a brown beard and sunglasses, frowning, in a green t-shirt, on a "
        "white background",
        "a person with long straight blonde hair, winking, in a purple turtleneck, on a navy "
        "background",
        "a person with a pink mohawk and a goatee, shouting, in black overalls, on a blue "
        "background",
        "a person with gray hair in a bun and square glasses, looking serious, in a red suit, "
        "on a green background",
        "a person with blue pigtails, with hearts for eyes, smiling, in a striped orange "
        "shirt, on a pink background",
    ),
    "shapes": (
        "a red circle above a blue square",
        "a large purple heart",
        "three green stars",
        "a yellow triangle left of a pink ring on a navy background",
        "two orange diamonds on a mint background",
        "a small green cross below a blue circle",
    ),
}


def world_of(size: str) -> str:
    """Returns the world, a key of `CAPTIONS`, of models of a size; the size if it has none."""
    world = {"karlo": "shapes", "tiny": "shapes"}.get(size, size.removesuffix("_long"))
    return world if world in CAPTIONS else size
