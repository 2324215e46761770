"""Channels and bit depth: grey pictures, 16 bits without rounding, and pictures whose range of values is stated."""

from __future__ import annotations

import io
import struct
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from ldm.data import HashSplit, ImageFolder, ParquetImages, WebDatasetImages
from ldm.data.decode import decode_image, open_picture


def encoded(values: np.ndarray, form: str = "TIFF") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, form)
    return buffer.getvalue()


def signed_16(values: np.ndarray) -> bytes:
    """A TIFF file of signed 16-bit integers, which Pillow reads and does not write."""
    height, width = values.shape
    entries = [
        (256, 3, width), (257, 3, height), (258, 3, 16), (259, 3, 1), (262, 3, 1), (273, 4, 134), (277, 3, 1),
        (278, 3, height), (279, 4, 2 * values.size), (339, 3, 2),
    ]  # fmt: skip
    directory = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in entries)
    head = b"II*\0" + struct.pack("<IH", 8, len(entries)) + directory + struct.pack("<I", 0)
    return head + values.astype("<i2").tobytes()


DEEP = np.random.default_rng(0).integers(0, 65536, (24, 24)).astype(np.uint16)
SCALED = torch.from_numpy(2 * DEEP.astype(np.float64) / 65535 - 1).float()[None]
RAMP = np.linspace(-1000.0, 3000.0, 64).reshape(8, 8)


@pytest.mark.parametrize("form", ["PNG", "TIFF", "JPEG2000", "PPM"])
def test_16_bits_are_not_rounded_to_8(form: str) -> None:
    image = decode_image(encoded(DEEP, form), 24, channels=1)
    assert image.shape == (1, 24, 24) and image.dtype == torch.float32
    torch.testing.assert_close(image, SCALED, atol=1e-6, rtol=0)
    assert len(image.unique()) > 256
    assert torch.equal(decode_image(encoded(DEEP, form), 24), image.expand(3, -1, -1))
    small, steps = decode_image(encoded(DEEP, form), 8, channels=1), torch.arange(256) / 127.5 - 1
    assert small.shape == (1, 8, 8) and float((small.flatten()[:, None] - steps).abs().amin(1).max()) > 1e-3
    assert np.array_equal(np.asarray(open_picture(encoded(DEEP, form)))[..., 0], (DEEP / 257.0).round())


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_a_deep_picture_that_is_open_is_read_as_its_file(form: str) -> None:
    data = encoded(DEEP, form)
    for opened in (Image.open(io.BytesIO(data)), Image.fromarray(DEEP)):
        assert np.array_equal(np.asarray(open_picture(opened)), np.asarray(open_picture(data)))
        assert "value_range" not in opened.info


def test_grey_is_the_brightness_of_a_colour_and_the_very_value_of_a_grey() -> None:
    grey = np.arange(64, dtype=np.uint8).reshape(8, 8)
    image = decode_image(encoded(grey, "PNG"), 8, channels=1)
    assert torch.equal(((image + 1) * 127.5).round().to(torch.uint8)[0], torch.from_numpy(grey))
    colour = np.zeros((8, 8, 3), dtype=np.uint8) + np.uint8([255, 100, 0])
    expected = (0.299 * 255 + 0.587 * 100) / 127.5 - 1
    torch.testing.assert_close(
        decode_image(encoded(colour, "PNG"), 8, 1), torch.full((1, 8, 8), expected), atol=0.005, rtol=0
    )
    clear = np.zeros((8, 8, 4), dtype=np.uint8)
    assert torch.equal(decode_image(encoded(clear, "PNG"), 8, 1), torch.ones(1, 8, 8))


def test_white_may_be_zero() -> None:
    entry = struct.pack("<HHIHH", 262, 3, 1, 1, 0)
    assert entry in encoded(DEEP)
    turned = encoded(DEEP).replace(entry, struct.pack("<HHIHH", 262, 3, 1, 0, 0))
    torch.testing.assert_close(decode_image(turned, 24, 1), -SCALED, atol=1e-6, rtol=0)


