"""What lies in a folder after a piece of work: whole files, their digests without times, and the units of work in them.

Times differ between any two runs, so they are left out: the columns ``time/*`` of metrics, and in the card of an index
its times and the settings that were chosen by them. All other bytes count.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from ldm.checkpoint import read_contents, read_weights
from ldm.config import read_config
from rdm.retrieval.database.rows import RetrievalDatabase
from rdm.sampling.record import KEYWORD

MEASURED = ("build_seconds", "ms_per_query", "search", "recall")  # of an index: the fastest settings that suffice
UNFINISHED = (".partial.npy", "build.json", "append.json")  # names of files that say that the work goes on
DRAWN = ("losses.png",)  # of the metrics
BEGUN = ("loops", "fit_loop", "epoch_progress")  # counts the epochs that processes have begun, which steers nothing


def files_of(root: Path) -> Iterator[Path]:
    """Yields all files below a folder, in order."""
    return (file for file in sorted(root.rglob("*")) if file.is_file())


def is_final(file: Path) -> bool:
    """Whether a file has the name of a finished one."""
    return not file.name.startswith(".") and not file.name.endswith(UNFINISHED)


def broken_files(root: Path) -> list[str]:
    """Returns the files below a folder that have the names of finished ones and are not whole, each with the reason."""
    found = []
    for file in files_of(root):
        if any(part.startswith(".") for part in file.relative_to(root).parts) or not is_final(file):
            continue
        try:
            WHOLE.get(file.suffix, read_any)(file)
        except Exception as error:  # noqa: BLE001 (whatever reading a file that is not whole raises)
            found.append(f"{file.relative_to(root)}: {error}")
    return found


def read_any(file: Path) -> None:
    """Reads a file of any kind."""
    file.read_bytes()


def read_picture(file: Path) -> None:
    """Decodes a picture."""
    with Image.open(file) as picture:
        picture.load()


def read_archive(file: Path) -> None:
    """Checks the sums of an archive, which a checkpoint is."""
    with zipfile.ZipFile(file) as archive:
        if bad := archive.testzip():
            raise ValueError(f"{bad} is damaged")


def read_rows(file: Path) -> None:
    """Checks that all lines of a table of texts are whole."""
    lines = list(csv.reader(io.StringIO(file.read_text(encoding="utf-8"))))
    if not file.read_bytes().endswith(b"\n") or any(len(line) != len(lines[0]) for line in lines):
        raise ValueError("a line is cut")


WHOLE: dict[str, Callable[[Path], object]] = {
    ".json": lambda file: json.loads(file.read_bytes()),
    ".yaml": lambda file: read_config([file]),
    ".npy": lambda file: np.load(file, mmap_mode="r", allow_pickle=False),
    ".npz": read_archive,
    ".ckpt": read_archive,
    ".safetensors": read_weights,
    ".parquet": pq.read_table,
    ".png": read_picture,
    ".csv": read_rows,
}


def state(root: Path) -> dict[str, str]:
    """Returns the digest of each file below a folder by its path. Temporary files count, too."""
    metrics = sorted({file.parent for file in root.rglob("metrics*.csv")})
    found = {f"{run.relative_to(root)}/metrics": digest(all_metrics(run)) for run in metrics}
    for file in files_of(root):
        if not (file.name.startswith("metrics") and file.suffix == ".csv") and file.name not in DRAWN:
            found[str(file.relative_to(root))] = hashlib.sha256(content_of(file)).hexdigest()
    return found


def content_of(file: Path) -> bytes:
    """Returns the bytes of a file; of a checkpoint, its content; of a card with times, the rest.

    Equal checkpoints may differ in their bytes, because a pickle writes a text once if two entries share it.
    """
    if file.suffix == ".ckpt":
        contents = read_contents(file)
        with zipfile.ZipFile(file) as archive:
            numbers = [each.CRC for each in archive.infolist() if "/data/" in each.filename]
        shapes = {name: (tuple(tensor.shape), str(tensor.dtype)) for name, tensor in contents.tensors.items()}
        return repr((numbers, shapes, without(contents.others, BEGUN))).encode()
    if file.name == "healthy.json":  # what is usual since the run went on
        return json.dumps({**json.loads(file.read_bytes()), "usual_loss": 0}).encode()
    if file.name == "index.json":
        card = json.loads(file.read_bytes())
        return json.dumps({key: value for key, value in card.items() if key not in MEASURED}).encode()
    return file.read_bytes()


def all_metrics(run: Path) -> dict[str, dict[str, str]]:
    """Returns the metrics of a run by the step: what was logged last for it, in all files, without times."""
    found: dict[str, dict[str, str]] = {}
    for file in sorted(run.glob("metrics*.csv"), key=lambda each: each.stat().st_mtime_ns):
        with file.open(newline="", encoding="utf-8") as stream:
            for row in csv.DictReader(stream):
                known = {key: value for key, value in row.items() if value and not key.startswith("time/")}
                found.setdefault(row["step"], {}).update(known)
    return found


def without(content: Any, path: Sequence[str]) -> Any:
    """Returns nested entries without those of a path."""
    if not isinstance(content, Mapping) or path[0] not in content:
        return content
    rest = {} if len(path) == 1 else {path[0]: without(content[path[0]], path[1:])}
    return {key: rest.get(key, value) for key, value in content.items() if key != path[0] or rest}


def digest(content: Any) -> str:
    """Returns the digest of JSON values, whatever the order of their keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def units(root: Path) -> Counter[str]:
    """Returns the units of work below a folder: living rows of databases, steps in metrics, and images with a record.

    Raises:
        ValueError: a database is damaged.
    """
    found: Counter[str] = Counter()
    for card in sorted(root.rglob("database.json")):
        if not any(part.startswith(".") for part in card.relative_to(root).parts):
            database = RetrievalDatabase.open(card.parent)
            rows = np.flatnonzero(database.is_alive(np.arange(len(database))))
            found.update(f"row {card.parent.name} {each}" for each in database.values("sha256", rows))
    for run in {file.parent for file in root.rglob("metrics*.csv")}:
        found.update(f"step {step}" for step, row in all_metrics(run).items() if "train/loss" in row)
    for file in root.rglob("*.png"):
        if is_final(file):
            with Image.open(file) as picture:
                found.update([f"picture {file.name}"] if KEYWORD in getattr(picture, "text", {}) else [])
    return found
