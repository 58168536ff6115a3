"""Artwork of clothes, from the shoulders down."""

from unclip_jax.portraits.pen import Layer, Mask, Paint, Pen, mirror

CLOTH = Paint()
FOLD = Paint(shade=-0.2)
DARKER = Paint(shade=-0.32)
LINING = Paint(shade=-0.45)
STRIPE = Paint(shade=0.55, contrast=True)
WHITE = Paint(rgb=(246, 246, 248))
UNDERSHIRT = Paint(rgb=(92, 98, 118))
METAL = Paint(rgb=(250, 214, 110))


def torso(pen: Pen) -> Mask:
    """Fills shoulders and chest down to the lower edge."""
    return pen.symmetric(
        [(50, 74), (58, 74.5), (66, 78), (78, 82), (86, 89), (89, 102), (89, 112), (50, 114)]
    )


def clothes(pen: Pen, kind: str) -> list[Layer]:
    """Draws a kind of `CLOTHES`."""
    return _KINDS[kind](pen)


def _sleeves(pen: Pen) -> Layer:
    seam = pen.stroke([(26.5, 102), (27, 96), (24.6, 91)], 1.4)
    return pen.layer(seam | mirror(seam), DARKER)


def _tshirt(pen: Pen) -> list[Layer]:
    neckline = pen.ellipse((50, 73), (11, 9))
    collar = pen.ellipse((50, 73), (13.2, 11.4)) & torso(pen)
    return [
        pen.layer(torso(pen) & ~neckline, CLOTH),
        pen.layer(collar & ~neckline, FOLD),
        _sleeves(pen),
    ]


def _striped(pen: Pen) -> list[Layer]:
    body = torso(pen)
    neckline = pen.ellipse((50, 73), (11, 8))
    collar = pen.ellipse((50, 73), (13.2, 10.4)) & body & ~neckline
    stripes = pen.nothing()
    for top in (85.5, 93.5):
        stripes |= pen.polygon([(0, top), (100, top), (100, top + 4), (0, top + 4)])
    return [
        pen.layer(body & ~neckline, CLOTH),
        pen.layer(stripes & body & ~neckline, STRIPE),
        pen.layer(collar, CLOTH),
        _sleeves(pen),
    ]


def _turtleneck(pen: Pen) -> list[Layer]:
    roll = pen.symmetric([(50, 64.5), (58.5, 65), (60, 70), (60.5, 77), (58, 79), (50, 80)])
    rib = pen.stroke([(39.8, 77.6), (50, 80.4), (60.2, 77.6)], 1.5)
    rib |= pen.stroke([(41, 71.5), (50, 74.4), (59, 71.5)], 1.5)
    return [
        pen.layer(torso(pen) | roll, CLOTH),
        pen.layer(rib, FOLD),
        _sleeves(pen),
    ]


def _hoodie(pen: Pen) -> list[Layer]:
    hood = pen.symmetric([(50, 63), (62, 65), (69, 72), (66, 80), (57, 87), (50, 90)])
    inside = pen.symmetric([(50, 66), (59, 68), (61.5, 73), (57, 80), (50, 83.5)])
    column = pen.symmetric([(50, 56), (57, 58), (57.2, 70), (56, 76), (50, 78)])
    cord = pen.stroke([(44.6, 83), (44, 93)], 2.0)
    pocket = pen.stroke([(34, 101), (37, 96), (63, 96), (66, 101)], 1.4)
    return [
        pen.layer(torso(pen), CLOTH),
        pen.layer(hood & ~inside, FOLD),
        pen.layer(inside & ~column, LINING),
        pen.layer(pocket, DARKER),
        pen.layer(cord | mirror(cord), WHITE),
        _sleeves(pen),
    ]


def _overalls(pen: Pen) -> list[Layer]:
    neckline = pen.ellipse((50, 73), (11, 9))
    shirt = torso(pen) & ~neckline
    bib = pen.polygon([(33.5, 87.5), (66.5, 87.5), (68, 110), (32, 110)])
    strap = pen.polygon([(29.5, 76), (36, 75.5), (40.5, 91), (34, 91)]) & shirt
    pocket = pen.polygon([(43, 94), (57, 94), (57, 110), (43, 110)])
    button = pen.ellipse((37.6, 91), (1.9, 1.9))
    denim = (bib | strap | mirror(strap)) & torso(pen)
    return [
        pen.layer(shirt, UNDERSHIRT),
        pen.layer(denim, CLOTH),
        pen.layer(pocket & denim, FOLD),
        pen.layer(button | mirror(button), METAL),
    ]


def _suit(pen: Pen) -> list[Layer]:
    shirt = pen.polygon([(41, 73), (59, 73), (50, 101)])
    lapel = pen.polygon([(40, 74.4), (35, 78), (36, 88), (40, 89), (38, 91.5), (50, 103), (50, 99)])
    tie = pen.polygon([(48, 79), (52, 79), (53.4, 92), (50, 97), (46.6, 92)])
    tie |= pen.polygon([(47, 76), (53, 76), (51.8, 80), (48.2, 80)])
    collar = pen.polygon([(42, 71.5), (50, 77), (46, 81.5), (40, 74)])
    return [
        pen.layer(torso(pen), CLOTH),
        pen.layer(shirt, WHITE),
        pen.layer(tie, Paint(rgb=(70, 74, 96))),
        pen.layer(collar | mirror(collar), WHITE),
        pen.layer(lapel | mirror(lapel), DARKER),
        _sleeves(pen),
    ]


_KINDS = {
    "t-shirt": _tshirt,
    "striped": _striped,
    "turtleneck": _turtleneck,
    "hoodie": _hoodie,
    "overalls": _overalls,
    "suit": _suit,
}
