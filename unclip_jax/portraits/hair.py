"""Artwork of hair: what lies behind the head, and what lies in front of it."""

import math

from unclip_jax.portraits.faces import skull
from unclip_jax.portraits.pen import Layer, Mask, Number, Paint, Pen, Point, mirror

HAIR = Paint()
SHADE = Paint(shade=-0.22)
SHINE = Paint(shade=0.22)


def hair_behind(pen: Pen, style: str) -> list[Layer]:
    """Draws the part of a style of `HAIR` behind head and shoulders."""
    return _BEHIND[style](pen) if style in _BEHIND else []


def hair_before(pen: Pen, style: str) -> list[Layer]:
    """Draws the part of a style of `HAIR` in front of the face."""
    return _BEFORE[style](pen) if style in _BEFORE else []


def _cap(pen: Pen) -> Mask:
    """Fills the outline of hair that lies close on the skull, down to the ears."""
    return pen.symmetric(
        [(50, 16), (60, 17.5), (68.5, 25), (71, 36), (70.4, 44), (66.5, 45), (60, 36), (50, 34)]
    )


def _circles(pen: Pen, centres: list[Point], radius: Number) -> Mask:
    mask = pen.nothing()
    for centre in centres:
        mask |= pen.ellipse(centre, (radius, radius))
    return mask


def _arc(centre: Point, radius: Number, *, start: Number, stop: Number, count: int) -> list[Point]:
    """Returns `count` points on a circle; angles in degrees, clockwise from the right."""
    angles = [math.radians(start + (stop - start) * k / (count - 1)) for k in range(count)]
    return [(centre[0] + radius * math.cos(a), centre[1] + radius * math.sin(a)) for a in angles]


def _short(pen: Pen) -> list[Layer]:
    fringe = pen.blob(
        [
            (38, 16),
            (52, 12.5),
            (65, 17),
            (71, 27),
            (70.5, 42),
            (67.5, 43),
            (65.8, 33),
            (58, 29.5),
            (46, 32),
            (36.5, 31.5),
            (34.2, 35),
            (32.5, 43),
            (29.5, 42),
            (29, 30),
            (31, 21),
        ]
    )
    shine = pen.stroke([(40, 20.5), (50, 17.6), (60, 20)], 1.8)
    return [pen.layer(fringe, HAIR), pen.layer(shine, SHINE)]


def _spiky(pen: Pen) -> list[Layer]:
    tips = [
        (29.5, 43),
        (25.5, 30),
        (31, 28.5),
        (26.5, 15),
        (36, 18.5),
        (37.5, 5.5),
        (45, 14.5),
        (51.5, 2.5),
        (56, 14),
        (65, 6.5),
        (64.5, 18),
        (74, 16),
        (69.5, 28.5),
        (75, 31),
        (70.5, 43),
    ]
    base = [
        (67.5, 43),
        (65, 33),
        (60.5, 35),
        (56.5, 29.5),
        (51, 34.5),
        (46, 29.5),
        (40.5, 35),
        (36.5, 31),
        (32.5, 43),
    ]
    spikes = pen.polygon([*tips, *base])
    shine = pen.polygon([(44, 20), (51.2, 8), (52, 20)]) | pen.polygon(
        [(33, 22), (38, 11), (39.5, 21)]
    )
    return [pen.layer(spikes, HAIR), pen.layer(shine, SHINE)]


def _mohawk(pen: Pen) -> list[Layer]:
    shaved = skull(pen) & pen.polygon([(0, 0), (100, 0), (100, 38), (0, 38)])
    shaved &= ~pen.symmetric([(50, 29.5), (59, 30.5), (64, 35), (66, 44), (50, 60)])
    crest = pen.polygon(
        [
            (42.5, 31),
            (40, 12),
            (44, 14),
            (43.5, 4),
            (48, 8),
            (50.5, -1),
            (53, 8),
            (57, 3.5),
            (56.5, 13.5),
            (60.5, 11.5),
            (57.5, 31),
            (50, 33.5),
        ]
    )
    shine = pen.polygon([(47.5, 28), (47, 11), (50.5, 7), (51.5, 28)])
    return [pen.layer(shaved, Paint(opacity=0.35)), pen.layer(crest, HAIR), pen.layer(shine, SHINE)]


