"""Imports databases of other projects: copies CompVis' ``.npz`` parts, reads clip-retrieval's folders in place."""

from __future__ import annotations

import logging
import re
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from tokenize import TokenError
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from ldm.files import file_hash, read_array, write_json
from ldm.util import in_one_line
from rdm.retrieval.builder.work import SHARD_ROWS
from rdm.retrieval.database.rows import FORMAT, RetrievalDatabase
from rdm.retrieval.database.shards import CARD, NUMBERS, explained, metadata_schema, new_folder, open_shard, write_shard
from rdm.retrieval.embedder import Embedder, to_half

LOG = logging.getLogger(__name__)
_DAMAGED = (
    *(OSError, ValueError, LookupError, EOFError, TypeError, OverflowError, SyntaxError, TokenError, MemoryError),
    *(zipfile.BadZipFile, zlib.error, NotImplementedError),
)
# Boxes are stored with the rows, but the location of the pictures is unknown.
_SOURCE = {"source": {}, "patches": {"policy": "imported"}}


def import_database(
    paths: Sequence[str | Path],
    output: str | Path,
    embedder: Embedder,
    *,
    shard_rows: int = SHARD_ROWS,
    progress: bool = True,
) -> RetrievalDatabase:
    """Returns a database of rows that another project embedded.

    Args:
        paths: CompVis' ``.npz`` parts (``embedding``, ``img_id``, ``patch_coords``) or folders of them; or one folder
            of clip-retrieval (``img_emb/*.npy``, ``metadata/*.parquet``), whose files are read where they are and must
            stay there. The files of a folder are read in the order of their numbers. CompVis' own code used the order
            of its disk, on which the row numbers of an ``nn_memory`` of several parts depend.
        output: folder of the new database; an import that is stopped leaves nothing behind.
        embedder: the embedder that made the vectors, which cannot be checked.
        shard_rows: rows per shard when rows are copied.
        progress: show a progress bar.

    Raises:
        FileNotFoundError: there is no such file or folder.
        ValueError: the files have none of these forms or are damaged, or the width of the vectors is not that of the
            embedder.
        OSError: the disk is full.
    """
    output, given = Path(output), [Path(path) for path in paths]
    in_place = len(given) == 1 and (given[0] / "img_emb").is_dir()
    parts = [] if in_place else [part for path in given for part in _parts_of(path)]
    with explained(output, "nothing of it is left"), new_folder(output) as folder:
        if in_place:
            shards = _in_place(given[0], embedder, progress)
        else:
            shards = list(_copied(parts, folder, embedder, shard_rows, progress))
        card = {
            "format": FORMAT,
            "embedder": {"name": embedder.name, "fingerprint": embedder.fingerprint},
            "dim": embedder.dim,
            "dtype": "float16",
            "rows": sum(shard["rows"] for shard in shards),
            "sources": [{**_SOURCE, "shards": len(shards)}],
            "shards": shards,
        }
        write_json(folder / CARD, card)
    return RetrievalDatabase.open(output, embedder)


def numbered(files: Iterator[Path]) -> list[Path]:
    """Sorts files by the last numbers in their names, so that ``9x512-part_2`` comes before ``8x512-part_10``."""
    return sorted(files, key=lambda file: ([int(part) for part in re.findall(r"\d+", file.stem)][::-1], file.name))


def _parts_of(path: Path) -> list[Path]:
    parts = numbered(path.glob("*.npz")) if path.is_dir() else [path]
    if not parts or not parts[0].is_file():
        raise FileNotFoundError(
            f"no .npz part and no folder img_emb at {path}; name files of CompVis or a folder of clip-retrieval"
        )
    return parts


def _copied(
    parts: Sequence[Path], folder: Path, embedder: Embedder, shard_rows: int, progress: bool
) -> Iterator[dict[str, Any]]:
    """Writes the rows of CompVis' parts into shards and yields their lines of the shard table."""
    number, schema = 0, metadata_schema()
    bar = tqdm(unit="row", unit_scale=True, desc="import", disable=not progress)
    with bar:
        for part in parts:
            first = 0
            for vectors, ids, boxes in _blocks(part, embedder, shard_rows):
                table = _metadata(part, first, ids, boxes, schema)
                try:
                    half = to_half(vectors, table["image_id"].to_pylist())
                except ValueError as error:
                    raise ValueError(f"{part}: {error}") from error
                yield write_shard(folder, f"{number:05d}", half, table)
                number, first = number + 1, first + len(ids)
                bar.update(len(ids))


