"""A visitor of the page who adds two pictures to its database, unless they are in it. The server ends with him.

The command is ``python -m benchmarks.chaos.page WORLD WORK``.
"""

from __future__ import annotations

import asyncio
import base64
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx

from benchmarks.web.server import POLL, ROOT, free_port
from benchmarks.web.visitor import Visitor

LONGEST = 120  # seconds until the server serves


async def add(address: str, pictures: list[bytes]) -> None:
    """Adds pictures to the first database of a page, unless it has them, and looks whether searches find them.

    Raises:
        ValueError: a search does not find one afterwards.
    """
    sent = [base64.b64encode(each).decode() for each in pictures]
    async with httpx.AsyncClient(base_url=address, timeout=LONGEST) as http:
        visitor = Visitor(http)

        async def is_there(picture: str) -> bool:
            (row,) = (await visitor.call("search_rows", picture=picture, k=1))["rows"]
            return bool(row["licence"] == "CC0-1.0")

        if not await is_there(sent[0]):
            await visitor.call("add_rows", pictures=sent, licence="CC0-1.0", attribution="A. Uthor")
        if not all([await is_there(each) for each in sent]):
            raise ValueError("a picture that was added is not found; see what the page says")


def main() -> int:
    """Starts the server, adds the pictures, and ends the server; returns the exit code."""
    world, work = (Path(word) for word in sys.argv[1:])
    pictures = [file.read_bytes() for file in sorted(world.glob("new/*/*.png"))]
    port = free_port()
    command = [sys.executable, "scripts/web.py", "--ckpt", str(work / "model"), "--allow-changes", "--port", str(port)]
    server, end = subprocess.Popen(command, cwd=ROOT), time.monotonic() + LONGEST  # noqa: S603 (the page)
    address = f"http://127.0.0.1:{port}"
    try:
        while not serves(address) and server.poll() is None and time.monotonic() < end:
            time.sleep(POLL)
        asyncio.run(add(address, pictures))
    except httpx.HTTPError as error:
        if server.wait(5) != -signal.SIGKILL:
            raise
        print(f"the server was killed: {error}")
        os.kill(os.getpid(), signal.SIGKILL)  # as if both had been
    server.send_signal(signal.SIGINT)
    if (code := server.wait(LONGEST)) == -signal.SIGKILL:
        os.kill(os.getpid(), signal.SIGKILL)
    return 0 if code in (0, 130) else 1


def serves(address: str) -> bool:
    """Whether a server answers at an address."""
    try:
        return httpx.get(address, timeout=10).is_success
    except httpx.HTTPError:
        return False


if __name__ == "__main__":
    sys.exit(main())
