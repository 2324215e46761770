"""Model repositories of the Hugging Face hub: fetches one into the cache, and pushes a folder.

Only data are fetched: weights as safetensors, and files of texts and arrays. Pickles, indexes of faiss and code stay on
the hub.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

LOG = logging.getLogger(__name__)
SCHEME = "hf:"
FETCHED = ("*.safetensors", "*.yaml", "*.json", "*.txt", "*.md", "*.npy", "*.npz", "*.parquet", "pictures/*")
NEVER = ("*.ckpt", "*.pt", "*.pth", "*.bin", "*.pkl", "*.p", "*.py", "*.faiss")


def is_hub(name: object) -> bool:
    """Returns whether a name stands for a repository of the hub, as ``hf:owner/name`` does."""
    return isinstance(name, str) and name.startswith(SCHEME)


def repository(name: str) -> tuple[str, str | None]:
    """Returns owner and name of a repository, and its revision if ``hf:owner/name@revision`` states one.

    Raises:
        ValueError: the name has another form.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    repo, at, revision = name.removeprefix(SCHEME).partition("@")
    try:
        validate_repo_id(repo)
        fits = repo.count("/") == 1 and bool(revision) == bool(at)
    except HFValidationError:
        fits = False
    if not fits:
        raise ValueError(f"got the repository '{name}', expected {SCHEME}owner/name or {SCHEME}owner/name@revision")
    return repo, revision or None


def fetched_repository(name: str) -> Path:
    """Returns the folder of a model repository in the hub's cache; files that are not there are downloaded.

    Without a network, what is in the cache is used.

    Args:
        name: see :func:`repository`. Without a revision, this is the newest one.

    Raises:
        ValueError: there is no such repository or revision, or no right to read it.
        FileNotFoundError: it is not in the cache, and the hub cannot be reached.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RevisionNotFoundError

    repo, revision = repository(name)
    try:
        with _in_one_line(name, f"would have downloaded its files {' '.join(FETCHED)}, whose sizes the hub knows"):
            folder = snapshot_download(repo, revision=revision, allow_patterns=[*FETCHED], ignore_patterns=[*NEVER])
    except RevisionNotFoundError as error:
        raise ValueError(f"{SCHEME}{repo} has no revision '{revision}'; correct it, or leave it out") from error
    except LocalEntryNotFoundError as error:
        raise FileNotFoundError(
            f"{name} is not in the cache as a whole, and the hub cannot be reached; with a network, this would have "
            f"downloaded its files {' '.join(FETCHED)}, whose sizes the hub knows"
        ) from error
    except HfHubHTTPError as error:
        raise ValueError(_refused(name, error, "read")) from error
    return Path(folder)


def in_cache(folder: Path) -> bool:
    """Returns whether a folder belongs to the cache of the hub."""
    from huggingface_hub import constants

    return folder.absolute().is_relative_to(Path(constants.HF_HUB_CACHE).expanduser().absolute())


def push(folder: str | Path, name: str) -> str:
    """Uploads the files of a folder as one commit, and returns the address of the repository.

    A repository that does not exist is made, and is private. Hidden files are left out.

    Args:
        folder: the folder.
        name: see :func:`repository`; the revision is a branch that exists.

    Raises:
        ValueError: there is no right to write, or the hub refuses a file.
        FileNotFoundError: the hub cannot be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    repo, revision = repository(name)
    api, listed = HfApi(), listing(folder)
    try:
        with _in_one_line(name, f"would have pushed {listed}; the folder is {folder}, push it with a network"):
            api.create_repo(repo, private=True, exist_ok=True)
            api.upload_folder(
                repo_id=repo,
                folder_path=str(folder),
                revision=revision,
                commit_message="Add model",
                ignore_patterns=[".*", "**/.*"],
            )
    except (HfHubHTTPError, LocalTokenNotFoundError) as error:
        raise ValueError(f"{_refused(name, error, 'write')}; this would have pushed {listed} of {folder}") from error
    return f"{api.endpoint}/{repo}"


def listing(folder: str | Path) -> str:
    """Returns the number and the size of the files in a folder, without hidden ones, and the size of each entry."""
    folder, sizes = Path(folder), dict[str, int]()
    found = [(each.relative_to(folder), each.stat().st_size) for each in sorted(folder.rglob("*")) if each.is_file()]
    files = [(inside, size) for inside, size in found if not any(part.startswith(".") for part in inside.parts)]
    for inside, size in files:
        entry = inside.parts[0] + ("/" if len(inside.parts) > 1 else "")
        sizes[entry] = sizes.get(entry, 0) + size
    each = ", ".join(f"{entry} {size / 1e6:.3g} MB" for entry, size in sizes.items())
    return f"{len(files)} files, {sum(sizes.values()) / 1e6:.3g} MB ({each})"


@contextmanager
def _in_one_line(name: str, would: str) -> Iterator[None]:
    """Turns the errors of a hub that cannot be reached into one line, which says what would have been done."""
    from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled

    try:
        yield
    except HfHubHTTPError:
        raise
    except (HTTPError, OfflineModeIsEnabled) as error:
        raise FileNotFoundError(f"{name}: the hub cannot be reached; this {would}") from error


def _refused(name: str, error: Any, what: str) -> str:
    """Returns the message of an answer of the hub that is an error, or of a missing login."""
    code = getattr(getattr(error, "response", None), "status_code", None)
    if code is None or code in (401, 403, 404):
        said = "without a login" if code is None else f"with the status {code}"
        return f"{name}: there is no such repository or no right to {what} it ({said}); log in with 'hf auth login'"
    return f"{name}: the hub answered with the status {code}; try again later"


def card_metadata(licence: str, tags: list[str]) -> str:
    """Returns the metadata at the top of a model card, between lines of ``---``.

    Args:
        licence: the hub's identifier, such as ``mit`` or ``cc-by-4.0``, or ``other``.
        tags: tags of the model.
    """
    from huggingface_hub import ModelCardData

    stated: Any = {"license_name": "see-below"} if licence == "other" else {}
    data = ModelCardData(license=licence, tags=tags, **stated)
    return f"---\n{data.to_yaml()}\n---"
