"""Bad pictures: cut, huge, deep, of other colours, animated, turned, with a wrong name."""

from __future__ import annotations

import io
import random
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.fuzz.attempt import Attempt, command, mutated
from benchmarks.fuzz.system import TREE, copied
from ldm.data import ImageFolder
from ldm.data.decode import decode_image
from rdm.sampling.given import open_given

FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "TGA", "ICO", "PCX", "DDS", "SGI", "JPEG2000", "AVIF")


EXIF = b"Exif\0\0II*\0\x08\0\0\0\1\0\x12\1\3\0\1\0\0\0\6\0\0\0\0\0\0\0"


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, bits: int, colour: int, data: bytes, *further: bytes) -> bytes:
    """Returns a PNG file, whose header need not agree with its data."""
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    parts = [_chunk(b"IHDR", header), *further, _chunk(b"IDAT", zlib.compress(data, 9)), _chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    """Returns the file of a picture."""
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def _noise(mode: str, side: int = 24) -> Image.Image:
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8)).convert(mode)


def _exif(tag: int, value: object) -> Image.Exif:
    exif = Image.Exif()
    exif[tag] = value
    return exif


def _whole() -> dict[str, Callable[[], bytes]]:
    """Returns the pictures that are made by hand; most of them are readable."""
    grey16 = (np.arange(24 * 24, dtype=np.uint16) * 100).reshape(24, 24)
    frames = [_noise("P"), _noise("P").rotate(90)]
    svg = b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>'
    return {
        "empty": lambda: b"",
        "a text": lambda: b"no picture",
        "a bomb of 30000 x 30000": lambda: png(30000, 30000, 1, 0, bytes(3751 * 30000)),
        "a header of 2^31": lambda: png(2**31 - 1, 2**31 - 1, 8, 2, b""),
        "no width": lambda: png(0, 8, 8, 2, b""),
        "20000 x 20": lambda: png(20000, 20, 8, 0, bytes(20001 * 20)),
        "1 x 1": lambda: png(1, 1, 8, 2, bytes(4)),
        "1 x 5000": lambda: png(1, 5000, 8, 0, bytes(2 * 5000)),
        "one bit": lambda: png(8, 8, 1, 0, bytes(2 * 8)),
        "16 bits of colour": lambda: png(8, 8, 16, 2, bytes(49 * 8)),
        "3 bits": lambda: png(8, 8, 3, 2, bytes(25 * 8)),
        "an unknown colour": lambda: png(8, 8, 8, 5, bytes(25 * 8)),
        "a palette without colours": lambda: png(8, 8, 8, 3, bytes(9 * 8)),
        "a palette too short": lambda: png(8, 8, 8, 3, bytes([0, *[255] * 8]) * 8, _chunk(b"PLTE", bytes(6))),
        "a bomb of text": lambda: png(
            8, 8, 8, 2, bytes(25 * 8), _chunk(b"zTXt", b"x\0\0" + zlib.compress(bytes(10**8)))
        ),
        "a broken profile": lambda: png(8, 8, 8, 2, bytes(25 * 8), _chunk(b"iCCP", b"x\0\0" + zlib.compress(b"bad"))),
        "a profile that is cut": lambda: png(8, 8, 8, 2, bytes(25 * 8), _chunk(b"iCCP", b"x\0\0abc")),
        "too little data": lambda: png(100, 100, 8, 2, bytes(25 * 8)),
        "a filter that is not there": lambda: png(8, 8, 8, 2, bytes([9, *[0] * 24]) * 8),
        "16 bits of grey": lambda: encoded(Image.fromarray(grey16), "PNG"),
        "signed 32 bits": lambda: encoded(Image.fromarray(grey16.astype(np.int32) - 500), "TIFF"),
        "floating point": lambda: encoded(Image.fromarray(grey16.astype(np.float32)), "TIFF"),
        "not a number": lambda: encoded(Image.fromarray(np.full((8, 8), np.nan, np.float32)), "TIFF"),
        "infinite": lambda: encoded(Image.fromarray(np.full((8, 8), np.inf, np.float32)), "TIFF"),
        "CMYK": lambda: encoded(_noise("CMYK"), "JPEG"),
        "CMYK as TIFF": lambda: encoded(_noise("CMYK"), "TIFF"),
        "LAB": lambda: encoded(Image.new("LAB", (8, 8)), "TIFF"),
        "YCbCr": lambda: encoded(_noise("YCbCr"), "JPEG"),
        "grey with alpha": lambda: encoded(_noise("LA"), "PNG"),
        "a palette with transparency": lambda: encoded(_noise("P"), "PNG", transparency=3),
        "an animation": lambda: encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]),
        "an animated WebP": lambda: encoded(_noise("RGB"), "WEBP", save_all=True, append_images=[_noise("RGB")]),
        "a broken frame": lambda: encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])[:-300],
        "turned": lambda: encoded(_noise("RGB"), "JPEG", exif=_exif(0x0112, 6)),
        "turned by 99": lambda: encoded(_noise("RGB"), "JPEG", exif=_exif(0x0112, 99)),
        "turned by -1": lambda: encoded(_noise("RGB"), "JPEG", exif=EXIF.replace(b"\1\0\0\0\6\0", b"\1\0\0\0\xff\xff")),
        "EXIF that is cut": lambda: encoded(_noise("RGB"), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff"),
        "PostScript": lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n(executed) (w) file\n",
        "SVG that names a file": lambda: svg,
        "a Windows metafile": lambda: b"\xd7\xcd\xc6\x9a" + bytes(80),
        "an ICNS of nothing": lambda: b"icns\0\0\0\x08",
        "FITS": lambda: b"SIMPLE  =                    T" + b" " * 50 + b"END" + b" " * 2797,
        "an MPO of nothing": lambda: encoded(_noise("RGB"), "JPEG")[:40],
    }


def attempt(rng: random.Random, number: int) -> Attempt:
    """Returns an attempt to read a bad picture."""
    whole = _whole()
    if number < len(whole):
        what, make = list(whole.items())[number]
        data = make()
    else:
        form = rng.choice(FORMATS)
        modes = ("RGB",) if form in ("JPEG2000", "AVIF", "PCX", "PPM") else ("RGB", "L", "RGB")
        data, what = mutated(encoded(_noise(rng.choice(modes)), form), rng)
        what = f"{form}, {what}"
        for _ in range(rng.randrange(3)):
            data, further = mutated(data, rng)
            what += f", {further}"
    suffix = rng.choice((".png", ".jpg", ".gif", ".tif"))
    return _read(what, data, suffix, rng)


def _read(what: str, data: bytes, suffix: str, rng: random.Random) -> Attempt:
    name = f"bad{suffix}"
    way = rng.randrange(6)
    if way < 2:
        return Attempt(
            f"decode_image: {what}", lambda: decode_image(data, rng.choice((8, [8, 16])), rng.choice((1, 3)))
        )
    if way < 4:
        Path(name).write_bytes(data)
        return Attempt(f"open_given: {what}", lambda: open_given(name), (name,))
    if way == 4:
        Path("folder").mkdir()
        Path("folder", name).write_bytes(data)
        return Attempt(f"ImageFolder: {what}", lambda: ImageFolder("folder", 8, max_broken=0)[0], (name,))
    copied()
    Path(name).write_bytes(data)
    words = ("--steps", "1", "--n_samples", "1", "--outdir", "out", "--ckpt", f"{TREE}/model")
    script = rng.choice((("scripts/sample.py",), ("scripts/edit.py", "--strength", "0.5", "--size", "16")))
    return command(f"{script[0]}: {what}", *script, "--image", name, *words, named=(name,))
