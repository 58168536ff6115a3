"""Artwork of heads: skin, eyes, mouths, facial hair and glasses."""

from unclip_jax.portraits.pen import Layer, Mask, Paint, Pen, Point, mirror

SKIN = Paint()
DARK = Paint(rgb=(44, 36, 40))
WHITE = Paint(rgb=(255, 255, 255))
BROW = Paint(rgb=(40, 24, 20), opacity=0.75)
SHADOW = Paint(rgb=(40, 10, 0), opacity=0.16)
LIPS = Paint(rgb=(168, 40, 54))
HEART = Paint(rgb=(232, 40, 70))
EYE_X, EYE_Y = 41.5, 45.0  # of the left eye; the right one is its mirror image


def skull(pen: Pen) -> Mask:
    """Fills the outline of the head without ears."""
    return pen.symmetric(
        [(50, 20.5), (60, 22.5), (67.5, 31), (68.5, 44), (66, 56), (59.5, 65), (50, 68.5)]
    )


def neck(pen: Pen) -> list[Layer]:
    """Draws neck and shoulders of bare skin, with the shadow of the chin."""
    column = pen.symmetric(
        [(50, 56), (57, 58), (57.5, 72), (62, 78), (74, 83), (80, 101), (50, 104)]
    )
    shadow = column & pen.symmetric([(50, 58), (60, 60), (64, 64), (58, 71), (50, 74)])
    return [pen.layer(column, SKIN), pen.layer(shadow, SHADOW)]


def head(pen: Pen) -> list[Layer]:
    """Draws the head with ears, nose and cheeks."""
    ear = pen.ellipse((68.5, 47), (4.6, 5.6))
    inner = pen.ellipse((69, 47), (2.2, 3.2))
    nose = pen.stroke([(47.2, 52.2), (50, 54), (52.8, 52.2)], 1.9)
    cheek = pen.ellipse((62, 53), (4.4, 3.0))
    whole = skull(pen) | ear | mirror(ear)
    blush = Paint(rgb=(240, 80, 70), opacity=0.20)
    return [
        pen.layer(whole, SKIN),
        pen.layer(inner | mirror(inner), SHADOW),
        pen.layer(cheek | mirror(cheek), blush),
        pen.layer(nose, Paint(rgb=(60, 15, 0), opacity=0.34)),
    ]


def eyes(pen: Pen, kind: str) -> list[Layer]:
    """Draws eyes and brows of one kind of `EYES`."""
    brow = pen.stroke([(36.6, 38.4), (40.6, 36.2), (45.4, 37.2)], 1.7)
    brows = pen.layer(brow | mirror(brow), BROW)
    white = pen.ellipse((EYE_X, EYE_Y), (4.5, 4.1))
    pupil = pen.ellipse((EYE_X + 0.3, EYE_Y + 0.1), (3.0, 3.3))
    glint = pen.ellipse((EYE_X + 1.2, EYE_Y - 0.9), (0.9, 0.9))
    shut = pen.stroke([(37, 44.6), (41.3, 47.4), (46, 44.6)], 2.1)
    if kind == "closed":
        return [brows, pen.layer(shut | mirror(shut), DARK)]
    if kind == "winking":
        return [
            brows,
            pen.layer(white, WHITE),
            pen.layer(pupil, DARK),
            pen.layer(glint, WHITE),
            pen.layer(mirror(shut), DARK),
        ]
    if kind == "hearts":
        heart = _heart(pen)
        return [brows, pen.layer(heart | mirror(heart), HEART)]
    return [
        brows,
        pen.layer(white | mirror(white), WHITE),
        pen.layer(pupil | mirror(pupil), DARK),
        pen.layer(glint | pen.ellipse((100 - EYE_X + 0.6, EYE_Y - 0.9), (0.9, 0.9)), WHITE),
    ]


def _heart(pen: Pen) -> Mask:
    lobes = pen.ellipse((EYE_X - 2.2, EYE_Y - 1.6), (2.7, 2.7))
    lobes |= pen.ellipse((EYE_X + 2.2, EYE_Y - 1.6), (2.7, 2.7))
    point = pen.polygon(
        [
            (EYE_X - 4.6, EYE_Y - 0.4),
            (EYE_X, EYE_Y - 2),
            (EYE_X + 4.6, EYE_Y - 0.4),
            (EYE_X, EYE_Y + 5),
        ]
    )
    return lobes | point


