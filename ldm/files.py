"""Files on disk: where paths lead, hashes, JSON, downloads, and writing that leaves no half-written file."""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import json
import logging
import os
import socket
import threading
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from tokenize import TokenError
from typing import Any, Literal

import numpy as np

LOG = logging.getLogger(__name__)
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # the disk, the user's share of it, or what a file may be, is used up
BESIDE = "beside:"

SHIPPED = ("configs", "data/emoji", "docs", "models")  # the folders of the files that come with the code
BUILT = ("data/codes", "data/databases")  # the folders of what the shipped configs build
_CODE = Path(__file__).resolve().parents[1]
_INSTALLED = "retrieval_augmented_diffusion"  # the folder of the shipped files in a wheel, see pyproject.toml


@functools.cache
def project() -> Path:
    """Returns the folder of the shipped files: the checkout, or beside ``ldm`` that of the installed package."""
    return _CODE / _INSTALLED if (_CODE / _INSTALLED).is_dir() else _CODE


def cache() -> Path:
    """Returns the user's folder of what was fetched, and of what an installed package builds; ``LDM_CACHE`` names it.

    In it, what was fetched has the path that it would have in the project.
    """
    usual = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "retrieval-augmented-diffusion"
    return Path(os.environ.get("LDM_CACHE") or usual).expanduser().absolute()


def places(path: str | Path) -> list[Path]:
    """Returns where a path that is read may lead, the first choice first. This is the rule for all shipped files.

    Any path is taken as it is, a relative one from the working directory. Then a relative path in a folder of
    :data:`SHIPPED` leads into the project, and after it into the cache. One in a folder of :data:`BUILT` leads to where
    the project builds it.
    """
    path = Path(path)
    if _is_in(path, SHIPPED):
        return [path, project() / path, cache() / path]
    return [path, to_build(path)] if _is_in(path, BUILT) else [path]


def located(path: str | Path) -> Path:
    """Returns the first of the :func:`places` of a path that is there, and the path itself if none is."""
    return next((place for place in places(path) if place.exists()), Path(path))


def looked_in(path: str | Path) -> str:
    """Returns the words of an error that say where a relative path was looked for; none for an absolute path."""
    found = places(path)
    if found[0].is_absolute():
        return ""
    further = "" if len(found) < 3 else f", the project {project()} or the cache {cache()}"
    return f" in {Path.cwd()}{further}"


def to_build(path: str | Path) -> Path:
    """Returns where that lies which a config of the project builds at a relative path; any other path as it is.

    It lies in the checkout, or in the cache if the project is an installed package or cannot be written to.
    """
    path = Path(path)
    root = project() if project() == _CODE and os.access(_CODE, os.W_OK) else cache()
    return path if path.is_absolute() or ".." in path.parts or Path.cwd() == root else root / path


def portable(path: str | Path) -> str:
    """Returns a path as records state it: one in the project or the cache relative to it, so that it is found again."""
    path = Path(path)
    for root in (project(), cache()):
        if path.is_relative_to(root) and _is_in(path.relative_to(root), (*SHIPPED, *BUILT)):
            return str(path.relative_to(root))
    return str(path)


def _is_in(path: Path, folders: Iterable[str]) -> bool:
    return ".." not in path.parts and any(path.is_relative_to(folder) for folder in folders)


def beside(part: Any, folder: str | Path) -> Any:
    """Returns JSON values in which each text ``beside:PATH`` is the absolute path of what lies at PATH from a folder.

    A folder that is moved or pushed as a whole names its files in this way.
    """
    if isinstance(part, str):
        start, is_beside, path = part.partition(BESIDE)
        return os.path.normpath(Path(folder).absolute() / path) if is_beside and not start else part
    if isinstance(part, list):
        return [beside(each, folder) for each in part]
    return {name: beside(value, folder) for name, value in part.items()} if isinstance(part, Mapping) else part


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
        content = parsed_json(file.read_bytes())  # UTF-8 with or without a byte-order mark
    except ValueError as error:
        raise ValueError(f"{file} is not JSON ({error}); {remedy}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} holds a {type(content).__name__}, expected an object; {remedy}")
    return content