def _curly(pen: Pen) -> list[Layer]:
    top = _circles(pen, _arc((50, 36), 19.5, start=170, stop=370, count=11), 6.6)
    inner = _circles(pen, _arc((50, 37), 12, start=205, stop=335, count=6), 5.6)
    shine = pen.nothing()
    for x, y in _arc((50, 36), 19.5, start=195, stop=345, count=5):
        shine |= pen.stroke([(x - 2.4, y - 0.4), (x, y - 2.6), (x + 2.4, y - 0.4)], 1.5)
    return [pen.layer(top | inner | (_cap(pen) & ~_forehead(pen)), HAIR), pen.layer(shine, SHINE)]


def _forehead(pen: Pen) -> Mask:
    return pen.symmetric([(50, 29), (59, 31), (65, 38), (67, 48), (50, 70)])


def _afro_behind(pen: Pen) -> list[Layer]:
    bumps = _circles(pen, _arc((50, 36), 27, start=135, stop=405, count=17), 6.2)
    return [pen.layer(bumps | pen.ellipse((50, 36), (28, 27)), HAIR)]


def _afro(pen: Pen) -> list[Layer]:
    line = _circles(pen, _arc((50, 44), 18.4, start=188, stop=352, count=9), 5.6)
    above = pen.ellipse((50, 26), (17.5, 8.5))
    shine = pen.nothing()
    for x, y in [(34, 18), (46, 11.5), (59, 13), (69, 22), (40, 24), (55, 23), (26, 31), (75, 35)]:
        shine |= pen.stroke([(x - 2, y), (x, y - 1.6), (x + 2, y)], 1.4)
    return [pen.layer((line | above) & ~_forehead(pen), HAIR), pen.layer(shine, SHINE)]


def _bob_behind(pen: Pen) -> list[Layer]:
    return [
        pen.layer(
            pen.symmetric(
                [(50, 13), (63, 15), (72.5, 25), (76, 42), (77, 60), (73, 68.5), (62, 68), (50, 67)]
            ),
            SHADE,
        )
    ]


def _bob(pen: Pen) -> list[Layer]:
    outer = pen.symmetric(
        [(50, 13), (63, 15), (72.5, 25), (76, 42), (77, 60), (73, 68.5), (66, 66), (50, 60)]
    )
    window = pen.polygon([(33.5, 34.5), (66.5, 34.5), (66, 58), (63, 70), (37, 70), (34, 58)])
    shine = pen.stroke([(36, 24), (50, 20), (64, 24)], 2.2)
    return [pen.layer(outer & ~window, HAIR), pen.layer(shine, SHINE)]


def _straight_behind(pen: Pen) -> list[Layer]:
    return [
        pen.layer(
            pen.symmetric(
                [(50, 13), (63, 15), (72, 25), (75, 45), (76, 70), (77, 93), (66, 96), (50, 96)]
            ),
            SHADE,
        )
    ]


def _straight(pen: Pen) -> list[Layer]:
    half = pen.blob(
        [
            (50, 13),
            (62, 14.5),
            (72, 25),
            (75, 45),
            (76, 70),
            (77, 92),
            (72, 95.5),
            (66.5, 94),
            (67, 75),
            (67.5, 58),
            (66.5, 44),
            (61, 34),
            (54, 27.5),
            (49.4, 24),
        ]
    )
    shine = pen.stroke([(60, 21), (67, 28), (70.5, 40)], 2.0)
    return [
        pen.layer(half | mirror(half), HAIR),
        pen.layer(shine | mirror(shine), SHINE),
        pen.layer(pen.stroke([(50, 14.5), (50, 24)], 1.2), SHADE),
    ]


