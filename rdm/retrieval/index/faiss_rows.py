"""Some rows of a database in a faiss index. Only this file imports faiss."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch  # before faiss: both bring an OpenMP runtime, and the first one loaded is used
from tqdm import tqdm

from ldm.util import to_install  # isort: skip

try:
    import faiss as _faiss
except ModuleNotFoundError as error:
    raise ValueError(f"no faiss, which searches: {to_install('cpu')}, or with [gpu] for an NVIDIA GPU") from error

from ldm.files import atomic_path, file_hash
from rdm.retrieval.database.rows import RetrievalDatabase
from rdm.retrieval.index.exact import RowReader, unit_vectors
from rdm.retrieval.index.factory import MIN_MAPPED
from rdm.retrieval.index.search import CARD

faiss: Any = _faiss  # its type stubs know little of its Python layer
LOG = logging.getLogger(__name__)
_GPU_MAX_K = 2048  # faiss' limit
_PER_LIST = 42  # training rows per list; faiss asks for 39, and a row may be drawn twice
_SAMPLE = 65536  # least number of training rows
_TURNS = 25  # training iterations of a rotation


class FaissRows:
    """A faiss index over some consecutive rows of a database: all of them, or a part.

    Args:
        index: over unit vectors with the inner product as metric.
        first: number of its first row in the database.

    Attributes:
        setting: see :class:`SearchIndex`.
        exact: see there.
        widest: the value of the setting at which every row is looked at.
    """

    def __init__(self, index: Any, first: int = 0) -> None:
        self.first, self._cpu, self._fast = first, index, _on_gpus(index)
        inner = _inner(index)
        self.exact = isinstance(index, faiss.IndexFlat | faiss.IndexIVFFlat | faiss.IndexHNSWFlat)
        lists = inner.nlist if isinstance(inner, faiss.IndexIVF) else 0
        self.setting = "nprobe" if lists else "efSearch" if isinstance(inner, faiss.IndexHNSW) else ""
        self.widest = int(lists or (index.ntotal if self.setting else 1))

    @classmethod
    def build(cls, database: RetrievalDatabase, factory: str, rows: range, progress: bool = True) -> FaissRows:
        """Returns an index over some rows.

        It is trained on a sample of the rows and filled block by block, so that only the index, the sample and one
        block are in memory.

        Args:
            database: the database.
            factory: faiss' factory string.
            rows: the rows, with a step of 1.
            progress: show progress bars.

        Raises:
            ValueError: faiss does not know the factory string or cannot train it on so few rows, or a row is zero.
        """
        index = _trained(factory, database, rows, progress)
        bar = tqdm(total=len(rows), unit="row", unit_scale=True, desc=f"index {factory}", disable=not progress)
        with bar:
            for block in database.blocks(rows=rows):
                index.add(unit_vectors(block, "row", rows.start + index.ntotal))
                bar.update(len(block))
        return cls(index, rows.start)

    @classmethod
    def read(cls, file: Path, factory: str, first: int = 0) -> FaissRows:
        """Returns the index in a file, memory-mapped if faiss can do that.

        Raises:
            ValueError: the file is no index of faiss.
        """
        try:
            return cls(faiss.read_index(str(file), _read_flags(factory)), first)
        except RuntimeError as error:
            raise ValueError(f"{file} is no index of faiss; delete {file.parent} and build it again") from error

    def write(self, file: Path) -> dict[str, Any]:
        """Writes the index to a file and returns its ``bytes`` and ``sha256``.

        Raises:
            OSError: it cannot be written, for example on a full disk; an earlier file is unchanged.
        """
        with atomic_path(file) as temporary:
            with temporary.open("wb") as opened:  # faiss itself overlooks that the end of a file cannot be written
                faiss.write_index(self._cpu, faiss.PyCallbackIOWriter(opened.write))
            (file.parent / CARD).unlink(
                missing_ok=True
            )  # so that a half-replaced index is not taken for a complete one
        return {"bytes": file.stat().st_size, "sha256": file_hash(file)}

    def candidates(
        self, unit: np.ndarray, count: int, breadth: int, allowed: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns the candidates that faiss finds, with their numbers in the database.

        For arguments see :meth:`SearchIndex.candidates`; ``allowed`` has a value for each row of this index.
        """
        if torch.utils.data.get_worker_info() is not None:
            faiss.omp_set_num_threads(1)  # a search with threads can hang in a forked data-loader worker
        options: dict[str, Any] = {self.setting: breadth} if self.setting else {}
        if allowed is not None:
            options["sel"] = faiss.IDSelectorBitmap(np.packbits(allowed, bitorder="little"))
        kinds = {"nprobe": faiss.SearchParametersIVF, "efSearch": faiss.SearchParametersHNSW}
        params = kinds.get(self.setting, faiss.SearchParameters)(**options)
        if isinstance(self._cpu, faiss.IndexPreTransform):
            params = faiss.SearchParametersPreTransform(index_params=params)
        on_gpu = self._fast is not self._cpu and allowed is None and count <= _GPU_MAX_K
        scores, rows = (self._fast if on_gpu else self._cpu).search(unit, count, params=params)
        rows = rows.astype(np.int64, copy=False)
        return np.where(rows < 0, rows, rows + self.first) if self.first else rows, scores


