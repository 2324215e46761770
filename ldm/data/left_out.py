"""What of a folder or of a picture is not read. It is said, so that nothing is skipped without a word."""

from __future__ import annotations

import io
import logging
import os
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path

from PIL import Image

LOG = logging.getLogger(__name__)
# Endings of pictures that Pillow does not read without plug-ins, or that are no pictures of pixels.
_OTHER_PICTURES = (".heic", ".heif", ".avif", ".jxl", ".jp2", ".jfif", ".dng", ".raw", ".psd", ".exr", ".tga", ".svg")
# Beginnings of formats that can hold several pages: GIF, TIFF, WebP, and PNG with an animation.
_WEBP_ANIMATED = 0x02  # a flag of the extended format
_PAGED = (b"GIF8", b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+", b"RIFF")


def pictures_below(root: Path, suffixes: Collection[str]) -> list[str]:
    """Returns the paths of the pictures below a folder, relative to it, sorted. Links are followed.

    What is left out is logged: links that lead nowhere or back to a folder above them, and pictures in other formats.

    Args:
        root: the folder.
        suffixes: the endings of pictures that are read, in lower case.

    Raises:
        OSError: a folder cannot be read.
    """
    links: list[str] = []
    lost: list[str] = []
    others: Counter[str] = Counter()
    found = []
    for entry in _files(root, (root.resolve(),), links, lost):
        suffix = Path(entry.name).suffix.lower()
        if suffix in suffixes:
            found.append(Path(entry.path).relative_to(root).as_posix())
        elif suffix in _OTHER_PICTURES:
            others[suffix] += 1
    if links:
        LOG.info("%s: pictures below %d links to folders are read, too, such as %s", root, len(links), min(links))
    if lost:
        LOG.warning(
            "%s: %d links lead nowhere, or back to a folder above them, such as %s; they are left out",
            root,
            len(lost),
            min(lost),
        )
    if others:
        words = ", ".join(f"{number} {suffix}" for suffix, number in sorted(others.items()))
        LOG.warning("%s: files with other endings are left out: %s; convert them to PNG or JPEG", root, words)
    return sorted(found)


def _files(folder: Path, above: tuple[Path, ...], links: list[str], lost: list[str]) -> Iterator[os.DirEntry[str]]:
    """Yields the files below a folder; links to folders, and links that cannot be followed, are added to the lists."""
    with os.scandir(folder) as entries:
        for entry in entries:
            path, is_link = Path(entry.path), entry.is_symlink()
            if path.is_dir() if is_link else entry.is_dir():  # a link to itself raises an error in the second one
                real = path.resolve() if is_link else above[-1] / entry.name
                if is_link:
                    (lost if real in above else links).append(entry.path)
                if real not in above:
                    yield from _files(path, (*above, real), links, lost)
            elif path.is_file() if is_link else entry.is_file():
                yield entry
            elif is_link:
                lost.append(entry.path)


def pages_left_out(data: bytes) -> str:
    """Returns words on the pages of an image file that are not read; empty for a picture of one page.

    Args:
        data: content of an image file, of which only the beginning is decoded.
    """
    if not data.startswith(_PAGED) and b"acTL" not in data[:128]:
        return ""
    if data.startswith(b"RIFF") and not (data[12:16] == b"VP8X" and data[20] & _WEBP_ANIMATED):
        return ""
    try:
        with Image.open(io.BytesIO(data)) as opened:
            pages = getattr(opened, "n_frames", 1)
    except (OSError, SyntaxError, ValueError, EOFError, TypeError):  # reading the picture itself says what is wrong
        return ""
    return f"it has {pages} pages, of which only the first is read" if pages > 1 else ""


def say_pages(data: bytes, name: str, said: set[str]) -> None:
    """Logs that pages of a picture are not read, unless ``said`` has it already; then it has.

    Args:
        data: content of the image file.
        name: the name of the picture.
        said: what was said already.
    """
    if "pages" not in said and (words := pages_left_out(data)):
        said.add("pages")
        LOG.warning("%s: %s; further pictures of this kind are not named", name, words)
