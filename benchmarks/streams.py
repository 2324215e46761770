"""Measures pictures per second of tar shards, on a disk and from a server, against Pillow decoding bytes in memory."""

from __future__ import annotations

import io
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image

from ldm.data import DataModule
from ldm.pictures import from_uint8

FILES = [Path(__file__).parents[1] / "data" / "emoji" / f"{style}.parquet" for style in ("noto", "twemoji")]
SHARD, SIDE, BATCH, ROUNDS = 500, 128, 32, 5
# A server of the folder that it is started in. It gives parts of files, which http.server of Python does not.
SERVER = """
import http.server, os, re
class Files(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def log_message(self, *_): pass
    def do_GET(self):
        name = os.path.basename(self.path)
        size, part = os.path.getsize(name), re.fullmatch(r"bytes=(\\d+)-(\\d+)", self.headers.get("Range", ""))
        first, last = (int(part[1]), min(int(part[2]), size - 1)) if part else (0, size - 1)
        self.send_response(206 if part else 200)
        self.send_header("Content-Length", str(last - first + 1))
        self.send_header("Accept-Ranges", "bytes")
        if part: self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
        self.end_headers()
        if self.command == "GET":
            with open(name, "rb") as file:
                file.seek(first)
                self.wfile.write(file.read(last - first + 1))
    do_HEAD = do_GET
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Files)
print(server.server_address[1], flush=True)
server.serve_forever()
"""


def run() -> dict[str, float]:
    """Returns pictures per second of each way, as medians of `ROUNDS` rounds that take turns, and their ratios."""
    encoded = [row["bytes"] for file in FILES for row in pq.read_table(file, columns=["image"])["image"].to_pylist()]
    with tempfile.TemporaryDirectory() as folder, _served(_write(Path(folder) / "shards", encoded)) as url:
        count = -(-len(encoded) // SHARD)
        params = {"size": SIDE, "index": f"{folder}/lists", "buffer": 1000, "lanes": [1, 4]}
        disk = _loader({**params, "shards": f"{folder}/shards"})
        there = _loader({**params, "shards": f"{url}/s-{{000..{count - 1:03d}}}.tar", "index": f"{folder}/there"})
        whole = len(encoded) // BATCH * BATCH
        ways: dict[str, Callable[[], None]] = {
            "pillow": lambda: _decode(encoded[:whole]),
            "disk": lambda: _read(disk),
            "server": lambda: _read(there),
        }
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(ROUNDS):
            for name, way in ways.items():
                start = time.perf_counter()
                way()
                seconds[name].append(time.perf_counter() - start)
    rates = {name: whole / statistics.median(times) for name, times in seconds.items()}
    figures = {f"{name}_images_per_s": round(rate, 1) for name, rate in rates.items()}
    return {**figures, **{f"{name}_ratio": round(rates[name] / rates["pillow"], 3) for name in ("disk", "server")}}


def _write(folder: Path, encoded: list[bytes]) -> Path:
    """Writes pictures to shards with a text for each, and returns their folder."""
    folder.mkdir()
    for number, first in enumerate(range(0, len(encoded), SHARD)):
        with tarfile.open(folder / f"s-{number:03d}.tar", "w") as archive:
            for key, data in enumerate(encoded[first : first + SHARD]):
                for name, content in ((f"{key:06d}.png", data), (f"{key:06d}.txt", b"a picture")):
                    member = tarfile.TarInfo(name)
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
    return folder


@contextmanager
def _served(folder: Path) -> Iterator[str]:
    """Gives a folder to a server in another process, until the block ends; returns its address."""
    words = [sys.executable, "-c", SERVER]
    with subprocess.Popen(words, cwd=folder, stdout=subprocess.PIPE, text=True) as server:  # noqa: S603 (our own)
        port = server.stdout.readline().strip() if server.stdout else ""
        yield f"http://127.0.0.1:{port}"
        server.kill()


def _loader(params: dict[str, Any]) -> Any:
    return DataModule(BATCH, train={"target": "ldm.data.WebDatasetImages", "params": params}).train_dataloader()


def _read(loader: Any) -> None:
    for _ in loader:
        pass


def _decode(encoded: list[bytes]) -> None:
    """Decodes pictures into batches, and does nothing else."""
    for first in range(0, len(encoded), BATCH):
        pictures = []
        for data in encoded[first : first + BATCH]:
            with Image.open(io.BytesIO(data)) as image:
                pictures.append(from_uint8(torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)))
        torch.stack(pictures)