def _metadata(part: Path, first: int, ids: np.ndarray, boxes: np.ndarray, schema: pa.Schema) -> pa.Table:
    """Returns the metadata of some rows of a part.

    Raises:
        ValueError: a picture's number or a box has another type.
    """
    known: dict[str, Any] = dict(zip(NUMBERS[1:], boxes.T, strict=True))
    known["uri"] = [f"{part.name}#{row}" for row in range(first, first + len(ids))]
    known["item"] = ids if ids.dtype.kind in "iu" else np.full(len(ids), -1)
    empty = [""] * len(ids)
    try:
        known["image_id"] = ids.astype(str)
        columns = [pa.array(known.get(field.name, empty)).cast(field.type) for field in schema]
    except (ValueError, TypeError, pa.ArrowException) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"{part}: {reason}; expected numbers or names in img_id, and whole numbers in patch_coords"
        ) from error
    return pa.Table.from_arrays(columns, schema=schema)


def _blocks(part: Path, embedder: Embedder, size: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yields vectors ``[n, D] float32``, picture numbers ``[n]`` and boxes ``[n, 4]`` of a part, block by block."""
    try:
        with zipfile.ZipFile(part) as archive:
            arrays = [_Rows(archive.open(f"{name}.npy")) for name in ("embedding", "img_id", "patch_coords")]
            count = arrays[0].shape[0]
            for array, expected in zip(arrays, ((embedder.dim,), (), (4,)), strict=True):
                if array.shape != (count, *expected):
                    raise ValueError(f"an array has shape {array.shape}, expected {(count, *expected)}")
            for start in range(0, count, size):
                vectors, ids, boxes = (array.read(min(size, count - start)) for array in arrays)
                yield vectors.astype(np.float32), ids, boxes
    except _DAMAGED as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise ValueError(
            f"{part} is not a complete part with vectors of {embedder.dim} numbers ({reason}); fetch it again, or name "
            "the embedder that made it"
        ) from error


class _Rows:
    """Reads an array of an ``.npz`` file row by row, because its compressed bytes can only be read in order.

    Args:
        stream: the file of the array within the archive.
    """

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        self.shape, by_column, self.dtype = header[np.lib.format.read_magic(stream)](stream)
        if by_column or self.dtype.hasobject:
            raise ValueError(f"an array of {self.dtype} is stored by column or holds objects")

    def read(self, count: int) -> np.ndarray:
        """Returns the next rows."""
        wanted = count * self.dtype.itemsize * int(np.prod(self.shape[1:]))
        data = self._stream.read(wanted)
        if len(data) != wanted:
            raise EOFError("the file ends early")
        return np.frombuffer(data, self.dtype).reshape(count, *self.shape[1:])


def _in_place(folder: Path, embedder: Embedder, progress: bool) -> list[dict[str, Any]]:
    """Returns the shard table of clip-retrieval's files, with their paths."""
    files = [numbered((folder / part).glob(f"*{end}")) for part, end in (("img_emb", ".npy"), ("metadata", ".parquet"))]
    if not files[0] or len(files[0]) != len(files[1]):
        raise ValueError(
            f"{folder} has {len(files[0])} files in img_emb and {len(files[1])} in metadata, expected one for each"
        )
    shards = []
    for number, (vectors, metadata) in enumerate(
        tqdm(list(zip(*files, strict=True)), desc="import", disable=not progress)
    ):
        try:
            rows, dtype = pq.read_metadata(metadata).num_rows, read_array(vectors).dtype
        except (OSError, ValueError, pa.ArrowException) as error:
            reason = in_one_line(error)
            raise ValueError(f"{vectors} or {metadata} is damaged ({reason}); restore it") from error
        if dtype not in (np.float16, np.float32):
            raise ValueError(f"{vectors} holds {dtype}, expected float16 or float32")
        open_shard(vectors, rows, embedder.dim, str(dtype))
        shards.append(
            {
                "name": f"{number:05d}",
                "rows": rows,
                "embeddings": file_hash(vectors),
                "metadata": file_hash(metadata),
                "dtype": str(dtype),
                "files": {"embeddings": str(vectors.absolute()), "metadata": str(metadata.absolute())},
            }
        )
    return shards
