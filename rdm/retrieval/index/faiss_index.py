"""Nearest-neighbour search by cosine similarity with faiss. Only this file imports faiss."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
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

from ldm.files import atomic_path, check_hash, file_hash, read_json
from ldm.locks import building, delete_left_lock
from rdm.retrieval.database.rows import RetrievalDatabase
from rdm.retrieval.index.exact import Neighbours, RowReader, unit_vectors
from rdm.retrieval.index.factory import budget, choose_factory
from rdm.retrieval.index.milvus_index import SCHEME, MilvusIndex
from rdm.retrieval.index.search import CARD, SearchIndex, is_current, new_card, read_card
from rdm.retrieval.index.tune import tune_and_measure

faiss: Any = _faiss  # its type stubs know little of its Python layer
__all__ = ["NeighbourIndex", "Neighbours"]
LOG = logging.getLogger(__name__)
_GPU_MAX_K = 2048  # faiss' limit
_PER_LIST = 42  # training rows per list; faiss asks for 39, and a row may be drawn twice
_SAMPLE = 65536  # least number of training rows
_TURNS = 25  # training iterations of a rotation
_MIN_MAPPED = 64_000_000


class NeighbourIndex(SearchIndex):
    """Searches the rows of one database with faiss.

    Args:
        database: the database.
        index: a faiss index over unit vectors with the inner product as metric.
        card: factory string, metric, rows, dim, measurements, and the fingerprint of the database.
        path: the folder of the index.
    """

    def __init__(self, database: RetrievalDatabase, index: Any, card: dict[str, Any], path: Path) -> None:
        held = card.get("bytes", 0)
        super().__init__(database, card, path, max(budget(card.get("ram")) - held, _MIN_MAPPED))
        self._cpu = index
        self._fast = _on_gpus(index)
        inner = _inner(index)
        self.exact = isinstance(index, faiss.IndexFlat | faiss.IndexIVFFlat | faiss.IndexHNSWFlat)
        self._lists = inner if isinstance(inner, faiss.IndexIVF) else None
        self.setting = "nprobe" if self._lists else "efSearch" if isinstance(inner, faiss.IndexHNSW) else ""

    @property
    def widest(self) -> int:
        """The value of the setting at which the index looks at every row."""
        return self._lists.nlist if self._lists else len(self) if self.setting else 1

    @classmethod
    def build(
        cls,
        database: RetrievalDatabase,
        factory: str | None = None,
        *,
        ram: int | str | None = None,
        texts: Callable[[], np.ndarray] | None = None,
        progress: bool = True,
    ) -> NeighbourIndex:
        """Returns an index over all rows of a database, tuned and measured; :meth:`save` writes it.

        The index is trained on a sample of the rows and filled block by block, so that only the index, the sample and
        one block are in memory.

        Args:
            database: the database.
            factory: faiss' factory string; ``Flat`` is exact. None chooses by the rows, their width and ``ram``.
            ram: memory that the search may use for the index and for mapped rows of the database, in bytes or as a size
                such as ``2GB``, which is the default.
            texts: returns vectors of real texts ``[M, D] float32`` to tune and measure with, see
                :func:`rdm.retrieval.index.tune.caption_vectors`; None uses shifted rows instead.
            progress: show progress bars.

        Raises:
            ValueError: faiss does not know the factory string or cannot train it on so few rows, a row is zero, or
                the memory does not suffice.
        """
        start, allowed = time.perf_counter(), budget(ram)
        factory = factory or choose_factory(len(database), database.dim, allowed)
        index = _trained(factory, database, progress)
        bar = tqdm(total=len(database), unit="row", unit_scale=True, desc=f"index {factory}", disable=not progress)
        with bar:
            for block in database.blocks():
                index.add(unit_vectors(block, "row", index.ntotal))
                bar.update(len(block))
        built = cls(database, index, new_card(database, factory, allowed), database.path / "index")
        tune_and_measure(built, texts, progress=progress)
        built.card["build_seconds"] = round(time.perf_counter() - start, 1)
        return built

    @classmethod
    def load(cls, database: RetrievalDatabase, path: str | Path | None = None) -> NeighbourIndex:
        """Returns the saved index of a database, memory-mapped if faiss can do that.

        Args:
            database: the database that the index must belong to.
            path: its folder; None for ``index`` within the database.

        Raises:
            FileNotFoundError: there is none.
            ValueError: it belongs to another database or is damaged.
        """
        path = Path(path or database.path / "index")
        card = read_card(database, path, ("sha256",))
        check_hash(path / "index.faiss", card["sha256"], f"delete {path} and build it again")
        try:
            index = faiss.read_index(str(path / "index.faiss"), _read_flags(card["factory"]))
        except RuntimeError as error:
            raise ValueError(
                f"{path / 'index.faiss'} is no index of faiss; delete {path} and build it again"
            ) from error
        return cls(database, index, card, path)

    @classmethod
    def open(
        cls,
        database: RetrievalDatabase,
        factory: str | None = None,
        *,
        ram: int | str | None = None,
        replace: bool = False,
        before_saving: Callable[[SearchIndex], None] | None = None,
        **options: Any,
    ) -> SearchIndex:
        """Returns the index in the folder of a database; builds and saves it first if there is none.

        An index with another factory or memory budget than the given one is built again. Of several processes, one
        builds and the others wait for it.

        Args:
            database: the database.
            factory: see :meth:`build`; ``milvus:`` followed by the URI of a cluster or the name of a file uses Milvus.
            ram: see :meth:`build`.
            replace: whether an index of other rows, as after an append, is built again; otherwise it is an error.
            before_saving: what is done with an index that is built, before it is saved. A process that is killed
                meanwhile leaves no index, so that the next one does it again.
            options: further arguments of :meth:`build`.
        """
        path = database.path / "index"

        def wanted() -> SearchIndex | None:
            if not (path / CARD).is_file():
                return None
            card = {} if replace and not is_current(database, path) else read_card(database, path)
            same = factory in (None, card.get("factory")) and (ram is None or budget(ram) == card.get("ram"))
            return index_class(card["factory"]).load(database) if card and same else None

        if (found := wanted()) is not None:
            delete_left_lock(path)
            return found
        with building(path):
            if (found := wanted()) is not None:  # built by another process meanwhile
                return found
            built = index_class(factory).build(database, factory, ram=ram, **options)
            if before_saving is not None:
                before_saving(built)
            built.save()
        return built

    def save(self, path: str | Path | None = None) -> None:
        """Writes ``index.faiss`` and, last, its card.

        Args:
            path: folder; None for ``index`` within the database.

        Raises:
            OSError: the index cannot be written, for example on a full disk; an earlier one is unchanged.
        """
        self.path = Path(path or self.path)
        with atomic_path(self.path / "index.faiss") as temporary:
            with temporary.open("wb") as file:  # faiss itself overlooks that the end of a file cannot be written
                faiss.write_index(self._cpu, faiss.PyCallbackIOWriter(file.write))
            (self.path / CARD).unlink(missing_ok=True)  # so that a half-replaced index is not taken for a complete one
        self.card["bytes"] = (self.path / "index.faiss").stat().st_size
        self.card["sha256"] = file_hash(self.path / "index.faiss")
        super().save()

    def candidates(
        self, unit: np.ndarray, count: int, breadth: int, allowed: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns the candidates that faiss finds, see :meth:`SearchIndex.candidates`."""
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
        return rows.astype(np.int64, copy=False), scores


