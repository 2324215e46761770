"""The gate of the server: it lets through what the page needs, and nothing else that Gradio would answer.

Among what it keeps out are routes that fetch an address from elsewhere for the client, read a file outside the folder
of uploads, or start another program.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from pathlib import Path
from typing import Any

from rdm.web.answers import FAILED

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

LOG = logging.getLogger(__name__)
API = "/gradio_api/"
CALL, FILE = f"{API}call/", f"{API}file="
PATHS = (
    "/", "/config", "/theme.css", "/favicon.ico", "/manifest.json", "/robots.txt", "/login", "/logout",
    *(API + name for name in (
        "info", "openapi.json", "queue/join", "queue/data", "queue/status", "cancel", "reset", "upload",
        "upload_progress", "startup-events", "app_id", "user", "login_check", "token",
    )),
)  # fmt: skip
FOLDERS = ("/assets/", "/static/", "/svelte/", *(API + name for name in ("run/", "call/", "heartbeat/")))
UPLOADS = 64  # of the largest size, that are kept at the same time
SPARE = 65536  # bytes of a request beside an upload, and the least that a file counts
PAUSE = 1.0  # seconds from one count of the uploads to the next
# What Gradio's page about the endpoints asks although it was told that there is nothing. With a status from 400 on, the
# browser would report an error; with one of 200, the page would describe a server for language models.
ABSENT: dict[str, tuple[int, Any]] = {"/monitoring/summary": (200, {"functions": {}}), f"{API}mcp/schema": (300, [])}
HEADERS = {
    # The page fetches nothing from elsewhere, and the browser refuses it as well. Gradio's components are scripts that
    # are made of texts.
    "content-security-policy": "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; media-src 'self' data: blob:; "
    "font-src 'self' data:; worker-src 'self' blob:; object-src 'none'; base-uri 'self'; form-action 'self'; "
    "frame-ancestors 'self'",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


class Gate:
    """An ASGI middleware.

    Args:
        app: the application behind it.
        folder: the only folder that files are served from.
        upload_bytes: the largest upload.
    """

    def __init__(self, app: App, folder: Path, upload_bytes: int) -> None:
        self.app, self.folder, self.most = app, folder.resolve(), upload_bytes + SPARE
        self.bytes, self.counted = 0, -PAUSE  # in the folder at most, and when they were counted

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answers a request."""
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        if scope["type"] != "http":
            return None  # a web socket, of which the page has none
        send = with_headers(send)
        if scope["path"] in ABSENT:
            return await answer(send, *ABSENT[scope["path"]])
        if not self.knows(scope["path"]):
            return await refuse(send, 404, "there is nothing at this address")
        if scope["method"] == "POST":
            if scope["path"].startswith(f"{API}upload") and self.is_full():
                return await refuse(send, 507, "too many uploads wait to be used; they are removed in time, try later")
            body = await self.body(scope, receive)
            if body is None:
                return await refuse(send, 413, f"a request has at most {self.most} bytes; send less")
            self.bytes += max(SPARE, len(body)) if scope["path"].startswith(f"{API}upload") else 0
            if names_an_address(scope, body):
                return await refuse(send, 400, "a file is uploaded; this page fetches none from an address")
            receive = replayed(body, receive)
        await answered(self.app, scope, receive, send)

    def knows(self, path: str) -> bool:
        """Returns whether the page needs what is at a path."""
        if path.startswith(FILE):
            return self.serves(path.removeprefix(FILE))
        return path.rstrip("/") in PATHS or path == "/" or (path.startswith(FOLDERS) and ".." not in path)

    def serves(self, name: str) -> bool:
        """Returns whether a file lies in the folder of uploads, and not behind a link that leads out of it."""
        if "\0" in name or len(name) > 4096:
            return False
        file = Path(name)
        return file.is_absolute() and file.resolve().is_relative_to(self.folder)

    def is_full(self) -> bool:
        """Returns whether so many uploads are kept that no further one is taken.

        The folder is read only if what came since the last time may have filled it, and not more often than once in a
        second.
        """
        full, now = UPLOADS * self.most, time.monotonic()
        if self.bytes > full and now - self.counted >= PAUSE:
            files = (file for file in self.folder.rglob("*") if file.is_file())
            self.bytes = sum(max(SPARE, file.stat(follow_symlinks=False).st_size) for file in files)
            self.counted = now
        return self.bytes > full

    async def body(self, scope: Message, receive: Receive) -> bytes | None:
        """Returns the body of a request; None if it is too large."""
        lengths = [value for name, value in scope["headers"] if name == b"content-length"]
        if any(not length.isdigit() or int(length) > self.most for length in lengths):
            return None
        parts, size = [], 0
        while True:
            message = await receive()
            if message["type"] != "http.request":
                return b""
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > self.most:
                return None
            if not message.get("more_body"):
                return b"".join(parts)


def names_an_address(scope: Message, body: bytes) -> bool:
    """Returns whether a request in JSON names an address on the network in the place of a file."""
    if dict(scope["headers"]).get(b"content-type", b"").startswith(b"multipart/"):
        return False
    try:
        given = json.loads(body or b"null")
    except (ValueError, RecursionError):
        return False
    return any(path.strip().lower().startswith(("http:", "https:", "//")) for path in paths_in(given))


def paths_in(given: Any) -> Iterator[str]:
    """Yields every text under the key ``path`` in a JSON value, at any depth."""
    waiting = [given]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            if isinstance(value.get("path"), str):
                yield value["path"]
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value


def replayed(body: bytes, receive: Receive) -> Receive:
    """Returns a function that receives a body that was received already, and then what comes after it."""
    waiting = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Message:
        return waiting.pop() if waiting else await receive()

    return again


async def answered(app: App, scope: Message, receive: Receive, send: Send) -> None:
    """Has an application answer. If it fails, the answer is one sentence, or ends.

    Otherwise the server would close the connection, and the next request on it would be lost.
    """
    has_begun = is_complete = False

    async def noted(message: Message) -> None:
        nonlocal has_begun, is_complete
        has_begun, is_complete = True, message["type"] == "http.response.body" and not message.get("more_body")
        await send(message)

    try:
        await app(scope, receive, noted)
    except Exception as error:  # noqa: BLE001 (of any part of Gradio)
        is_misfit = scope["path"].startswith(CALL) and isinstance(error, LookupError | TypeError)
        LOG.log(logging.INFO if is_misfit else logging.ERROR, "%s was not answered", scope["path"], exc_info=error)
        if not has_begun and is_misfit:
            await refuse(send, 400, f"no endpoint of this page takes these arguments; {API}info lists them all")
        elif not has_begun:
            await refuse(send, 500, FAILED)
        elif not is_complete:
            await send({"type": "http.response.body", "body": b""})


def with_headers(send: Send) -> Send:
    """Returns a function that sends an answer with :data:`HEADERS`."""

    async def sent(message: Message) -> None:
        if message["type"] == "http.response.start":
            own = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
            message = {**message, "headers": [*message.get("headers", []), *own]}
        await send(message)

    return sent


async def refuse(send: Send, status: int, words: str) -> None:
    """Answers with an error of one sentence."""
    await answer(send, status, {"detail": words})


async def answer(send: Send, status: int, content: Any) -> None:
    """Answers with JSON."""
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps(content).encode()})