def parsed_json(text: str | bytes) -> Any:
    """Returns the values of a JSON text.

    Raises:
        ValueError: it is no JSON, or is nested so deeply that no file of ours is.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def read_array(file: Path, mode: Literal["r", "c"] | None = "r") -> np.ndarray:
    """Returns the array of an ``.npy`` file, mapped into memory unless ``mode`` is None; no pickle in it is read.

    Raises:
        ValueError: the file is missing or no complete array; the reason is one line.
    """
    try:
        array = np.load(file, mmap_mode=mode, allow_pickle=False)
    except (OSError, ValueError, EOFError, OverflowError, MemoryError, SyntaxError, TokenError) as error:
        raise ValueError(str(error).partition("\n")[0] or type(error).__name__) from error
    if not isinstance(array, np.ndarray):
        raise ValueError("it is an archive of arrays")
    return array


def write_json(file: Path, content: Mapping[str, Any]) -> None:
    """Writes a JSON file; an interrupted call leaves the old file as it was."""
    write_text(file, json.dumps(content, indent=2) + "\n")


def write_array(file: Path, array: np.ndarray) -> None:
    """Writes an ``.npy`` file; an interrupted call leaves the old file as it was."""
    array = np.ascontiguousarray(array)
    with atomic_path(file) as temporary, temporary.open("wb") as stream:
        np.lib.format.write_array_header_1_0(stream, np.lib.format.header_data_from_array_1_0(array))
        stream.write(array.data)  # unlike np.save, this reports why it fails


def write_text(file: Path, text: str) -> None:
    """Writes a UTF-8 text file; an interrupted call leaves the old file as it was."""
    with atomic_path(file) as temporary:
        temporary.write_text(text, encoding="utf-8")


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
    """Returns the content of a UTF-8 text file, without the byte-order mark that some editors put before it.

    Raises:
        ValueError: not UTF-8.
    """
    try:
        return located(file).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: got bytes that are no UTF-8 text ({error}); save it as UTF-8") from error


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yields a temporary path, whose file is flushed and renamed to ``path`` on success, and removed on an error.

    What processes that were killed have left in the folder of ``path`` is deleted, see :func:`delete_left`.

    Raises:
        OSError: the file cannot be written, for example on a full disk; it names ``path``, whose old file is unchanged.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{_host()}.{os.getpid()}.tmp")
    with named_in_errors(path, temporary):
        path.parent.mkdir(parents=True, exist_ok=True)
        delete_left(path.parent)
        try:
            yield temporary
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.chmod(0o644)  # some writers make files that only their owner can read
            if path.is_dir():
                raise IsADirectoryError(errno.EISDIR, "a folder has the name of this file; move it away", str(path))
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


@functools.cache
def _host() -> str:
    """Returns a short name of this machine for temporary files, which other machines may see, too."""
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]


def delete_left(folder: Path) -> None:
    """Deletes the temporary files of :func:`atomic_path` in a folder whose process on this machine has ended.

    A process looks once into each folder, before it writes the first file there, so those of its own number are old.
    """
    with _LOOKING:
        if (place := folder.absolute()) in _LOOKED:
            return
        _LOOKED.add(place)
        for file in folder.glob(f".*.{_host()}.*.tmp"):
            number = file.name.split(".")[-2]
            if number.isdecimal() and (int(number) == os.getpid() or not _is_running(int(number))):
                file.unlink(missing_ok=True)


_LOOKING, _LOOKED = threading.Lock(), set[Path]()


def _forget_in_child() -> None:
    """Lets a forked child look anew: its number is another one, and a lock that a thread of its parent held is free."""
    global _LOOKING
    _LOOKING = threading.Lock()
    _LOOKED.clear()


os.register_at_fork(after_in_child=_forget_in_child)


def _is_running(number: int) -> bool:
    """Whether this machine has a process of that number."""
    try:
        os.kill(number, 0)
    except OSError as error:  # it is there if it only belongs to another user
        return error.errno != errno.ESRCH
    return True


@contextlib.contextmanager
def named_in_errors(path: Path, temporary: Path | None = None) -> Iterator[None]:
    """Names a file in the errors of writing it, also in those of libraries that have errors of their own.

    Args:
        path: the file.
        temporary: the name that it has while it is written.

    Raises:
        OSError: the file cannot be written.
    """
    try:
        yield
    except Exception as error:
        number = _full(error)
        if number is None and isinstance(error, OSError) and error.errno and error.filename is not None:
            number = error.errno if Path(error.filename) == temporary else None
        if number is None:
            raise
        raise OSError(number, os.strerror(number), str(path)) from error


def _full(error: BaseException | None) -> int | None:
    """Returns which number of :data:`FULL` an error is about, or was raised because of; None if it is another error."""
    while error is not None:
        for number in FULL:
            if getattr(error, "errno", None) == number or os.strerror(number) in str(error):
                return number
        error = error.__cause__ or error.__context__
    return None
