"""Five kinds of defects for the synthetic set, drawn into a clean scene, each with its exact pixel mask.

The mask is where the defective picture differs visibly from the clean one, closed and freed of crumbs; outside the mask the
picture is put back to the clean one, so mask and change agree to the pixel. A draw that comes out too small or too faint to be
called a defect is drawn again with the next random numbers of the same generator.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from inpbench.datasets.drawing import Array, Canvas, cover, over, polyline, smooth_noise
from inpbench.datasets.drawing_categories import Part, Scene

Redraw = Callable[[Part | None], Scene]  # the same scene again, with a part taken away

RIM = 34.0  # no defect is centred nearer to the border than this (units): many protocols crop 6 % away on each side
VISIBLE = 0.045  # smallest change of a colour channel that counts as changed
FAINTEST = 0.08  # smallest mean change within a mask
SMALLEST = 100.0  # smallest area of a mask, in square units
ATTEMPTS = 40


class Defective(NamedTuple):
    """`image` (S, S, 3) in [0, 1] and its `mask` (S, S), True where it differs from the clean scene."""

    image: Array
    mask: NDArray[np.bool_]


def _place(where: Canvas, rng: Generator, weight: Array) -> tuple[float, float]:
    """A point (y, x) drawn with a density proportional to `weight` (S, S) away from the border."""
    inner = (np.abs(where.y - 128.0) < 128.0 - RIM) & (np.abs(where.x - 128.0) < 128.0 - RIM)
    total = np.cumsum((weight * inner).ravel())
    index = int(np.searchsorted(total, rng.uniform() * total[-1]))
    row, column = divmod(min(index, weight.size - 1), where.size)
    return float(where.y[row, column]), float(where.x[row, column])


def scratch(where: Canvas, rng: Generator, scene: Scene, redraw: Redraw) -> Array:
    """A thin curved groove, dark on one flank and bright on the other."""
    y, x = _place(where, rng, scene.surface)
    heading, turn = rng.uniform(0, np.pi), rng.uniform(-0.5, 0.5)
    length, width = rng.uniform(60, 120), rng.uniform(1.7, 2.8)
    at = np.linspace(-0.5, 0.5, 9)
    angles = heading + turn * at + 0.08 * rng.standard_normal(9)
    steps = np.stack([np.sin(angles), np.cos(angles)], axis=1) * (length / 8)
    points = np.cumsum(steps, axis=0)
    points += np.array([y, x]) - points[4]
    distance = polyline(where, points, reach=12.0)
    image: Array = scene.image.copy()
    strength = rng.uniform(0.8, 1.0)
    groove, flank = ((0.06, 0.05, 0.05), (0.95, 0.95, 0.93)) if rng.uniform() < 0.5 else ((0.97, 0.97, 0.95), (0.05, 0.05, 0.05))
    over(
        image,
        flank,
        0.5 * strength * cover(distance - 1.5 * width, 1.5) * scene.surface,
    )
    over(image, groove, strength * cover(distance - 0.8 * width, 1.2) * scene.surface)
    return image


def spot(where: Canvas, rng: Generator, scene: Scene, redraw: Redraw) -> Array:
    """A stain with a wavy outline that tints and darkens the surface."""
    y, x = _place(where, rng, scene.surface)
    radius, squeeze, angle = rng.uniform(12, 21), rng.uniform(0.65, 1.0), rng.uniform(0, np.pi)
    dy, dx = where.y - y, where.x - x
    along, across = np.cos(angle) * dx + np.sin(angle) * dy, np.cos(angle) * dy - np.sin(angle) * dx
    outline = np.hypot(along, across / squeeze) - radius + 2.5 * smooth_noise(rng, where.size, 20, 20)
    alpha = cover(outline, rng.uniform(2.0, 6.0)) * scene.surface * rng.uniform(0.8, 1.0)
    tints = ((0.42, 0.24, 0.08), (0.08, 0.07, 0.09), (0.72, 0.74, 0.18), (0.16, 0.30, 0.74), (0.80, 0.80, 0.84))
    tint = np.array(tints[int(rng.integers(len(tints)))])
    stained = scene.image * (0.25 + 0.75 * tint) * 0.45 + 0.45 * tint  # half absorbed, half covered
    image: Array = scene.image.copy()
    over(image, stained, alpha)
    return image


def contamination(where: Canvas, rng: Generator, scene: Scene, redraw: Redraw) -> Array:
    """Foreign matter lying on the surface: a cluster of crumbs, or a curled fibre, with its shadow."""
    y, x = _place(where, rng, scene.surface)
    colours = (
        (0.85, 0.20, 0.18),
        (0.90, 0.85, 0.25),
        (0.15, 0.25, 0.75),
        (0.92, 0.92, 0.95),
        (0.07, 0.06, 0.06),
        (0.30, 0.62, 0.25),
    )
    colour = np.array(colours[int(rng.integers(len(colours)))])
    if rng.uniform() < 0.6:
        distance = np.full(where.y.shape, np.inf)
        for _ in range(int(rng.integers(4, 9))):
            cy, cx = y + rng.normal(0, 8.0), x + rng.normal(0, 8.0)
            np.minimum(distance, np.hypot(where.y - cy, where.x - cx) - rng.uniform(3.0, 7.0), out=distance)
        distance = distance + 1.3 * smooth_noise(rng, where.size, 50, 50)
    else:
        heading, curl = rng.uniform(0, 2 * np.pi), rng.uniform(-4.0, 4.0)
        angles = heading + curl * np.linspace(0, 1, 16) + 0.15 * rng.standard_normal(16)
        points = np.cumsum(np.stack([np.sin(angles), np.cos(angles)], axis=1) * rng.uniform(3.2, 5.5), axis=0)
        distance = polyline(where, points + np.array([y, x]) - points[8], reach=12.0) - rng.uniform(1.6, 2.6)
    image: Array = scene.image.copy()
    shifted = np.roll(distance, (round(2.0 / where.pixel), round(2.0 / where.pixel)), axis=(0, 1))
    image *= (1.0 - 0.45 * cover(shifted, 3.0))[..., None]
    relief = 0.85 + 0.25 * smooth_noise(rng, where.size, 60, 60) - 0.06 * np.minimum(distance + 2.0, 2.0)
    lit = colour * np.clip(relief, 0.3, 1.2)[..., None]
    over(image, np.clip(lit, 0.0, 1.0), cover(distance, 1.2))
    return image


def missing_part(where: Canvas, rng: Generator, scene: Scene, redraw: Redraw) -> Array:
    """The category's own part taken away: a thread, a splinter, a tile, a corner, a bite, a component."""
    y, x = _place(where, rng, scene.surface)
    return redraw(Part(y, x, float(rng.uniform(0.9, 1.3)), int(rng.integers(1 << 16)))).image


