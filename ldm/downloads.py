"""Says what a file is that was downloaded as a checkpoint and is none, by its first bytes and its list of files."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

from ldm.files import file_hash

PAGE = (b"<!doctype", b"<html", b"<?xml", b"<head", b"<body")
PACKED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"7z\xbc\xaf": "7z", b"Rar!": "RAR"}
ZIP = b"PK\x03\x04"
LFS = b"version https://git-lfs"
PICKLED = "data.pkl"  # what torch's zip archives hold beside the numbers
WEIGHTS = (".ckpt", ".safetensors", ".pt", ".pth", ".bin")


def instead_of_weights(path: Path) -> str | None:
    """Returns what a file is in place of a complete checkpoint, with a remedy; None if it may be one.

    Only the first bytes and, of a zip archive, the list of its files are read.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(64)
    if not size:
        return "it is empty; download it again"
    if head.lstrip(b"\xef\xbb\xbf \r\n\t").lower().startswith(PAGE):
        return "it is a web page, as servers send for a wrong link; open the link in a browser, then download it again"
    if head.startswith(LFS):
        return "it is a pointer of Git LFS; fetch the file itself with git lfs pull"
    for magic, name in PACKED.items():
        if head.startswith(magic):
            return f"it is a {name} archive; unpack it, and give the file in it"
    return _other_zip(path, size) if head.startswith(ZIP) else None


def is_archive(path: Path) -> bool:
    """Returns whether a file is a complete zip archive, as torch writes checkpoints since version 1.6."""
    with path.open("rb") as file:
        if file.read(len(ZIP)) != ZIP:
            return False
    return _has_contents(path)


def _has_contents(path: Path) -> bool:
    """Returns whether a file ends with the list of contents of a zip archive, as a complete one does."""
    try:
        return zipfile.is_zipfile(path)
    except zipfile.BadZipFile:  # the list begins in another file, if one believes it
        return False


def check_bytes(path: Path) -> str:
    """Reads a whole file, compares it with the checksums that a zip archive has inside, and returns its SHA-256.

    Raises:
        ValueError: a checksum differs.
    """
    if is_archive(path):
        try:
            with zipfile.ZipFile(path) as archive:
                damaged = archive.testzip()
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
            raise ValueError(f"{path} is damaged: its archive cannot be read ({error}); download it again") from error
        if damaged is not None:
            raise ValueError(f"{path} is damaged: the checksum of {damaged} in it differs; download it again")
    return file_hash(path)


def _other_zip(path: Path, size: int) -> str | None:
    """Returns what a zip archive is in place of one of torch; None if it is one."""
    if not _has_contents(path):
        return (
            f"it ends after {size:,} bytes, before its list of contents; continue the download (wget -c), or repeat it"
        )
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except zipfile.BadZipFile:
        return "its list of contents is damaged; download it again"
    if any(name.endswith(f"/{PICKLED}") for name in names):
        return None
    if inside := [name for name in names if name.endswith(WEIGHTS)]:
        return f"it is a zip archive with {inside[0]}; unpack it, and give that file"
    if names and all(name.endswith(".npy") for name in names):
        return "it holds arrays of numpy, as a part of a database does; see scripts/build_database.py import"
    return f"it is a zip archive of {', '.join(names[:3]) or 'nothing'}{' ...' if len(names) > 3 else ''}; give another"
