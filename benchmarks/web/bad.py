"""Requests that the page must refuse, each with the answer that it must get."""

from __future__ import annotations

import base64
import re
import struct
import zlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.web.good import check, png
from benchmarks.web.visitor import API, Refused, Visitor, body_of

UPLOAD = 10 * 2**20  # bytes that an upload may have by default
PICTURE = png(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))


@dataclass(frozen=True)
class Bad:
    """A bad request.

    Attributes:
        what: what is bad.
        ask: asks it.
        status: the HTTP status that it must get; 200 if an endpoint tells of the error.
        words: a pattern of what the server must say.
    """

    what: str
    ask: Callable[[Visitor], Awaitable[Any]]
    status: int
    words: str

    async def answer(self, visitor: Visitor) -> str:
        """Asks, and returns the answer.

        Raises:
            WrongAnswerError: the answer is another one.
        """
        try:
            got = str(await self.ask(visitor))[:60]
        except Refused as error:
            is_right = error.status == self.status and bool(re.search(self.words, error.words))
            check(is_right and "Traceback" not in error.words and "\n" not in error.words, f"{self.what}: {error}")
            return f"{error.status} {error.words}"
        check(False, f"{self.what} was answered with {got}")
        return got


def texts(what: str, words: str, status: int = 200, **given: Any) -> Bad:
    """Returns a bad request for images of texts."""
    return Bad(what, lambda visitor: visitor.call("texts", **{"prompts": ["a cat face"], **given}), status, words)


def variations(what: str, words: str, picture: Any, status: int = 200) -> Bad:
    """Returns a bad request for variations of a picture; bytes are sent in Base64."""
    given = base64.b64encode(picture).decode() if isinstance(picture, bytes) else picture
    return Bad(what, lambda visitor: visitor.call("variations", picture=given), status, words)


def path(target: str, status: int = 404, words: str = "nothing at this address") -> Bad:
    """Returns a bad request for a path, which is sent as it is."""

    async def ask(visitor: Visitor) -> bytes:
        return body_of(await visitor.http.get("/", extensions={"target": target.encode()}))

    return Bad(f"GET {target}", ask, status, words)


def posted(what: str, to: str, body: bytes, status: int, words: str) -> Bad:
    """Returns a bad request with a body that is no JSON."""

    async def ask(visitor: Visitor) -> bytes:
        return body_of(await visitor.http.post(to, content=body, headers={"content-type": "application/json"}))

    return Bad(what, ask, status, words)


def bomb(side: int = 30_000) -> bytes:
    """Returns a PNG file of a few kilobytes that says it has ``side * side`` pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes(1_000_000), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


async def truncated_upload(visitor: Visitor) -> Any:
    """Uploads half a PNG file and asks for variations of it."""
    return await visitor.call("variations", picture={"path": await visitor.upload(PICTURE[: len(PICTURE) // 2])})


BAD = (
    texts("a number in place of the texts", "prompts=5, expected list", prompts=5),
    texts("an object in place of a text", "prompts=", prompts=[{"a": 1}]),
    texts("a text in place of a number", "n='two', expected int", n="two"),
    texts("a list in place of the settings", "settings=", settings=[1]),
    texts("a setting of another type", "steps=", settings={"steps": "many"}),
    texts("a setting that does not exist", "stepz", settings={"stepz": 2}),
    texts("a path in place of a row", "rows=", rows=["/etc/passwd"]),
    texts("a file as a setting", "weaker", settings={"weaker": "/etc/passwd"}),
    texts("no text", "no text", prompts=[]),
    texts("a text of 301 characters", "301 characters in a prompt, expected at most 300", prompts=["x" * 301]),
    texts("a text of 1 MB", "characters in a prompt", prompts=["x" * 2**20]),
    texts("17 images", "17 images in a request, expected at most 16", n=17),
    texts("10^9 images", "images in a request", n=10**9),
    texts("1000 steps", "denoising steps of an image, expected at most 250", settings={"steps": 1000}),
    texts("pictures of 4096 pixels a side", "pixels at a side", settings={"height": 4096, "width": 4096, "steps": 2}),
    texts("a row that does not exist", "10000000", rows=[10**7]),
    texts("a seed below 0", "seed=-1", seed=-1),
    texts("a database that does not exist", "'none'", places=["none"]),
    texts("an argument that does not exist", "gradio_api/info", status=400, nothing=1),
    variations("no picture", "picture", None),
    variations("a text that is not in Base64", "not in Base64", "not in Base64!"),
    variations("half a PNG file", "truncated", PICTURE[: len(PICTURE) // 2]),
    Bad("half a PNG file as an upload", truncated_upload, 200, "truncated"),
    variations("an image bomb of 30000 x 30000 pixels", "pixels", bomb()),
    variations("PostScript", "no picture", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"),
    variations("a pickle", "no picture", b"\x80\x04\x95\x1a\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix."),
    variations("SVG that names a file", "no picture", b'<svg><image href="file:///etc/passwd"/></svg>'),
    variations("a file outside the folder of uploads", "no upload of this page", {"path": "/etc/passwd"}),
    variations("a path that climbs out of it", "no upload of this page", {"path": "../../../../etc/passwd"}),
    variations("an address on the network", "uploaded", {"path": "http://127.0.0.1:1/a.png"}, status=400),
    Bad("an upload of 10 MB and 1 byte", lambda visitor: visitor.upload(bytes(UPLOAD + 1)), 413, "most|large|size"),
    Bad("an upload of 12 MB", lambda visitor: visitor.upload(bytes(12 * 2**20)), 413, "most|large|size"),
    Bad("an endpoint that does not exist", lambda visitor: visitor.call("nothing"), 400, "gradio_api/info"),
    posted("half a JSON object", f"{API}call/v2/texts", b'{"prompts": ["a', 422, "JSON"),
    posted("JSON 100,000 lists deep", f"{API}call/v2/texts", b"[" * 100_000, 400, "parsing the body"),
    posted("bytes that are no text", f"{API}call/v2/texts", bytes(range(128, 256)), 400, "parsing the body"),
    path(f"{API}file=/etc/passwd"),
    path(f"{API}file=../../../../etc/passwd"),
    path(f"{API}file=%2e%2e%2f%2e%2e%2fetc%2fpasswd"),
    path(f"{API}file=http://127.0.0.1:1/a.png"),
    path("/assets/../../../../../etc/passwd"),
    path("/static/%2e%2e/%2e%2e/%2e%2e/etc/passwd"),
    path("//etc/passwd"),
    path(f"{API}proxy=http://127.0.0.1:1/a.png"),
)  # fmt: skip
