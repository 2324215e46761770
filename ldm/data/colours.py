"""Names the dominant colours of drawings on white, from their pixels alone.

Every pixel is named by its lightness, chroma and hue in OKLCh (Ottosson 2020, "A perceptual color space for image
processing"). White that is joined to the border is the background and does not count. A pixel with a neighbour of
another name lies in a thin line or at an edge and counts a tenth. So a black outline makes black a dominant colour only
where the drawing has nothing but lines.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white", "grey", "beige")
BLACK, WHITE, GREY = (COLOURS.index(name) for name in ("black", "white", "grey"))
BACKGROUND = -1
PAPER = 0.9  # the darkest channel of the white around a drawing is above this, in [-1, 1]
# Where a saturated colour of a hue (in degrees) begins to be called so.
HUES = {0: "pink", 16: "red", 40: "orange", 79: "yellow", 118: "green", 193: "blue", 282: "purple", 335: "pink"}
EDGE = 0.1  # weight of a pixel in a line or at an edge
LINES = 0.16  # a drawing with fewer filled pixels than this share of all its pixels is a line drawing
BRIGHT, DULL = 0.15, 0.25  # the share that makes a colour dominant, of colours and of black, white and grey
MOST = 3


def oklch(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns lightness in [0, 1], chroma and hue in degrees, each ``[B, H, W]``, of sRGB images.

    Args:
        images: ``[B, 3, H, W]`` in [-1, 1].
    """
    value = (images.float() / 2 + 0.5).clamp(0, 1)
    linear = torch.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    cones = torch.tensor(
        [[0.4122215, 0.5363325, 0.0514460], [0.2119035, 0.6806995, 0.1073970], [0.0883025, 0.2817188, 0.6299787]]
    )
    axes = torch.tensor(
        [[0.2104543, 0.7936178, -0.0040720], [1.9779985, -2.4285922, 0.4505937], [0.0259040, 0.7827718, -0.8086758]]
    )
    response = torch.einsum("ij,bjhw->bihw", cones.to(linear), linear).clamp_min(0) ** (1 / 3)
    lightness, a, b = torch.einsum("ij,bjhw->bihw", axes.to(linear), response).unbind(1)
    return lightness, torch.hypot(a, b), torch.rad2deg(torch.atan2(b, a)) % 360


def pixel_colours(images: Tensor) -> Tensor:
    """Returns the number in ``COLOURS`` of every pixel, ``[B, H, W] int64``.

    Args:
        images: ``[B, 3, H, W]`` in [-1, 1].
    """
    light, chroma, hue = oklch(images)
    names = torch.tensor([COLOURS.index(word) for word in HUES.values()], device=hue.device)
    colour = names[torch.bucketize(hue, torch.tensor(list(HUES), device=hue.device).float(), right=True) - 1]

    def name(word: str, where: Tensor) -> None:
        colour[where] = COLOURS.index(word)

    warm = (hue >= 30) & (hue < 105)
    name("pink", (hue < 30) & (light > 0.7))
    name("red", (hue < 16) & (light < 0.62) & (chroma > 0.15))
    name("red", (hue >= 350) & (light < 0.55) & (chroma > 0.12))
    name("brown", warm & (light < 0.66) & (chroma < 0.135))
    name("brown", (hue < 44) & (light < 0.5) & (chroma < 0.12))
    name("beige", warm & (light >= 0.66) & (chroma < 0.095))
    name("beige", (hue < 30) & (light >= 0.85) & (chroma < 0.05))
    grey = chroma < 0.035
    name("grey", grey)
    name("black", grey & (light < 0.42))
    name("black", (light < 0.3) & (chroma < 0.07))
    name("white", (light > 0.9) & (chroma < 0.025))
    return colour


def joined_to_border(mask: Tensor) -> Tensor:
    """Returns the part of a mask ``[B, H, W]`` that is joined to the border by steps to the four neighbours."""
    reached = F.pad(torch.zeros_like(mask[:, 1:-1, 1:-1]), (1, 1, 1, 1), value=True) & mask
    while True:
        grown = reached.clone()
        grown[:, 1:] |= reached[:, :-1]
        grown[:, :-1] |= reached[:, 1:]
        grown[:, :, 1:] |= reached[:, :, :-1]
        grown[:, :, :-1] |= reached[:, :, 1:]
        grown &= mask
        if torch.equal(grown, reached):
            return reached
        reached = grown


def filled(colour: Tensor) -> Tensor:
    """Returns which pixels have four neighbours of their own colour, ``[B, H, W]`` bool; the border is continued."""
    around = F.pad(colour[:, None].float(), (1, 1, 1, 1), mode="replicate")[:, 0]
    same = torch.ones_like(colour, dtype=torch.bool)
    for part in (around[:, 2:, 1:-1], around[:, :-2, 1:-1], around[:, 1:-1, 2:], around[:, 1:-1, :-2]):
        same &= part == colour
    return same


def count(colour: Tensor, where: Tensor) -> Tensor:
    """Returns how many pixels ``where`` is true have each of ``COLOURS``, by picture, ``[B, 12] float32``."""
    kinds = len(COLOURS) + 1
    numbers = torch.arange(len(colour), device=colour.device)[:, None, None] * kinds + colour + 1
    return torch.bincount(numbers[where], minlength=len(colour) * kinds).view(-1, kinds)[:, 1:].float()


def colour_shares(images: Tensor) -> Tensor:
    """Returns the share of each of ``COLOURS`` in drawings, ``[B, 12] float32``; zeros for an empty picture.

    Args:
        images: ``[B, 3, H, W]`` in [-1, 1].
    """
    colour = pixel_colours(images)
    colour[joined_to_border(images.amin(1) > PAPER)] = BACKGROUND
    areas, everything = count(colour, filled(colour)), count(colour, colour != BACKGROUND)
    weights = (1 - EDGE) * areas + EDGE * everything
    # The white within a line drawing is paper, and the grey beside its lines is the fading of their black.
    lines = areas.sum(1) - areas[:, WHITE] < LINES * everything.sum(1)
    weights[lines, WHITE] = 0
    faded = lines & (areas[:, GREY] <= areas[:, BLACK]) & (weights[:, BLACK] > 0)
    weights[faded, BLACK] += weights[faded, GREY]
    weights[faded, GREY] = 0
    return weights / weights.sum(1, keepdim=True).clamp_min(1e-6)


def dominant_colours(images: Tensor) -> list[tuple[str, ...]]:
    """Returns the names of the one to three dominant colours of each drawing, the largest first; none of an empty one.

    Args:
        images: ``[B, 3, H, W]`` in [-1, 1].
    """
    found = []
    for shares in colour_shares(images).tolist():
        order = sorted(range(len(COLOURS)), key=lambda k: -shares[k])[:MOST]
        names = [k for k in order if shares[k] >= (DULL if k in (BLACK, WHITE, GREY) else BRIGHT)] or order[:1]
        found.append(tuple(COLOURS[k] for k in names if shares[k] > 0))
    return found
