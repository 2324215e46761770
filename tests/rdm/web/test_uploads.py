"""What a user may send: real pictures of bounded size, from the folder of uploads."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rdm.web.limits import Limits
from rdm.web.uploads import decoded, opened

LIMITS = Limits(upload_bytes=20_000, pixels=5000)


def encoded(image: Image.Image, form: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=form)
    return buffer.getvalue()


def bomb(side: int) -> bytes:
    """A valid PNG file of a few kilobytes whose pixels would fill ``3 * side ** 2`` bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes((3 * side + 1) * 64), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
def test_a_picture_is_read_at_its_own_size(form: str, tmp_path: Path) -> None:
    (tmp_path / "picture").write_bytes(encoded(Image.new("RGB", (40, 30), "white"), form))
    picture = opened(tmp_path / "picture", LIMITS, tmp_path)
    assert picture.size == (40, 30) and picture.mode == "RGB"
    assert np.asarray(picture).min() > 250


def test_a_picture_with_too_many_pixels_is_refused_before_it_is_decoded() -> None:
    with pytest.raises(ValueError, match="64000000 pixels.*at most 5000"):
        decoded(bomb(8000), LIMITS)
    with pytest.raises(ValueError, match="too many pixels.*at most 5000"):
        decoded(bomb(60_000), LIMITS)  # beyond what Pillow itself opens


@pytest.mark.parametrize("data", [b"", b"GIF89a", b"%!PS-Adobe-3.0 EPSF-3.0", b"<svg/>", b"\x80\x04."])
def test_what_is_no_picture_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="no picture"):
        decoded(data, LIMITS)


def test_a_truncated_picture_is_refused() -> None:
    rng = np.random.default_rng(0)
    data = encoded(Image.fromarray(rng.integers(0, 255, (40, 40, 3), dtype=np.uint8)))
    with pytest.raises(ValueError, match="truncated"):
        decoded(data[: len(data) // 2], LIMITS)


def test_too_many_bytes_are_refused(tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(bytes(20_001))
    with pytest.raises(ValueError, match="20001 bytes in an upload, expected at most 20000"):
        opened(tmp_path / "large", LIMITS, tmp_path)


def test_a_file_outside_the_folder_is_refused(tmp_path: Path) -> None:
    folder, outside = tmp_path / "uploads", tmp_path / "outside.png"
    folder.mkdir()
    outside.write_bytes(encoded(Image.new("RGB", (8, 8))))
    (folder / "link.png").symlink_to(outside)
    for path in (outside, folder / ".." / "outside.png", folder / "link.png", folder / "none.png", folder):
        with pytest.raises(ValueError, match="no upload of this page"):
            opened(path, LIMITS, folder)
