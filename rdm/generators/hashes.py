"""The hashes by which a record names a pipeline, its adapter and the adapter's image encoder."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

from ldm.files import file_hash
from rdm.generators.pipeline import DiffusersPipeline

WEIGHTS, TEXTS = (".safetensors", ".bin"), (".json", ".txt", ".model")


def hashes_of(pipeline: DiffusersPipeline) -> dict[str, str]:
    """Returns ``pipeline_sha256``, ``adapter_sha256`` and, if there is an encoder, ``image_encoder_sha256``.

    Each file is read once in a process.
    """
    found = {"pipeline_sha256": _folder(pipeline.folder), "adapter_sha256": _file(pipeline.adapter.path)}
    return found if pipeline.encoder is None else {**found, "image_encoder_sha256": _folder(pipeline.encoder)}


def _file(file: Path) -> str:
    known = file.stat()
    return _hash(file, known.st_size, known.st_mtime_ns)


@functools.cache
def _hash(file: Path, size: int, time: int) -> str:  # noqa: ARG001 (a file that is written anew has others)
    return file_hash(file)


def _folder(folder: Path) -> str:
    """Returns the hash over the names and hashes of configs, vocabularies and weights in a folder and those below it.

    Weights in the form of pickles are left out if the same folder has them in that of safetensors.
    """
    digest = hashlib.sha256()
    for file in sorted(path for path in folder.rglob("*") if path.suffix in (*WEIGHTS, *TEXTS) and path.is_file()):
        if file.suffix == ".bin" and any(file.parent.glob("*.safetensors")):
            continue
        digest.update(f"{file.relative_to(folder).as_posix()} {_file(file)}\n".encode())
    return digest.hexdigest()
