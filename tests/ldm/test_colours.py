"""Colour names: of single colours, of drawings on white, and of a shipped emoji whose names tell their colours."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from ldm.data import ParquetImages
from ldm.data.colours import COLOURS, colour_shares, dominant_colours, joined_to_border, oklch, pixel_colours

DATA = Path(__file__).parents[2] / "data" / "emoji"


def paint(hexadecimal: str) -> Tensor:
    """Returns a colour ``[3, 1, 1]`` in [-1, 1]."""
    return torch.tensor(list(bytes.fromhex(hexadecimal))).float().view(3, 1, 1) / 127.5 - 1


def square(outer: str, inner: str | None = None, line: int = 2) -> Tensor:
    """Returns a square of side 20 on white, ``[1, 3, 32, 32]``, with an outline where it has an inner colour."""
    image = torch.ones(1, 3, 32, 32)
    image[:, :, 6:26, 6:26] = paint(outer)
    if inner:
        image[:, :, 6 + line : 26 - line, 6 + line : 26 - line] = paint(inner)
    return image


def test_oklch_of_known_colours() -> None:
    """White, pure red and pure blue have the values of Ottosson's reference."""
    for colour, expected in {"ffffff": (1.0, 0.0), "ff0000": (0.628, 0.2577), "0000ff": (0.452, 0.3132)}.items():
        light, chroma, _ = oklch(paint(colour)[None])
        assert (light.item(), chroma.item()) == pytest.approx(expected, abs=1e-3)
    assert oklch(paint("ff0000")[None])[2].item() == pytest.approx(29.23, abs=0.05)
    assert oklch(paint("0000ff")[None])[2].item() == pytest.approx(264.05, abs=0.05)


@pytest.mark.parametrize(
    ("name", "shades"),
    {
        "red": "ff0000 dd2e44 ea5a47 be1931 800000",
        "orange": "ffa500 f4900c ffac33 f26522",
        "yellow": "ffff00 ffcc4d fcea2b ffd700",
        "green": "008000 00ff00 77b255 5c9e31 00796b",
        "blue": "0000ff 3b88c3 92d3f5 00a6ed 000080 00ffff",
        "purple": "800080 aa8ed6 8d65c5 7d5af9",
        "pink": "ffc0cb f4abba ffa7c0 ea596e",
        "brown": "a57939 c1694f 662113 6a462f",
        "black": "000000 292f33 31373d",
        "white": "ffffff e1e8ed",
        "grey": "808080 9b9b9a d0cfce 66757f",
        "beige": "ffdbb4 f7dece e0bb95",
    }.items(),
)
def test_shades_have_the_names_that_people_give_them(name: str, shades: str) -> None:
    for shade in shades.split():
        assert COLOURS[int(pixel_colours(paint(shade)[None]))] == name, shade


def test_only_white_that_reaches_the_border_is_background() -> None:
    mask = torch.zeros(1, 5, 5, dtype=torch.bool)
    mask[0, 0, 1] = mask[0, 1, 1] = mask[0, 3, 3] = mask[0, 2, 2] = True  # the last two touch others at corners only
    expected = torch.zeros_like(mask)
    expected[0, :2, 1] = True
    assert torch.equal(joined_to_border(mask), expected)


def test_outlines_count_little_and_enclosed_white_is_a_colour() -> None:
    assert dominant_colours(square("dd2e44")) == [("red",)]
    assert dominant_colours(square("000000", "dd2e44")) == [("red",)]
    assert dominant_colours(square("dd2e44", "ffffff", line=5)) == [("red", "white")]
    assert dominant_colours(square("0000ff", "ffcc4d", line=4)) == [("blue", "yellow")]


def test_a_line_drawing_is_black_whatever_it_encloses() -> None:
    assert dominant_colours(square("000000", "ffffff")) == [("black",)]
    faded = square("808080", "ffffff", line=1)
    faded[:, :, 7:25, 7:25][:, :, :1] = -1.0  # one black line beside the grey that scaling leaves
    assert dominant_colours(faded) == [("black",)]


def test_shares_add_up_and_an_empty_picture_has_none() -> None:
    halves = square("0000ff")
    halves[:, :, 6:26, 16:26] = paint("ffcc4d")
    pictures = torch.cat([halves, torch.ones(1, 3, 32, 32)])
    shares = colour_shares(pictures)
    assert shares[0, COLOURS.index("blue")].item() == pytest.approx(0.5) == shares[0, COLOURS.index("yellow")].item()
    assert shares.sum(1).tolist() == pytest.approx([1.0, 0.0])
    assert dominant_colours(pictures)[1] == ()


def test_emoji_whose_names_tell_their_colour() -> None:
    """Hearts, circles and squares of the coloured styles have the colour that they are named after."""
    images = ParquetImages(files=str(DATA), size=64)
    colours = ("red", "orange", "yellow", "green", "blue", "purple", "brown")
    names = {f"{colour} {shape}" for colour in colours for shape in ("heart", "circle", "square")}
    rows = [i for i in range(len(images)) if images.metadata(i)["caption"] in names]
    drawn = [i for i in rows if images.metadata(i)["style"] != "openmoji-line"]
    lines = [i for i in rows if images.metadata(i)["style"] == "openmoji-line"]
    found = dominant_colours(torch.stack([images[i]["image"] for i in drawn]))
    right = [images.metadata(i)["caption"].split()[0] in names for i, names in zip(drawn, found, strict=True)]
    assert len(drawn) >= 84 and sum(right) >= 0.95 * len(drawn)
    assert set(dominant_colours(torch.stack([images[i]["image"] for i in lines]))) == {("black",)}
