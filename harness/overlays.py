"""The picture of one prediction: the image with its map over it, and a legend with the scale of the whole data set.

The image keeps its size and aspect ratio; the legend stands below it. What the crop cut off is faded to grey, with a fine frame
around what was scored. A contour may mark the region whose map values reach a threshold.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from inpbench.harness import colours

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL import Image

    from inpbench.harness.colours import Scale

INK, PAPER, RED, GREEN = (28, 30, 34), (255, 255, 255), (196, 30, 30), (24, 120, 60)
CONTOUR = (0, 255, 255)  # a colour that the scale does not have
CONTOUR_PX = 2  # its width, inside the region
LEGEND_PX = 40  # height of the legend below an overlay
LARGE_PX = 1000
LEAST_WIDTH_PX = 300  # narrower pictures are padded, so that the legend is readable


def overlay_picture(
    image: NDArray[np.uint8],
    amap: NDArray[Any],
    scale: Scale,
    score: float,
    threshold: float | None,
    contour: float | None = None,
) -> Image.Image:
    """image: (H, W, 3) RGB; amap: (H, W), NaN where nothing was scored. Returns a picture max(W, 300) x (H + 40).

    threshold: of the image score, for the verdict. contour: in map units; none draws none. The legend of a picture wider than
    LARGE_PX is enlarged with it.
    """
    from PIL import Image, ImageDraw

    height, width = amap.shape
    factor = max(1, width // LARGE_PX)
    picture = Image.new("RGB", (max(width, LEAST_WIDTH_PX), height + LEGEND_PX * factor), PAPER)
    painted = colours.overlay(image, amap, scale)
    if contour is not None:
        painted[_border(np.nan_to_num(amap, nan=-np.inf) >= contour)] = CONTOUR
    picture.paste(Image.fromarray(painted), (0, 0))
    scored = ~np.isnan(amap)
    if scored.any() and not scored.all():
        rows, columns = np.flatnonzero(scored.any(axis=1)), np.flatnonzero(scored.any(axis=0))
        ImageDraw.Draw(picture).rectangle((columns[0], rows[0], columns[-1], rows[-1]), outline=(235, 238, 242), width=factor)
    foot = Image.new("RGB", (picture.width // factor, LEGEND_PX), PAPER)
    draw = ImageDraw.Draw(foot)
    draw_legend(foot, (8, 4), 120, scale, threshold)
    anomalous = threshold is not None and score > threshold
    verdict = "" if threshold is None else "  anomalous" if anomalous else "  normal"
    ink = INK if threshold is None else RED if anomalous else GREEN
    draw.text((140, 2), f"score {score:.4g}{verdict}", fill=ink, font_size=13)
    if not scored.all():
        draw.text((140, 20), f"grey rim: not scored ({(~scored).mean():.0%})", fill=INK, font_size=11)
    picture.paste(foot.resize((foot.width * factor, foot.height * factor), Image.Resampling.BICUBIC), (0, height))
    return picture


def _border(region: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The pixels of a region (H, W) that lie within CONTOUR_PX steps of its outside; beyond the image counts as inside."""
    core = region
    for _ in range(CONTOUR_PX):
        padded = np.pad(core, 1, mode="edge")
        core = core & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return region & ~core


def draw_legend(picture: Image.Image, at: tuple[int, int], width: int, scale: Scale, threshold: float | None = None) -> None:
    """A colour bar with its two ends in map units, and a mark at the threshold of the image score."""
    from PIL import Image, ImageDraw

    x, y = at
    bar = np.repeat(np.linspace(scale.low, scale.high, width)[None], 12, axis=0)
    picture.paste(Image.fromarray(colours.paint(bar, scale)), (x, y))
    draw = ImageDraw.Draw(picture)
    draw.text((x, y + 15), f"{scale.low:.3g}", fill=INK, font_size=11)
    high = f"{scale.high:.3g}"
    draw.text((x + width - draw.textlength(high, font_size=11), y + 15), high, fill=INK, font_size=11)
    if threshold is not None and scale.low <= threshold <= scale.high:
        mark = x + round((width - 1) * (threshold - scale.low) / (scale.high - scale.low))
        draw.line((mark, y - 3, mark, y + 14), fill=(30, 160, 90), width=2)
