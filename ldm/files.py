"""Small files on disk: their hashes, and JSON cards written whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any


def file_hash(file: Path) -> str:
    """Returns the SHA-256 of a file, or ``"no file"`` where there is none."""
    if not file.is_file():
        return "no file"
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def check_hash(file: Path, expected: str, remedy: str) -> None:
    """Checks that a file is the one whose hash a card holds.

    Raises:
        ValueError: it is missing or damaged; names it.
    """
    found = file_hash(file)
    if found != expected:
        raise ValueError(f"{file} is damaged: got sha256 {found}, expected {expected}; {remedy}")


def read_json(file: Path, remedy: str) -> dict[str, Any]:
    """Returns the content of a card.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: it is not a JSON object.
    """
    if not file.is_file():
        raise FileNotFoundError(f"no {file.name} in {file.parent}; {remedy}")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is not JSON ({error}); {remedy}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} holds a {type(content).__name__}, expected an object; {remedy}")
    return content


def write_json(file: Path, content: Mapping[str, Any]) -> None:
    """Writes a card, whole or not at all."""
    with atomic_path(file) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def fetched(url: str, remedy: str) -> Path:
    """Returns the copy in torch's cache of a file whose name ends in the beginning of its hash, fetched at first.

    Args:
        url: where it is.
        remedy: what a user can do without a network.

    Raises:
        ValueError: it cannot be fetched.
    """
    from torch import hub

    file = Path(hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            hub.download_url_to_file(url, str(file), hash_prefix=file.stem.rpartition("-")[2])
        except (OSError, RuntimeError) as error:
            raise ValueError(f"{file.name} could not be fetched from {url} ({error}); {remedy}") from error
    return file


def read_text(file: str | Path) -> str:
    """Returns what a UTF-8 text file holds.

    Raises:
        ValueError: not UTF-8.
    """
    try:
        return Path(file).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: got bytes that are no UTF-8 text ({error}); save it as UTF-8") from error


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yields a temporary path; on success it is flushed and renamed to ``path``, on an error removed."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o644)  # some writers make files that only their owner can read
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