def _on_gpus(index: Any) -> Any:
    """Returns the index copied to every GPU that faiss sees; the index itself if there is no GPU that can hold it."""
    if getattr(faiss, "get_num_gpus", int)() == 0 or not hasattr(faiss, "index_cpu_to_all_gpus"):
        return index
    try:
        return faiss.index_cpu_to_all_gpus(index)
    except RuntimeError as error:  # codes searched in a CPU's registers, graphs
        LOG.info("the index stays on the CPU: %s", str(error).splitlines()[0])
        return index


def _inner(index: Any) -> Any:
    """Returns the index at the end of a chain of vector transforms."""
    while isinstance(index, faiss.IndexPreTransform):
        index = faiss.downcast_index(index.index)
    return index


def _read_flags(factory: str) -> int:
    """Returns faiss' flags for reading an index: map it, unless it has 4-bit codes, which faiss copies in any case."""
    if "fs" in factory:
        return 0
    return faiss.IO_FLAG_MMAP if "IVF" in factory else faiss.IO_FLAG_MMAP_IFC


def _trained(factory: str, database: RetrievalDatabase, within: range, progress: bool) -> Any:
    """Returns an empty index that is trained on a random sample of some rows and ready to be filled."""
    try:
        index = faiss.index_factory(database.dim, factory, faiss.METRIC_INNER_PRODUCT)
    except (RuntimeError, TypeError) as error:  # the latter for a text that is none
        reason = str(error).strip().splitlines()[-1]
        raise ValueError(f"faiss knows no index '{factory}'; use 'Flat' ({reason})") from error
    if index.is_trained:
        return index
    inner = _inner(index)
    lists = inner.nlist if isinstance(inner, faiss.IndexIVF) else 1
    if len(within) < lists:
        raise ValueError(
            f"index '{factory}' has {lists} lists and needs as many rows, got {len(within)}; use fewer or 'Flat'"
        )
    if lists > 1 and getattr(faiss, "get_num_gpus", int)():
        inner.clustering_index = faiss.index_cpu_to_all_gpus(faiss.IndexFlatIP(inner.d))
    rotations = _use_short_codes(index)
    size, rng = max(_SAMPLE, _PER_LIST * lists), np.random.default_rng(0)
    few = len(within) <= size
    rows = within.start + (np.arange(len(within)) if few else np.unique(rng.integers(0, len(within), size)))
    sample, read = np.empty((len(rows), database.dim), np.float32), RowReader(database, MIN_MAPPED)
    for start in tqdm(range(0, len(rows), _SAMPLE), desc="index sample", disable=not progress, leave=False):
        part = rows[start : start + _SAMPLE]
        sample[start : start + len(part)] = unit_vectors(read(part).astype(np.float32), "row")
    LOG.info("training index %s on %d of %d rows", factory, len(rows), len(within))
    try:
        index.train(sample)
    except RuntimeError as error:
        raise ValueError(f"faiss cannot train '{factory}' on {len(rows)} rows: {error}; use 'Flat'") from error
    for rotation, _ in rotations:
        rotation.pq = None
    return index


def _use_short_codes(index: Any) -> list[tuple[Any, Any]]:
    """Makes faiss train the rotations (OPQ) of an index with 4-bit codes for such codes.

    By default faiss trains rotations for 8-bit codes, which takes sixteen times as long and fits less well.

    Returns:
        Pairs of a rotation and the quantiser that it refers to, which must be kept until the rotation is trained.
    """
    inner, borrowed = _inner(index), []
    while isinstance(index, faiss.IndexPreTransform):
        for place in range(index.chain.size()):
            rotation = faiss.downcast_VectorTransform(index.chain.at(place))
            if isinstance(rotation, faiss.OPQMatrix) and isinstance(inner, faiss.IndexIVFPQFastScan):
                codes = faiss.ProductQuantizer(rotation.d_out, rotation.M, inner.pq.nbits)
                rotation.pq, rotation.niter = codes, _TURNS
                borrowed.append((rotation, codes))
        index = faiss.downcast_index(index.index)
    return borrowed
