"""The six categories of the synthetic set: three textures and three objects, each a function of a random generator.

`draw(where, rng, missing)` returns a `Scene`: the clean image, and where its surface is. `missing` takes one part away (a thread, a
splinter, a tile, a corner, an end, a component): the random numbers consumed are the same with and without it, so the two pictures
differ in that part alone. Light, pose, phase and grain vary from image to image as under a real camera.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.random import Generator

from inpbench.datasets.drawing import (
    Array,
    Canvas,
    box,
    cover,
    disc,
    hexagon,
    near,
    octaves,
    over,
    plain,
    rotated,
    shade,
    smooth_noise,
)


class Scene(NamedTuple):
    """A drawn surface: `image` (S, S, 3) in [0, 1] and `surface` (S, S) coverage of the inspected part."""

    image: Array
    surface: Array


@dataclass(frozen=True)
class Part:
    """The part to take away: a place in drawing units (y, x), a size factor around 1, and a number to choose among parts."""

    y: float
    x: float
    scale: float
    choice: int


Draw = Callable[[Canvas, Generator, Part | None], Scene]

MIDDLE = (128.0, 128.0)


def weave(where: Canvas, rng: Generator, missing: Part | None) -> Scene:
    """Plain weave of blue warp and pale weft; missing: a stretch of one warp thread."""
    size, pitch = where.size, 13.0 * (1.0 + 0.02 * rng.standard_normal())
    v, u = rotated(where, np.deg2rad(3.0) * rng.standard_normal(), (rng.uniform(0, 26), rng.uniform(0, 26)))
    v = (v + 0.9 * smooth_noise(rng, size, 5, 5)) / pitch
    u = (u + 0.9 * smooth_noise(rng, size, 5, 5)) / pitch
    column, row = np.floor(u), np.floor(v)
    across_warp, across_weft = u - column - 0.5, v - row - 0.5
    tone = rng.normal(1.0, 0.05, (2, 64))
    fibre = 0.05 * smooth_noise(rng, size, 24, 160), 0.05 * smooth_noise(rng, size, 160, 24)
    warp_tone = tone[0][(column.astype(np.int64)) % 64] + fibre[0]
    weft_tone = tone[1][(row.astype(np.int64)) % 64] + fibre[1]
    # A thread is a cylinder (bright in its middle) that rises over every second crossing.
    warp_light = np.sqrt(np.maximum(1.0 - (1.9 * across_warp) ** 2, 0.0)) * (0.62 + 0.38 * np.cos(np.pi * across_weft))
    weft_light = np.sqrt(np.maximum(1.0 - (1.9 * across_weft) ** 2, 0.0)) * (0.62 + 0.38 * np.cos(np.pi * across_warp))
    warp_on_top = (column + row) % 2 == 0
    if missing is not None:
        lost = column[_pixel(where, missing.y), _pixel(where, missing.x)]
        gone = (column == lost) & (np.abs(where.y - missing.y) < 24.0 * missing.scale)
        weft_light = np.where(gone, weft_light * (0.55 + 0.3 * np.abs(across_warp)), weft_light)
        warp_on_top = warp_on_top & ~gone
    image = plain(size, (0.07, 0.07, 0.09))
    over(image, np.array((0.80, 0.76, 0.66)) * (weft_light * weft_tone)[..., None], (~warp_on_top & (weft_light > 0)) * 0.95)
    over(image, np.array((0.30, 0.41, 0.62)) * (warp_light * warp_tone)[..., None], (warp_on_top & (warp_light > 0)) * 0.95)
    return Scene(image, np.ones((size, size)))


def wood(where: Canvas, rng: Generator, missing: Part | None) -> Scene:
    """Board with wavy annual rings, fibres and pores along the grain; missing: a splinter torn out along the grain."""
    size = where.size
    v, u = rotated(where, np.deg2rad(2.5) * rng.standard_normal(), MIDDLE)
    bend = 6.0 * smooth_noise(rng, size, 2, 3) + 2.0 * smooth_noise(rng, size, 4, 10)
    rings = (u + bend) / (21.0 * (1.0 + 0.08 * rng.standard_normal())) + rng.uniform()
    phase = rings - np.floor(rings)
    late = np.where(phase < 0.8, phase / 0.8, (1.0 - phase) / 0.2) ** 2  # slow darkening, then a sharp edge: late wood
    fibre = smooth_noise(rng, size, 8, 180)
    pores = np.clip(smooth_noise(rng, size, 22, 200) - 1.9, 0.0, 1.0)
    dark = np.clip(0.08 + 0.85 * late + 0.10 * fibre + 0.8 * pores, 0.0, 1.3)
    light, deep = np.array((0.80, 0.62, 0.42)), np.array((0.40, 0.25, 0.14))
    image = light + dark[..., None] * (deep - light) * (1.0 + 0.05 * rng.standard_normal())
    rough = smooth_noise(rng, size, 30, 90)
    if missing is not None:
        ragged = 2.0 * smooth_noise(rng, size, 24, 8)
        torn = box(v - missing.y + 128.0, u - missing.x + 128.0 + ragged, 21.0 * missing.scale, 4.5, 4.0)
        over(image, (0.16, 0.10, 0.06), 0.85 * cover(torn - 1.5, 2.5))
        over(image, np.array((0.60, 0.43, 0.26)) * (1.0 + 0.16 * rough)[..., None], cover(torn + 2.0, 1.5))
    return Scene(np.clip(image, 0.0, 1.0), np.ones((size, size)))


def tile(where: Canvas, rng: Generator, missing: Part | None) -> Scene:
    """Mosaic of glazed tiles in pale mortar; missing: one tile."""
    size, pitch = where.size, 33.0 * (1.0 + 0.015 * rng.standard_normal())
    v, u = rotated(where, np.deg2rad(1.5) * rng.standard_normal(), (rng.uniform(-40, 0), rng.uniform(-40, 0)))
    row, column = np.floor(v / pitch), np.floor(u / pitch)
    wobble = rng.normal(0.0, 0.5, (2, 32, 32))
    index = row.astype(np.int64) % 32, column.astype(np.int64) % 32
    local_v = v - (row + 0.5) * pitch + wobble[0][index]
    local_u = u - (column + 0.5) * pitch + wobble[1][index]
    body = box(local_v, local_u, pitch / 2 - 2.0, pitch / 2 - 2.0, 3.0)
    tone = (1.0 + 0.08 * rng.standard_normal((32, 32)))[index]
    hue = (0.03 * rng.standard_normal((32, 32)))[index]
    cloud, grit = octaves(rng, size, 14, 3), smooth_noise(rng, size, 128, 128)
    mortar = np.array((0.70, 0.68, 0.63)) * (1.0 + 0.06 * grit)[..., None]
    glaze = np.stack([0.24 + hue, 0.47 + 0.5 * hue, 0.50 - hue], axis=-1) * (tone * (1.0 + 0.06 * cloud))[..., None]
    # Bevel: the edge that faces the light (up left) is bright, the opposite one dark.
    edge = np.clip((body + 4.0) / 4.0, 0.0, 1.0)
    glaze *= (1.0 - 0.16 * edge * np.sign(local_v + local_u))[..., None]
    image = mortar
    shade(image, 1.0 - 0.35 * cover(np.abs(body) - 0.6, 1.2))
    present = cover(body, 1.2)
    if missing is not None:
        at = _pixel(where, missing.y), _pixel(where, missing.x)
        lost = (row == row[at]) & (column == column[at])
        shade(image, 1.0 - lost * cover(body, 3.0) * (0.28 - 0.10 * cloud))
        present = present * ~lost
    over(image, glaze, present)
    return Scene(np.clip(image, 0.0, 1.0), np.ones((size, size)))


def nut(where: Canvas, rng: Generator, missing: Part | None) -> Scene:
    """Hexagonal nut of brushed steel on dark rubber; missing: a piece broken off its rim."""
    size = where.size
    centre = (128.0 + rng.uniform(-5, 5), 128.0 + rng.uniform(-5, 5))
    angle, glint = np.deg2rad(rng.uniform(-10, 10)), rng.uniform(-0.5, 0.5)
    v, u = rotated(where, angle, centre)
    radius, bearing = np.hypot(v, u), np.arctan2(v, u)
    outer, hole = hexagon(v, u, 86.0), disc(v, u, 43.0)
    rubber = plain(size, (0.13, 0.13, 0.14)) * (1.0 + 0.14 * octaves(rng, size, 40, 2))[..., None]
    image = rubber.copy()
    shadow = cover(hexagon(v - 5.0, u - 5.0, 86.0), 14.0)
    brushed = smooth_noise(rng, size, 6, 6) * 0.03 + 0.035 * np.interp(radius, np.linspace(0, 200, 400), rng.standard_normal(400))
    light = 0.62 + 0.11 * np.cos(2.0 * (bearing + angle - 0.8 - glint)) + brushed
    light = light - 0.20 * cover(-(radius - 79.0), 3.0) * (0.4 + np.sin(bearing + angle + 0.8))  # chamfer beyond the washer face
    light = light - 0.18 * cover(np.abs(hole - 3.0) - 1.2, 1.5)
    steel = np.array((0.98, 1.0, 1.03)) * np.clip(light, 0.05, 1.0)[..., None]
    thread = 0.20 + 0.16 * np.cos(2.0 * np.pi * (radius - 34.0) / 4.5 + bearing)
    body = np.maximum(outer, -hole)
    if missing is not None:
        toward = np.arctan2(missing.y - centre[0], missing.x - centre[1])
        reach = 86.0 / np.cos((toward - angle + np.pi / 6) % (np.pi / 3) - np.pi / 6) - 2.0
        bite_y, bite_x = centre[0] + reach * np.sin(toward), centre[1] + reach * np.cos(toward)
        ragged = 2.5 * smooth_noise(rng, size, 28, 28)
        body = np.maximum(body, -(np.hypot(where.y - bite_y, where.x - bite_x) - 17.0 * missing.scale + ragged))
    shade(image, 1.0 - 0.55 * shadow)
    over(image, np.array((0.95, 0.97, 1.0)) * thread[..., None], cover(np.maximum(disc(v, u, 43.0), -disc(v, u, 33.0)), 1.2))
    over(image, steel, cover(body, 1.2))
    return Scene(np.clip(image, 0.0, 1.0), cover(np.maximum(outer, -hole) + 3.0, 1.0))


def capsule(where: Canvas, rng: Generator, missing: Part | None) -> Scene:
    """Two-coloured capsule with a printed code on a pale belt; missing: a dent eaten out of its side."""
    size = where.size
    centre = (128.0 + rng.uniform(-5, 5), 128.0 + rng.uniform(-5, 5))
    v, u = rotated(where, np.deg2rad(rng.uniform(-9, 9)), centre)
    body = box(v, u, 42.0, 98.0, 42.0)
    belt = plain(size, (0.74, 0.75, 0.77)) * (1.0 + 0.035 * octaves(rng, size, 24, 3))[..., None]
    image = belt.copy()
    shade(image, 1.0 - 0.35 * cover(box(v - 7.0, u - 4.0, 43.0, 99.0, 43.0), 16.0))
    seam = rng.uniform(-3, 3)
    left, right = np.array((0.72, 0.16, 0.15)), np.array((0.93, 0.87, 0.70))
    paint = np.where((u < seam)[..., None], left, right) * (1.0 + 0.03 * rng.standard_normal())
    ink = np.full((size, size), np.inf)
    for step, tall in enumerate((10.0, 10.0, 5.0, 10.0)):
        ink = np.minimum(ink, box(v + (10.0 - tall) / 2, u - seam - 24.0 - 10.0 * step, tall, 2.2, 1.0))
    ink = np.minimum(ink, np.abs(disc(v, u - seam + 45.0, 11.0)) - 2.2)
    paint = paint + cover(ink, 1.2)[..., None] * (np.array((0.22, 0.14, 0.12)) - paint)
    across = np.clip(v / 42.0, -1.0, 1.0)
    light = 0.55 + 0.45 * np.sqrt(1.0 - across**2 * 0.96) - 0.10 * across
    light = light * (1.0 - 0.25 * cover(np.abs(u - seam) - 0.8, 1.5)) * (1.0 + 0.015 * octaves(rng, size, 20, 3))
    shell = np.clip(paint * light[..., None], 0.0, 1.0)
    over(shell, (1.0, 1.0, 1.0), 0.62 * cover(box(v + 20.0, u, 4.0, 72.0, 4.0), 8.0))
    if missing is not None:
        side = -1.0 if missing.choice % 2 else 1.0
        at = np.clip(missing.x - 128.0, -75.0, 75.0)
        ragged = 2.0 * smooth_noise(rng, size, 30, 30)
        bite = np.hypot(v - side * 42.0, u - at) - 15.0 * missing.scale + ragged
        over(shell, belt * 0.62, cover(bite, 1.5))
        over(shell, (0.18, 0.11, 0.09), 0.8 * cover(np.abs(bite) - 1.0, 1.5))
    over(image, shell, cover(body, 1.2))
    return Scene(np.clip(image, 0.0, 1.0), cover(body + 4.0, 1.0))


# The board's layout is part of its design and the same in every image: (y, x, half height, half width) from its centre.
CHIPS = ((-38.0, -40.0, 26.0, 26.0), (48.0, 42.0, 17.0, 34.0))
CANS = ((-48.0, 52.0, 19.0), (-6.0, 76.0, 11.0))
RESISTORS = ((14.0, -80.0), (34.0, -80.0), (54.0, -80.0), (74.0, -80.0), (26.0, -32.0), (50.0, -32.0), (78.0, -30.0), (-84.0, 14.0))
TRACES = (
    ((-38.0, -10.0), (-38.0, 30.0), (-20.0, 48.0), (30.0, 48.0)),
    ((-50.0, -10.0), (-50.0, 10.0), (-66.0, 26.0), (-66.0, 90.0)),
    ((-10.0, -50.0), (12.0, -50.0), (18.0, -56.0), (18.0, -70.0)),
    ((-10.0, -30.0), (28.0, -30.0)),
    ((54.0, -70.0), (50.0, -40.0)),
    ((70.0, 20.0), (88.0, 2.0), (88.0, -60.0)),
    ((66.0, 60.0), (90.0, 84.0), (0.0, 84.0)),
    ((-70.0, -60.0), (-88.0, -60.0), (-88.0, 0.0)),
)


def board(where: Canvas, rng: Generator, missing: Part | None) -> Scene:
    """Printed circuit board with chips, cans, resistors and traces; missing: one component, its pads and glue stay."""
    size = where.size
    centre, angle = (128.0 + rng.uniform(-4, 4), 128.0 + rng.uniform(-4, 4)), np.deg2rad(1.2) * rng.standard_normal()
    v, u = rotated(where, angle, centre)
    grain, gloss = smooth_noise(rng, size, 100, 100), smooth_noise(rng, size, 3, 3)
    image = plain(size, SOLDER_MASK) * (1.0 + 0.05 * grain + 0.05 * gloss)[..., None]
    tones = 1.0 + 0.06 * rng.standard_normal(len(CHIPS) + len(CANS) + len(RESISTORS))

    def around(place: tuple[float, float], reach: float) -> tuple[Array, Array, Array]:
        """A view of the image near `place`, with the coordinates from there."""
        y = centre[0] + np.cos(angle) * place[0] + np.sin(angle) * place[1]
        x = centre[1] - np.sin(angle) * place[0] + np.cos(angle) * place[1]
        window = near(where, (y, x), reach)
        return image[window], v[window] - place[0], u[window] - place[1]

    for points in TRACES:
        for (v0, u0), (v1, u1) in pairwise(points):
            half_v, half_u = (v1 - v0) / 2, (u1 - u0) / 2
            length = float(np.hypot(half_v, half_u))
            view, dv, du = around((v0 + half_v, u0 + half_u), length + 4.0)
            along = np.clip((dv * half_v + du * half_u) / length**2, -1.0, 1.0)
            over(view, (0.16, 0.50, 0.28), cover(np.hypot(dv - along * half_v, du - along * half_u) - 1.8, 1.2))
    for corner in ((-104.0, -104.0), (-104.0, 104.0), (104.0, -104.0), (104.0, 104.0)):
        view, dv, du = around(corner, 14.0)
        over(view, (0.83, 0.69, 0.33), cover(disc(dv, du, 11.0), 1.2))
        over(view, (0.05, 0.05, 0.06), cover(disc(dv, du, 7.0), 1.2))
    for tone, (cv, cu, half_v, half_u) in zip(tones, CHIPS, strict=False):
        _chip(*around((cv, cu), half_v + half_u + 8.0), half_v, half_u, tone)
    lost = -1 if missing is None else missing.choice % (len(CANS) + len(RESISTORS))
    for index, (cv, cu, radius) in enumerate(CANS):
        _can(*around((cv, cu), radius + 12.0), radius, tones[len(CHIPS) + index], present=index != lost)
    for index, place in enumerate(RESISTORS, start=len(CANS)):
        _resistor(*around(place, 18.0), tones[len(CHIPS) + index], present=index != lost)
    return Scene(np.clip(image, 0.0, 1.0), cover(box(v, u, 112.0, 112.0), 1.0))


SOLDER_MASK, METAL, GLUE = (0.07, 0.33, 0.19), (0.74, 0.75, 0.76), (0.72, 0.14, 0.12)


def _chip(view: Array, dv: Array, du: Array, half_v: float, half_u: float, tone: float) -> None:
    """A package of half_v x half_u with pins on two sides, its first pin marked; (dv, du) are coordinates from its middle."""
    pins = np.maximum(box(dv, du, half_v + 6.0, half_u - 2.0), np.abs(du % 8.0 - 4.0) - 1.8)
    over(view, METAL, cover(pins, 1.2))
    over(view, (0.13 * tone, 0.13 * tone, 0.14 * tone), cover(box(dv, du, half_v, half_u, 2.0), 1.2))
    over(view, (0.30, 0.30, 0.31), cover(disc(dv + half_v - 7.0, du + half_u - 7.0, 3.0), 1.2))
    over(view, (0.48, 0.48, 0.47), 0.7 * cover(np.maximum(box(dv, du, 7.0, half_u - 10.0), 1.5 - np.abs(dv)), 1.2))


def _can(view: Array, dv: Array, du: Array, radius: float, tone: float, *, present: bool) -> None:
    """An electrolytic capacitor seen from above, with its shadow and polarity mark, or the pads and glue below it."""
    over(view, METAL, cover(box(dv, du, 2.5, radius * 0.6, 1.0), 1.2))
    if not present:
        over(view, GLUE, cover(np.abs(disc(dv, du, radius * 0.55)) - 2.0, 1.2))
        return
    over(view, (0.02, 0.10, 0.06), 0.6 * cover(disc(dv - 3.0, du - 3.0, radius), 6.0))
    over(view, (0.66 * tone, 0.68 * tone, 0.71 * tone), cover(disc(dv, du, radius), 1.2))
    over(view, (0.17, 0.18, 0.22), cover(np.maximum(disc(dv, du, radius - 2.0), du + radius * 0.35), 1.2))


def _resistor(view: Array, dv: Array, du: Array, tone: float, *, present: bool) -> None:
    """A chip resistor between its two pads, or the pads and the dot of glue that did not hold it."""
    over(view, METAL, cover(box(dv, du, 5.8, 13.0, 1.0), 1.2))
    body = (0.30 * tone, 0.20 * tone, 0.14 * tone) if present else SOLDER_MASK
    over(view, body, cover(box(dv, du, 6.4, 8.5, 0.8), 1.2))
    if not present:
        over(view, GLUE, cover(disc(dv, du, 4.0), 1.2))


def _pixel(where: Canvas, at: float) -> int:
    """Index of the pixel that holds the coordinate `at` (drawing units)."""
    return min(max(int(at / where.pixel), 0), where.size - 1)


DRAWINGS: dict[str, Draw] = {"weave": weave, "wood": wood, "tile": tile, "nut": nut, "capsule": capsule, "board": board}
TEXTURES = frozenset({"weave", "wood", "tile"})
