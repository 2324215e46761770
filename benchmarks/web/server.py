"""The server of the page in a process of its own, which can be killed and started again at the same address."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import httpx

ROOT = Path(__file__).parents[2]
POLL = 0.1  # seconds
MEMORY = {"VmRSS": "now", "VmHWM": "most"}  # of /proc/PID/status


class Server:
    """A program that serves on loopback. It ends with the ``with`` block.

    Args:
        command: the program with its arguments, except for ``--port``.
        folder: where it keeps its temporary files and its log.

    Attributes:
        address: its address.
        kills: how often it was killed.
        is_up: whether it serves.
    """

    def __init__(self, command: Sequence[str], folder: Path) -> None:
        port = free_port()
        self.address, self.kills, self.is_up = f"http://127.0.0.1:{port}", 0, False
        self._command = [*command, "--port", str(port)]
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Server:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def start(self) -> float:
        """Starts the server and waits until it serves; returns how many seconds that took.

        Raises:
            RuntimeError: it ended instead; the message has the end of its log.
        """
        begin, log = time.perf_counter(), self._folder / "log.txt"
        environment = {**os.environ, "TMPDIR": str(self._folder)}
        with log.open("a") as said:
            self._process = subprocess.Popen(  # noqa: S603 (the page, or what a test serves)
                self._command, cwd=ROOT, env=environment, stdout=said, stderr=subprocess.STDOUT
            )
        while not self._serves():
            if self._process.poll() is not None:
                raise RuntimeError(f"the server did not start: {log.read_text(errors='replace').strip()[-200:]}")
            time.sleep(POLL)
        self.is_up = True
        return time.perf_counter() - begin

    def _serves(self) -> bool:
        try:
            return httpx.get(self.address, timeout=10).is_success
        except httpx.HTTPError:
            return False

    def kill(self) -> None:
        """Ends the server by a signal that it cannot catch."""
        if self._process is not None:
            self.kills, self.is_up = self.kills + 1, False
            self._process.kill()
            self._process.wait()
            self._process = None

    def megabytes(self) -> dict[str, float]:
        """Returns the memory of the process: what is resident ``now``, and the ``most`` that ever was (Linux).

        Raises:
            RuntimeError: the server is killed.
        """
        if self._process is None:
            raise RuntimeError("the server is not running")
        known = dict(line.split(":", 1) for line in Path(f"/proc/{self._process.pid}/status").read_text().splitlines())
        return {name: round(int(known[key].split()[0]) / 1024, 1) for key, name in MEMORY.items()}


def free_port() -> int:
    """Returns a port of loopback that no program listens at."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])
