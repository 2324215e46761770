"""Signed records: a signature over the record of an image and its pixels, and what it proves.

The signature is an HMAC-SHA256 (RFC 2104) over the SHA-256 of the text of the record and that of the pixels. Whoever
has the key can check a signature and make one, so the key is kept secret. The signature lies in the PNG file, in a text
of its own beside the record. It can be taken away; then the image is not signed.
"""

from __future__ import annotations

import hashlib
import hmac
import io
import json
import logging
import os
import secrets
import struct
from collections import Counter
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from PIL import Image

LOG = logging.getLogger(__name__)
KEYWORD = "rdm"  # keyword of the text with the record in a PNG file
SIGNATURE = "rdm-signature"  # that of the text with the signature
ALGORITHM = "HMAC-SHA256"
_FORM = "rdm-key hmac-sha256"  # what a key file begins with, before 64 hexadecimal digits
_BYTES = 32
_TEXTS = ("tEXt", "zTXt", "iTXt")
_NEUTRAL = ("IHDR", "IDAT", "IEND", "tIME", *_TEXTS)  # chunks of a PNG file that do not change how its pixels look
_START = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class Key:
    """A secret key.

    Attributes:
        secret: its 32 bytes.
    """

    secret: bytes = field(repr=False)

    @property
    def name(self) -> str:
        """16 hexadecimal digits that tell keys apart, and do not reveal the secret."""
        return hmac.new(self.secret, b"name of the key", hashlib.sha256).hexdigest()[:16]

    def code(self, record_sha256: str, pixels_sha256: str) -> str:
        """Returns the HMAC-SHA256 of two hashes, as hexadecimal digits."""
        message = f"record of an image\n{record_sha256}\n{pixels_sha256}"
        return hmac.new(self.secret, message.encode(), hashlib.sha256).hexdigest()

    def signature(self, record: str, picture: Image.Image) -> str:
        """Returns the text of the signature of an image.

        Args:
            record: the text of its record, as it stands in the file.
            picture: its pixels.
        """
        hashes = {"record_sha256": _text_hash(record), "pixels_sha256": pixels_hash(picture)}
        return json.dumps({"algorithm": ALGORITHM, "key": self.name, **hashes, "code": self.code(*hashes.values())})


class Verdict(Enum):
    """What an image file proves; each value is the verdict in words."""

    SIGNED = "signed by this key, pixels and record unchanged"
    PIXELS = "pixels changed"
    RECORD = "record changed"
    BOTH = "pixels and record changed"
    FORGED = "signature changed or forged"
    OTHER_KEY = "signed by another key"
    NOT_SIGNED = "not signed"
    UNREADABLE = "cannot be read as a picture"


@dataclass(frozen=True)
class Verified:
    """The verdict about an image file.

    Attributes:
        verdict: the verdict.
        note: what it is based on; "" if the verdict says all.
    """

    verdict: Verdict
    note: str = ""

    @property
    def is_good(self) -> bool:
        """Whether the image is signed by the key and unchanged."""
        return self.verdict is Verdict.SIGNED

    def words(self) -> str:
        """Returns the verdict in words."""
        return f"{self.verdict.value} ({self.note})" if self.note else self.verdict.value


def new_key(file: str | Path) -> Key:
    """Makes a random key and writes it to a new file that only its owner can read.

    Raises:
        FileExistsError: the file exists.
    """
    path, key = Path(file), Key(secrets.token_bytes(_BYTES))
    path.parent.mkdir(parents=True, exist_ok=True)
    number = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(number, "w", encoding="ascii") as stream:
            stream.write(f"{_FORM} {key.secret.hex()}\n")
            stream.flush()
            os.fsync(stream.fileno())
    except BaseException:
        path.unlink()
        raise
    return key


def read_key(file: str | Path) -> Key:
    """Returns the key in a file; a warning says if other users of the machine can read it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is no key file. The message does not show its content.
    """
    path = Path(file)
    if not path.is_file():
        raise FileNotFoundError(f"no key file at {path}; make one with scripts/verify.py --new-key {path}")
    with path.open("rb") as stream:
        text = stream.read(1024).decode("ascii", "replace").strip()
    form, _, digits = text.rpartition(" ")
    if form != _FORM or len(digits) != 2 * _BYTES or set(digits) - set("0123456789abcdef"):
        raise ValueError(f"{path} is no key file; expected one that scripts/verify.py --new-key made")
    if path.stat().st_mode & 0o077:
        LOG.warning("other users of this machine may read the key in %s; chmod 600 %s", path, path)
    return Key(bytes.fromhex(digits))


