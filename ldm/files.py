"""Files on disk: where paths lead, hashes, JSON files, downloads, and writing that leaves no half-written file."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import sysconfig
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

SHIPPED = ("configs", "data/emoji", "docs", "models")  # the folders of the files that come with the code
_INSTALLED = Path("share") / "retrieval-augmented-diffusion"  # where an installed package has them, see pyproject.toml


@functools.cache
def project() -> Path:
    """Returns the folder of the shipped files: that of the checkout, or that of the installed package."""
    code = Path(__file__).resolve().parents[1]
    places = (code, code / _INSTALLED, Path(sysconfig.get_path("data")) / _INSTALLED)
    return next((place for place in places if (place / "models").is_dir()), code)


def located(path: str | Path) -> Path:
    """Returns where a path leads that is read.

    A relative path follows the working directory. If nothing is there, and the path lies in a folder of shipped files
    (``configs``, ``data/emoji``, ``docs`` or ``models``), the file of the project is meant.
    """
    path = Path(path)
    return path if path.exists() or not shipped(path).exists() else shipped(path)


def shipped(path: str | Path) -> Path:
    """Returns a relative path in a folder of shipped files as a path in the project, and any other path as it is."""
    path = Path(path)
    return in_project(path) if any(path.is_relative_to(folder) for folder in SHIPPED) else path


def in_project(path: str | Path) -> Path:
    """Returns a relative path as one in the project, unless that is the working directory, and any other as it is."""
    path = Path(path)
    here = path.is_absolute() or ".." in path.parts or Path.cwd() == project()
    return path if here else project() / path


def portable(path: str | Path) -> str:
    """Returns a path as records state it: that of a shipped file relative to the project, so that it is found again."""
    path = Path(path)
    if not path.is_absolute() or not path.is_relative_to(project()):
        return str(path)
    inside = path.relative_to(project())
    return str(inside if any(inside.is_relative_to(folder) for folder in SHIPPED) else path)


def file_hash(file: Path) -> str:
    """Returns the SHA-256 of a file, or ``"no file"`` if there is none."""
    if not file.is_file():
        return "no file"
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def check_hash(file: Path, expected: str, remedy: str) -> None:
    """Checks that a file has the expected SHA-256.

    Raises:
        ValueError: the file is missing or damaged; the error names it.
    """
    found = file_hash(file)
    if found != expected:
        raise ValueError(f"{file} is damaged: got sha256 {found}, expected {expected}; {remedy}")


def read_json(file: Path, remedy: str) -> dict[str, Any]:
    """Returns the content of a JSON file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file holds no JSON object.
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
    """Writes a JSON file; an interrupted call leaves the old file as it was."""
    with atomic_path(file) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def fetched(url: str, remedy: str) -> Path:
    """Returns the path of a downloaded file in torch's cache; the first call downloads it.

    Args:
        url: address of the file, whose name ends in the first digits of its hash, which is checked.
        remedy: what a user without a network can do, for the error.

    Raises:
        ValueError: the file cannot be downloaded.
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
    """Returns the content of a UTF-8 text file.

    Raises:
        ValueError: not UTF-8.
    """
    try:
        return located(file).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: got bytes that are no UTF-8 text ({error}); save it as UTF-8") from error


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yields a temporary path, whose file is flushed and renamed to ``path`` on success, and removed on an error."""
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