def current_index(database: RetrievalDatabase, *, progress: bool = True) -> SearchIndex:
    """Returns the index of a database; one of other rows is built again, of the same kind and for the same memory."""
    file = database.path / "index" / CARD
    card = read_json(file, "delete it") if file.is_file() else {}
    return NeighbourIndex.open(database, card.get("factory"), ram=card.get("ram"), replace=True, progress=progress)


def index_class(factory: str | None) -> Any:
    """Returns the class of the index that a factory string describes."""
    return MilvusIndex if (factory or "").startswith(SCHEME) else NeighbourIndex


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


def _trained(factory: str, database: RetrievalDatabase, progress: bool) -> Any:
    """Returns an empty index that is trained on a random sample of the rows and ready to be filled."""
    try:
        index = faiss.index_factory(database.dim, factory, faiss.METRIC_INNER_PRODUCT)
    except (RuntimeError, TypeError) as error:  # the latter for a text that is none
        reason = str(error).strip().splitlines()[-1]
        raise ValueError(f"faiss knows no index '{factory}'; use 'Flat' ({reason})") from error
    if index.is_trained:
        return index
    inner = _inner(index)
    lists = inner.nlist if isinstance(inner, faiss.IndexIVF) else 1
    if len(database) < lists:
        raise ValueError(
            f"index '{factory}' has {lists} lists and needs as many rows, got {len(database)}; use fewer or 'Flat'"
        )
    if lists > 1 and getattr(faiss, "get_num_gpus", int)():
        inner.clustering_index = faiss.index_cpu_to_all_gpus(faiss.IndexFlatIP(inner.d))
    rotations = _use_short_codes(index)
    size, rng = max(_SAMPLE, _PER_LIST * lists), np.random.default_rng(0)
    rows = np.arange(len(database)) if len(database) <= size else np.unique(rng.integers(0, len(database), size))
    sample, read = np.empty((len(rows), database.dim), np.float32), RowReader(database, _MIN_MAPPED)
    for start in tqdm(range(0, len(rows), _SAMPLE), desc="index sample", disable=not progress, leave=False):
        part = rows[start : start + _SAMPLE]
        sample[start : start + len(part)] = unit_vectors(read(part).astype(np.float32), "row")
    LOG.info("training index %s on %d of %d rows", factory, len(rows), len(database))
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