KINDS = {
    "float": encoded(RAMP.astype(np.float32)),
    "signed 32": encoded(RAMP.round().astype(np.int32)),
    "signed 16": signed_16(RAMP.round()),
}


@pytest.mark.parametrize("kind", KINDS)
def test_other_ranges_are_stated_or_an_error_that_names_the_pictures_own(kind: str, tmp_path: Path) -> None:
    (tmp_path / "a.tif").write_bytes(KINDS[kind])
    for attempt in (lambda: ImageFolder(str(tmp_path), 8)[0], lambda: open_picture(KINDS[kind])):
        with pytest.raises(
            ValueError, match=r"values from -1000 to 3000, .*value_range to .* \[-1000, 3000\]"
        ) as caught:
            attempt()
    with pytest.raises(ValueError, match=r"a\.tif is a picture of") as caught:
        ImageFolder(str(tmp_path), 8)[0]
    assert "\n" not in str(caught.value)
    image = ImageFolder(str(tmp_path), 8, channels=1, value_range=[-1000, 3000])[0]["image"]
    torch.testing.assert_close(image[0], torch.from_numpy((RAMP + 1000) / 2000 - 1).float(), atol=3e-4, rtol=0)
    clamped = ImageFolder(str(tmp_path), 8, channels=1, value_range=[0, 100])[0]["image"]
    assert clamped.min() == -1 and clamped.max() == 1 and float((clamped == 1).float().mean()) > 0.7


def test_a_range_says_how_many_bits_are_used_and_values_are_finite() -> None:
    twelve = (DEEP // 16).astype(np.uint16)
    image = decode_image(encoded(twelve, "PNG"), 24, 1, value_range=[0, 4095])
    torch.testing.assert_close(image[0], torch.from_numpy(2 * twelve / 4095 - 1).float(), atol=1e-6, rtol=0)
    values = np.zeros((4, 4), dtype=np.float32)
    values[1, 2] = np.nan
    with pytest.raises(ValueError, match="not finite"):
        decode_image(encoded(values), 4, 1, value_range=[0, 1])


def test_every_data_set_takes_channels_and_range(tmp_path: Path) -> None:
    data, options = encoded(RAMP.astype(np.float32)), {"channels": 1, "value_range": [-1000, 3000]}
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/a.tif").write_bytes(data)
    pq.write_table(pa.table({"image": [data]}), tmp_path / "x.parquet")
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        info = tarfile.TarInfo("a.tif")
        info.size = len(data)
        archive.addfile(info, io.BytesIO(data))
    config: dict[str, Any] = {"target": "ldm.data.ImageFolder", "params": {"root": str(tmp_path / "folder"), "size": 8}}
    config["params"] |= options
    data_sets = [
        ImageFolder(str(tmp_path / "folder"), 8, **options),
        ParquetImages(str(tmp_path / "x.parquet"), 8, **options),
        WebDatasetImages(str(tmp_path / "x.tar"), 8, **options),
        *(HashSplit(config, held_out) for held_out in (False, True)),
    ]
    images = [each[0]["image"] for each in data_sets if len(each)]
    assert len(images) == 4 and all(torch.equal(image, images[0]) for image in images) and images[0].shape == (1, 8, 8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": 2}, "channels=2"),
        ({"value_range": [1, 1]}, r"value_range=\[1, 1\]"),
        ({"value_range": [0]}, r"value_range=\[0\]"),
        ({"value_range": [0, float("nan")]}, "value_range"),
        ({"size": [8]}, r"size=\[8\], expected a side"),
        ({"size": [8, 0]}, r"size=\[8, 0\]"),
        ({"size": "8x8"}, "size='8x8'"),
        ({"size": True}, "size=True"),
    ],
)
def test_wrong_options_are_named(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    (tmp_path / "a.png").write_bytes(encoded(DEEP, "PNG"))
    with pytest.raises(ValueError, match=message):
        ImageFolder(str(tmp_path), **{"size": 8, **options})