def mouth(pen: Pen, kind: str) -> list[Layer]:
    """Draws a mouth of one kind of `MOUTHS`."""
    inside = Paint(rgb=(110, 20, 34))
    if kind == "smiling":
        open_mouth = pen.polygon([(40, 57), (60, 57), (60, 70), (40, 70)])
        open_mouth &= pen.ellipse((50, 57), (7.6, 6.6))
        teeth = open_mouth & pen.polygon([(40, 57), (60, 57), (60, 59.4), (40, 59.4)])
        return [pen.layer(open_mouth, inside), pen.layer(teeth, WHITE)]
    if kind == "sad":
        return [pen.layer(pen.stroke([(43.4, 63.6), (50, 58.4), (56.6, 63.6)], 2.4), LIPS)]
    if kind == "serious":
        return [pen.layer(pen.stroke([(44.5, 60), (55.5, 60)], 2.1), LIPS)]
    round_mouth = pen.ellipse((50, 60.6), (4.6, 5.2))
    tongue = round_mouth & pen.ellipse((50, 65), (3.8, 3.2))
    return [pen.layer(round_mouth, inside), pen.layer(tongue, Paint(rgb=(236, 96, 110)))]


def facial_hair(pen: Pen, kind: str) -> list[Layer]:
    """Draws a kind of `FACIAL_HAIR`."""
    hair = Paint()
    half = [(50, 55.4), (53, 54.8), (57, 56), (61, 58.6), (57.5, 59.2), (53, 58.4), (50, 58)]
    moustache = pen.symmetric(half)
    if kind == "none":
        return []
    if kind == "moustache":
        return [pen.layer(moustache, hair)]
    if kind == "goatee":
        chin = pen.symmetric([(50, 63.5), (55, 64), (55.5, 68), (53, 71.5), (50, 72.5)])
        return [pen.layer(chin, hair)]
    outer = pen.symmetric(
        [(50, 52), (60, 50), (69.6, 43), (69.4, 55), (66, 65), (58.5, 71.8), (50, 74)]
    )
    cheeks = pen.symmetric(
        [(50, 30), (60, 33), (66.2, 42), (66, 50), (63.4, 56), (57, 56.4), (50, 55)]
    )
    lips = pen.ellipse((50, 61.2), (7.4, 4.4))
    return [pen.layer((outer & ~cheeks & ~lips) | moustache, hair)]


def glasses(pen: Pen, kind: str) -> list[Layer]:
    """Draws a kind of `GLASSES`."""
    if kind == "none":
        return []
    frame = Paint(rgb=(24, 24, 30))
    arm = pen.stroke([(33.6, 44.2), (29.4, 43.4)], 1.8)
    if kind == "round":
        hoop = pen.ellipse((EYE_X, EYE_Y), (7.6, 7.6))
        lens = pen.ellipse((EYE_X, EYE_Y), (6.0, 6.0))
    elif kind == "square":
        hoop = _box(pen, (33.2, 38.6), (48.9, 51.6))
        lens = _box(pen, (35.0, 40.8), (47.1, 49.8))
    else:
        hoop = pen.blob(
            [(33, 40), (41, 39), (49, 40), (48.6, 47), (43, 51.6), (37, 50.6), (33.4, 46)]
        )
        lens = pen.nothing()
    bridge = pen.stroke([(48.4, 43.6), (50, 42.8), (51.6, 43.6)], 1.8)
    rims = (hoop & ~lens) | arm
    layers = [pen.layer(rims | mirror(rims) | bridge, frame)]
    if kind == "sunglasses":
        gleam = hoop & pen.polygon([(36, 36), (40, 36), (36.5, 54), (32.5, 54)])
        gleam |= pen.polygon([(100 - 46, 36), (58, 36), (54.5, 54), (50.5, 54)]) & mirror(hoop)
        layers.append(pen.layer(gleam, Paint(rgb=(120, 130, 150), opacity=0.6)))
    else:
        glass = lens | mirror(lens)
        layers.insert(0, pen.layer(glass, Paint(rgb=(225, 240, 255), opacity=0.14)))
    return layers


def _box(pen: Pen, low: Point, high: Point) -> Mask:
    return pen.polygon([low, (high[0], low[1]), high, (low[0], high[1])])