def pixels_hash(picture: Image.Image) -> str:
    """Returns the SHA-256 of the pixels of a picture with their mode and size; it does not depend on compression."""
    head = f"{picture.mode} {picture.width}x{picture.height}\n"
    return hashlib.sha256(head.encode() + picture.tobytes()).hexdigest()


def verified(data: bytes, key: Key) -> Verified:
    """Returns the verdict about an image.

    Args:
        data: the content of its file.
        key: the key that it should be signed by.
    """
    try:
        with Image.open(io.BytesIO(data)) as picture:
            picture.load()
            texts = dict(getattr(picture, "text", {}))
            pixels = pixels_hash(picture)
        chunks = _chunks(data) if data.startswith(_START) else []
    except (OSError, ValueError, SyntaxError, struct.error, Image.DecompressionBombError) as error:
        return Verified(Verdict.UNREADABLE, " ".join(str(error).split())[:200])
    if SIGNATURE not in texts:
        return Verified(Verdict.NOT_SIGNED, "" if KEYWORD in texts else "and without a record")
    signature = _signature_in(texts[SIGNATURE])
    if signature is None:
        return Verified(Verdict.FORGED, "it is not one of ours")
    if signature["key"] != key.name:
        return Verified(Verdict.OTHER_KEY, f"got {signature['key'][:16]}, expected {key.name}")
    named = (signature["record_sha256"], signature["pixels_sha256"])
    if not hmac.compare_digest(key.code(*named).encode(), signature["code"].encode()):
        return Verified(Verdict.FORGED, "it was not made with the key that it names")
    return _compared(named, (_text_hash(texts.get(KEYWORD, "")), pixels), chunks)


def _compared(named: tuple[str, str], found: tuple[str, str], chunks: list[str]) -> Verified:
    """Returns the verdict about an image whose signature is genuine.

    Args:
        named: the hashes of record and pixels in the signature.
        found: those of the file.
        chunks: see :func:`_chunks`.
    """
    counted = Counter(chunks)
    twice = [name for name in (KEYWORD, SIGNATURE) if counted[f"text {name}"] > 1]
    added = sorted(name for name in counted if not name.startswith("text ") and name not in _NEUTRAL)
    record = named[0] != found[0] or bool(twice)
    pixels = named[1] != found[1] or bool(added)
    notes = [f"the file has several texts {name}" for name in twice]
    notes += [f"the chunk {name} was added, which changes how they look" for name in added]
    kinds = {(False, False): Verdict.SIGNED, (False, True): Verdict.PIXELS, (True, False): Verdict.RECORD}
    return Verified(kinds.get((record, pixels), Verdict.BOTH), ", ".join(notes))


def _text_hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _signature_in(text: str) -> dict[str, str] | None:
    """Returns the parts of a signature; None if the text is none."""
    try:
        found: Any = json.loads(text)
    except (ValueError, RecursionError):
        return None
    names = ("algorithm", "key", "record_sha256", "pixels_sha256", "code")
    if not isinstance(found, dict) or any(not isinstance(found.get(name), str) for name in names):
        return None
    is_ascii = all(found[name].isascii() for name in names)
    return {name: found[name] for name in names} if is_ascii and found["algorithm"] == ALGORITHM else None


def _chunks(data: bytes) -> list[str]:
    """Returns the chunks of a PNG file in order by their names; a text as ``text`` and its keyword.

    Raises:
        struct.error: the file is cut off.
    """
    found: list[str] = []
    place = len(_START)
    while place < len(data) and (not found or found[-1] != "IEND"):
        length, name = struct.unpack_from(">I4s", data, place)
        kind = name.decode("latin-1")
        content = data[place + 8 : place + 8 + length]
        found.append(f"text {content.partition(bytes(1))[0].decode('latin-1')}" if kind in _TEXTS else kind)
        place += length + 12
    return found