def _wavy_behind(pen: Pen) -> list[Layer]:
    return [
        pen.layer(
            pen.symmetric(
                [
                    (50, 16),
                    (62, 18),
                    (70, 28),
                    (71, 42),
                    (75, 53),
                    (72, 62),
                    (77, 74),
                    (74, 84),
                    (66, 88),
                    (50, 86),
                ]
            ),
            SHADE,
        )
    ]


def _wavy(pen: Pen) -> list[Layer]:
    right = pen.blob(
        [
            (38, 16),
            (52, 11.5),
            (66, 16),
            (73.5, 27),
            (74, 40),
            (78.5, 52),
            (75, 62),
            (80.5, 74),
            (77, 84),
            (70, 87),
            (66.5, 80),
            (70, 70),
            (66.5, 60),
            (69, 49),
            (66.6, 39),
            (61, 33.5),
            (51, 30),
            (41, 24),
        ]
    )
    left = pen.blob(
        [
            (48, 13),
            (37, 14.5),
            (28, 24),
            (26, 40),
            (21.5, 52),
            (25, 62),
            (19.5, 74),
            (23, 84),
            (30, 87),
            (33.5, 80),
            (30, 70),
            (33.5, 60),
            (31, 49),
            (33.4, 39),
            (37.5, 32.5),
            (44, 27.5),
            (47, 22),
        ]
    )
    shine = pen.stroke([(50, 17), (61, 20), (69, 29)], 2.0) | pen.stroke(
        [(74, 56), (71.5, 62), (75, 72)], 1.8
    )
    shine |= pen.stroke([(31, 27), (29.8, 38), (26, 50)], 1.8)
    return [pen.layer(right | left, HAIR), pen.layer(shine, SHINE)]


def _bun(pen: Pen) -> list[Layer]:
    knot = pen.ellipse((50, 10.5), (9.5, 8.5))
    cap = _cap(pen) & ~pen.symmetric([(50, 28), (58, 29.5), (64.5, 36), (67, 48), (50, 66)])
    band = pen.stroke([(44.5, 17.2), (50, 18.4), (55.5, 17.2)], 1.6)
    shine = pen.stroke([(44, 9.4), (48.5, 5.4)], 1.8) | pen.stroke([(38, 25), (46, 20.6)], 1.8)
    return [
        pen.layer(knot | cap, HAIR),
        pen.layer(band, Paint(shade=-0.45)),
        pen.layer(shine, SHINE),
    ]


def _pigtails_behind(pen: Pen) -> list[Layer]:
    tail = pen.blob(
        [
            (71, 33),
            (80, 30),
            (88.5, 38),
            (90, 52),
            (85, 64),
            (80.5, 69),
            (79.5, 60),
            (74, 52),
            (70, 42),
        ]
    )
    shine = pen.stroke([(81, 37), (84.6, 46), (84, 56)], 1.9)
    return [pen.layer(tail | mirror(tail), HAIR), pen.layer(shine | mirror(shine), SHINE)]


def _pigtails(pen: Pen) -> list[Layer]:
    half = pen.blob(
        [
            (50, 15.5),
            (60, 16.5),
            (69, 24),
            (72, 35),
            (70.5, 42),
            (67, 43),
            (63, 36),
            (56, 31),
            (49.5, 22),
        ]
    )
    band = pen.ellipse((73, 35.5), (2.6, 3.4))
    return [
        pen.layer(half | mirror(half), HAIR),
        pen.layer(pen.stroke([(50, 16.5), (50, 24)], 1.2), SHADE),
        pen.layer(band | mirror(band), Paint(rgb=(255, 246, 214))),
    ]


_BEHIND = {
    "afro": _afro_behind,
    "bob": _bob_behind,
    "straight": _straight_behind,
    "wavy": _wavy_behind,
    "pigtails": _pigtails_behind,
}
_BEFORE = {
    "short": _short,
    "spiky": _spiky,
    "mohawk": _mohawk,
    "curly": _curly,
    "afro": _afro,
    "bob": _bob,
    "straight": _straight,
    "wavy": _wavy,
    "bun": _bun,
    "pigtails": _pigtails,
}