def deformation(where: Canvas, rng: Generator, scene: Scene, redraw: Redraw) -> Array:
    """The surface pulled aside and twisted around a place that has structure to deform."""
    from scipy import ndimage

    grey = scene.image.mean(axis=2)
    sharp = np.hypot(*np.gradient(grey))
    relief = ndimage.gaussian_filter(sharp, 8.0 / where.pixel, truncate=2.5)
    y, x = _place(where, rng, np.maximum(relief - np.median(relief), 1e-9) ** 2 * ndimage.maximum_filter(scene.surface, 9))
    reach = rng.uniform(24, 36)
    dy, dx = where.y - y, where.x - x
    bump = np.exp(-(((dy**2 + dx**2) / reach**2) ** 1.5))
    angle, pull = rng.uniform(0, 2 * np.pi), rng.uniform(6, 12)
    turn = rng.choice([-1.0, 1.0]) * rng.uniform(0.8, 1.3) * bump
    cos, sin = np.cos(turn), np.sin(turn)
    from_y = y + cos * dy - sin * dx - pull * np.sin(angle) * bump
    from_x = x + sin * dy + cos * dx - pull * np.cos(angle) * bump
    at = np.stack([from_y, from_x]) / where.pixel - 0.5
    image: Array = scene.image.copy()
    touched = bump > 1e-3
    for channel in range(3):
        image[touched, channel] = ndimage.map_coordinates(scene.image[..., channel], at[:, touched], order=1, mode="nearest")
    return image


DEFECTS: dict[str, Callable[[Canvas, Generator, Scene, Redraw], Array]] = {
    "scratch": scratch,
    "spot": spot,
    "missing_part": missing_part,
    "contamination": contamination,
    "deformation": deformation,
}


def make_defect(kind: str, where: Canvas, rng: Generator, scene: Scene, redraw: Redraw) -> Defective:
    """Draw a defect of `kind` into `scene`, and find its mask."""
    for _ in range(ATTEMPTS):
        image = np.clip(DEFECTS[kind](where, rng, scene, redraw), 0.0, 1.0)
        change = np.abs(image - scene.image).max(axis=2)
        mask = _cleaned(change > VISIBLE, where)
        area = float(mask.sum()) * where.pixel**2
        if area >= SMALLEST and float(change[mask].mean()) >= FAINTEST:
            return Defective(np.where(mask[..., None], image, scene.image), mask)
    raise AssertionError(f"no visible {kind} in {ATTEMPTS} attempts: its constants do not suit this category")


def _cleaned(changed: NDArray[np.bool_], where: Canvas) -> NDArray[np.bool_]:
    """`changed` (S, S) with gaps closed, holes filled, and pieces under 10 square units dropped."""
    from scipy import ndimage

    mask = np.zeros_like(changed)
    rows, cols = np.flatnonzero(changed.any(axis=1)), np.flatnonzero(changed.any(axis=0))
    if rows.size == 0:
        return mask
    steps = max(1, round(3.0 / where.pixel))
    inside = slice(rows[0], rows[-1] + 1), slice(cols[0], cols[-1] + 1)
    patch = np.pad(changed[inside], steps + 1)  # room for the closing to grow and shrink in
    closed = ndimage.binary_fill_holes(ndimage.binary_closing(patch, iterations=steps))
    labels, _ = ndimage.label(closed, structure=np.ones((3, 3)))
    keep = np.bincount(labels.ravel()) * where.pixel**2 >= 10.0
    keep[0] = False
    mask[inside] = keep[labels][steps + 1 : -steps - 1, steps + 1 : -steps - 1]
    return mask
