"""Parts of files, on disks and at URLs. URLs are read through fsspec: https, and s3, gs or hf with their packages."""

from __future__ import annotations

import io
import logging
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

LOG = logging.getLogger(__name__)

BLOCK = 4 * 2**20  # bytes of a request
_BLOCKS = 16  # kept of each open file
_FILES = 16  # kept open
_NOT_FOUND, _REFUSED = 404, (400, 401, 403, 410, 416)  # answers that will not be others after a while
_NO_PARTS = "its server does not give parts of a file; give one on a server that does"
_WAITS = (1.0, 4.0, 16.0)  # seconds before a failed request is repeated

T = TypeVar("T")


class UnreachableError(OSError):
    """A file at a URL cannot be read now. Nothing follows for the pictures in it."""


def is_url(name: object) -> bool:
    """Whether a name is a URL, such as `https://host/train-000.tar`."""
    return "://" in str(name)


class FileParts:
    """Reads parts of files on disks and at URLs. The files that were read last stay open.

    Files at URLs are fetched in blocks of 4 MB, of which the last ones of each file are kept. So parts that lie near
    each other cost one request. A request that fails is repeated three times, after 1, 4 and 16 seconds.
    """

    def __init__(self) -> None:
        self._open: OrderedDict[Path | str, Any] = OrderedDict()
        self._process, self._lock = os.getpid(), threading.RLock()

    def read(self, file: Path | str, start: int, length: int) -> bytes:
        """Returns `length` bytes of a file from byte `start` on; fewer if a file on a disk ends before.

        Args:
            file: a path, or a URL as a string.
            start: the first byte.
            length: number of bytes.

        Raises:
            OSError: a file on a disk cannot be read.
            UnreachableError: a file at a URL cannot be read, or ends before.
            ValueError: the package for this kind of URL is missing.
        """
        with self._lock:
            if isinstance(file, Path):
                return os.pread(self._file(file).fileno(), length, start)
            return self._repeated(file, lambda: self._fetched(file, start, length))

    def _fetched(self, url: str, start: int, length: int) -> bytes:
        """Returns a part of a file at a URL."""
        file = self._file(url)
        if start + length > file.size:
            raise UnreachableError(f"it ends after {file.size} bytes, expected {start + length}; list it again")
        file.seek(start)
        try:
            content: bytes = file.read(length)
        except ValueError as error:  # which fsspec raises for the answer of a server
            raise UnreachableError(_NO_PARTS) from error
        if len(content) != length:
            raise OSError(f"got {len(content)} of {length} bytes")
        return content

    def size(self, url: str) -> int:
        """Returns the number of bytes of a file.

        Raises:
            UnreachableError: there is no such file, or its server does not give parts of it.
            ValueError: the package for this kind of URL is missing.
        """
        return self._repeated(url, lambda: int(self._file(url).size))

    def stream(self, url: str) -> io.BufferedReader:
        """Returns a file that reads like one on a disk, each part of it through :meth:`read`."""
        return io.BufferedReader(_Stream(self, url))

    def _file(self, name: Path | str) -> Any:
        """Returns an open file, which stays open."""
        if self._process != os.getpid():  # connections are not shared with a forked process
            self._open, self._process = OrderedDict(), os.getpid()
        if name not in self._open:
            self._open[name] = name.open("rb", buffering=0) if isinstance(name, Path) else _opened(name)
        self._open.move_to_end(name)
        while len(self._open) > _FILES:
            self._open.popitem(last=False)[1].close()
        return self._open[name]

    def __getstate__(self) -> dict[str, Any]:
        """Leaves open files behind."""
        return {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Starts without open files."""
        self.__init__()  # type: ignore[misc]

    def _repeated(self, url: str, read: Callable[[], T]) -> T:
        import aiohttp

        for wait in (*_WAITS, None):
            try:
                return read()
            except (OSError, aiohttp.ClientError) as error:
                self._open.pop(url, None)
                reason = _reason(error)
                status = getattr(reason, "status", 0)  # the server's answer
                if isinstance(reason, FileNotFoundError) or status == _NOT_FOUND:
                    raise UnreachableError(f"{url} cannot be read: there is no such file; correct its name") from error
                if status in _REFUSED:
                    said = f"{_line(reason)}; give one that you may read"
                    raise UnreachableError(f"{url} cannot be read: {said}") from error
                if isinstance(reason, UnreachableError):
                    raise UnreachableError(f"{url} cannot be read: {reason}") from error
                if wait is None:
                    raise UnreachableError(
                        f"{url} cannot be read: {_line(reason)}; when it can be reached, the same command continues"
                    ) from error
                LOG.warning("%s: %s; trying again in %.0f s", url, _line(reason), wait)
                time.sleep(wait)
        raise AssertionError


class _Stream(io.RawIOBase):
    """The bytes of a file at a URL, one after the other."""

    def __init__(self, files: FileParts, url: str) -> None:
        self.files, self.url, self.size, self.place = files, url, files.size(url), 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self.place = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self.place, os.SEEK_END: self.size}[whence]
        return self.place

    def readinto(self, buffer: Any) -> int:
        length = max(0, min(len(buffer), self.size - self.place))
        buffer[:length] = self.files.read(self.url, self.place, length) if length else b""
        self.place += length
        return length


def _opened(url: str) -> Any:
    """Returns a file of blocks at a URL."""
    import fsspec

    options = {"client_kwargs": {"trust_env": True}} if url.startswith("http") else {}
    try:
        system, path = fsspec.core.url_to_fs(url, skip_instance_cache=True, use_listings_cache=False, **options)
    except ImportError as error:
        raise ValueError(f"{url}: {_line(error)}") from error
    except ValueError as error:
        raise ValueError(f"{url}: {_line(error)}; expected a URL that fsspec reads, such as https://") from error
    file = system.open(path, "rb", block_size=BLOCK, cache_type="blockcache", cache_options={"maxblocks": _BLOCKS})
    if not file.seekable():
        raise UnreachableError(_NO_PARTS)
    return file


def _reason(error: BaseException) -> BaseException:
    """Returns why a file was not found, because fsspec says that of a server that does not answer, too."""
    return error.__cause__ if isinstance(error, FileNotFoundError) and error.__cause__ else error


def _line(error: BaseException) -> str:
    """Returns the first line of an error, or its kind if it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
