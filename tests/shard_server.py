"""Tar shards of pictures, and a server that gives parts of them."""

from __future__ import annotations

import io
import re
import tarfile
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def write_shard(path: Path, members: dict[str, bytes]) -> None:
    """A tar file with these members in this order."""
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def write_shards(folder: Path, sizes: list[int], side: int = 8) -> str:
    """Shards with so many noise pictures each, with captions, and the pattern that names them."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(5)
    for number, size in enumerate(sizes):
        members = {}
        for key in range(size):
            buffer = io.BytesIO()
            Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8)).save(buffer, "PNG")
            members |= {f"{key:04d}.png": buffer.getvalue(), f"{key:04d}.txt": f"picture {number} {key}".encode()}
        write_shard(folder / f"s-{number:02d}.tar", members)
    return f"s-{{00..{len(sizes) - 1:02d}}}.tar"


class Server(ThreadingHTTPServer):
    """Gives the files of a folder, whole or in parts; ``asked`` counts requests for content, by file.

    While ``fails`` is above 0, a request for content is refused and lowers it. With ``parts`` false, files are
    only given as a whole.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Files)
        self.folder, self.asked, self.fails, self.parts = folder, Counter[str](), 0, True

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Files(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_HEAD(self) -> None:  # noqa: N802 (the name that http.server calls)
        file = self.server.folder / self.path.lstrip("/")
        if not file.is_file():
            self.answer(404)
            return
        content, found = file.read_bytes(), re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if self.command == "GET":
            self.server.asked[file.name] += 1
            if self.server.fails > 0:
                self.server.fails -= 1
                self.answer(503)
                return
        if not self.server.parts:
            self.answer(200, content)
        elif found:
            first, last = int(found[1]), min(int(found[2]), len(content) - 1)
            self.answer(206, content[first : last + 1], Content_Range=f"bytes {first}-{last}/{len(content)}")
        else:
            self.answer(200, content, Accept_Ranges="bytes")

    do_GET = do_HEAD  # noqa: N815


@contextmanager
def serving(folder: Path) -> Iterator[Server]:
    """A server of a folder, until the block ends."""
    with Server(folder) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()
