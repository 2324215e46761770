"""The neighbours of every training picture, found once before training, and the popularity counted from them.

A table is a folder with ``neighbours.npy`` ``[images, K]``, memory-mapped, and its card ``neighbours.json``.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from ldm.files import check_hash, file_hash, read_json, write_json
from rdm.retrieval.database import RetrievalDatabase
from rdm.retrieval.embedder import Embedder, embed_images, image_id, picture_hash, to_pixels

if TYPE_CHECKING:  # faiss is needed to build a table, not to read one
    from rdm.retrieval.search import SearchIndex

LOG = logging.getLogger(__name__)
FORMAT = 1
CARD, ROWS = "neighbours.json", "neighbours.npy"
PLAN, PARTIAL = "build.json", "neighbours.partial.npy"
NEAR_DUPLICATE = 0.999  # cosine similarity of two copies of a picture in another file format or size
_BATCH = 256
_REUSE_ROWS = 2_000_000  # above this the hashes of the database's pictures are not held in memory


class NeighbourTable:
    """Row ``i`` holds the K nearest database rows of the picture delivered as item ``i``, best first.

    Args:
        path: the folder.
        card: what its ``neighbours.json`` holds.

    Attributes:
        rows: ``[images, K]`` integers, memory-mapped.
        k: neighbours stored per picture, K.
    """

    def __init__(self, path: Path, card: Mapping[str, Any]) -> None:
        self.path = path
        self.card = dict(card)
        self.k: int = card["k"]
        self.rows = np.load(path / ROWS, mmap_mode="r", allow_pickle=False)

    @classmethod
    def open(cls, path: str | Path, database: RetrievalDatabase) -> NeighbourTable:
        """Returns the table in a folder.

        Raises:
            FileNotFoundError: there is none.
            ValueError: it is damaged or belongs to another database.
        """
        path = Path(path)
        if not (path / CARD).is_file():
            raise FileNotFoundError(
                f"no neighbour table at {path}; make it with scripts/search_neighbors.py --output {path}"
            )
        remedy = "rerun scripts/search_neighbors.py"
        card = read_json(path / CARD, remedy)
        if card.get("format") != FORMAT or card.get("database") != database.fingerprint:
            raise ValueError(
                f"neighbour table {path} is of the database with fingerprint {card.get('database')}, "
                f"got {database.path} with fingerprint {database.fingerprint}; {remedy}"
            )
        check_hash(path / ROWS, card["sha256"], remedy)
        return cls(path, card)

    def __len__(self) -> int:
        """Returns the number of pictures."""
        return len(self.rows)

    def __reduce__(self) -> tuple[Any, ...]:
        """Travels to worker processes as its path and card."""
        return type(self), (self.path, self.card)

    def check_k(self, k: int) -> None:
        """Checks that k neighbours per picture are stored.

        Raises:
            ValueError: k is below 1 or more than the table holds.
        """
        if not 1 <= k <= self.k:
            raise ValueError(
                f"neighbour table holds {self.k} neighbours per image, config asks for k={k}; "
                f"rerun scripts/search_neighbors.py --k {max(k, 1)}"
            )

    def popularity(self, k: int) -> np.ndarray:
        """Returns how many pictures have each row among their first k neighbours, ``[N] int64``.

        Divided by ``k * len(table)`` this is the proposal distribution p_D (Blattmann et al. 2022,
        section 3.2).

        Raises:
            ValueError: the table holds fewer than k neighbours per picture.
        """
        self.check_k(k)
        return np.bincount(self.rows[:, :k].ravel(), minlength=self.card["database_rows"]).astype(np.int64)


def prepare_neighbour_table(
    path: str | Path,
    images: Any,
    embedder: Embedder,
    database: RetrievalDatabase,
    index: SearchIndex,
    *,
    k: int = 20,
    near_duplicate: float = NEAR_DUPLICATE,
    progress: bool = True,
) -> NeighbourTable:
    """Returns the table at ``path``, built anew unless it is the one asked for with at least k neighbours.

    Takes the arguments of :func:`build_neighbour_table` and raises what it raises.
    """
    path = Path(path)
    plan = _new_plan(images, database, k, near_duplicate)
    if (path / CARD).is_file():
        card = read_json(path / CARD, f"delete {path}")
        differs = [key for key in plan if key != "k" and card.get(key) != plan[key]]
        if not differs and card["k"] >= k:
            return NeighbourTable.open(path, database)
        LOG.warning("neighbour table %s differs in %s; making it again", path, ", ".join(differs) or "k")
    return build_neighbour_table(
        path, images, embedder, database, index, k=k, near_duplicate=near_duplicate, progress=progress
    )


def build_neighbour_table(
    path: str | Path,
    images: Any,
    embedder: Embedder,
    database: RetrievalDatabase,
    index: SearchIndex,
    *,
    k: int = 20,
    near_duplicate: float = NEAR_DUPLICATE,
    progress: bool = True,
) -> NeighbourTable:
    """Finds k neighbours of every picture and writes them; continues a search that was killed.

    A picture's own rows (the same image id) and near-duplicates of it are left out: a model that is given the
    picture itself learns to copy. Vectors of pictures that are in the database are read from it.

    Args:
        path: folder to write; a table there is replaced when the new one is complete.
        images: data set of ``ldm.data``.
        embedder: the one that made the database.
        database: where neighbours come from.
        index: the index of that database.
        k: neighbours per picture.
        near_duplicate: rows at least this similar (cosine) are left out; above 1 none is.
        progress: show a bar.

    Raises:
        ValueError: the embedder or index is of another database, or a picture has fewer than k neighbours.
    """
    path = Path(path)
    if database.card["embedder"]["fingerprint"] != embedder.fingerprint:
        raise ValueError(
            f"database {database.path} was made with fingerprint {database.card['embedder']['fingerprint']}, "
            f"got embedder {embedder.name} with fingerprint {embedder.fingerprint}; "
            "use the embedder that made it"
        )
    if index.card["database"] != database.fingerprint:
        raise ValueError(
            f"index is of database {index.card['database']}, got database {database.fingerprint}; rebuild it"
        )
    plan = _new_plan(images, database, k, near_duplicate)
    partial, done = _resume(path, plan)
    known = _rows_by_picture(database)
    with tqdm(total=len(images), initial=done, unit="img", desc="neighbours", disable=not progress) as bar:
        for start in range(done, len(images), _BATCH):
            items = [images[number] for number in range(start, min(start + _BATCH, len(images)))]
            queries = _query_vectors(items, embedder, database, known)
            partial[start : start + len(items)] = search_others(
                queries, [item["id"] for item in items], database, index, k, near_duplicate
            )
            partial.flush()
            write_json(path / PLAN, {**plan, "done": start + len(items)})
            bar.update(len(items))
    del partial
    digest = file_hash(path / PARTIAL)
    (path / CARD).unlink(missing_ok=True)
    (path / PARTIAL).replace(path / ROWS)
    write_json(path / CARD, {**plan, "sha256": digest})
    (path / PLAN).unlink()
    LOG.info("wrote neighbour table %s: %d images, %d neighbours each", path, len(images), k)
    return NeighbourTable.open(path, database)


def search_others(
    queries: np.ndarray,
    ids: list[str],
    database: RetrievalDatabase,
    index: SearchIndex,
    k: int,
    near_duplicate: float,
) -> np.ndarray:
    """Returns the k nearest rows of each picture but for its own and near-duplicates, ``[B, k] int64``.

    Args:
        queries: ``[B, D] float32``, raw vectors of the pictures.
        ids: their image ids.
        database: the rows.
        index: its index.
        k: neighbours per picture.
        near_duplicate: rows at least this similar are left out.

    Raises:
        ValueError: fewer than k rows are left for a picture.
    """
    found = np.full((len(queries), k), -1, dtype=np.int64)
    open_places = np.arange(len(queries))
    width = min(k + 12, len(database))
    while True:
        near = index.search(queries[open_places], width)
        owners = database.values("image_id", near.rows)
        asked = np.array([ids[place] for place in open_places], dtype=object)[:, None]
        keep = (owners != asked) & (near.scores < near_duplicate)
        enough = keep.sum(axis=1) >= k
        for line in np.flatnonzero(enough):
            found[open_places[line]] = near.rows[line][keep[line]][:k]
        if enough.all():
            return found
        if width == len(database):
            short = int(np.argmin(enough))
            raise ValueError(
                f"image '{ids[open_places[short]]}' has {int(keep[short].sum())} neighbours in "
                f"{database.path} besides itself and near-duplicates, expected k={k}; "
                f"ask for fewer neighbours or raise near_duplicate={near_duplicate}"
            )
        open_places = open_places[~enough]
        width = min(width * 8, len(database))


def ids_hash(ids: Iterable[str]) -> str:
    """Returns the SHA-256 of image ids in their order."""
    return hashlib.sha256("\n".join(ids).encode()).hexdigest()


def images_hash(images: Any) -> str:
    """Returns the SHA-256 of the ids of a data set, without decoding its pictures."""
    return ids_hash(image_id(images, number) for number in range(len(images)))


def _new_plan(images: Any, database: RetrievalDatabase, k: int, near_duplicate: float) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "images": len(images),
        "image_ids": images_hash(images),
        "k": k,
        "database": database.fingerprint,
        "database_rows": len(database),
        "embedder": database.card["embedder"]["fingerprint"],
        "leave_out": {"same_image_id": True, "near_duplicate": near_duplicate},
    }


def _resume(path: Path, plan: Mapping[str, Any]) -> tuple[np.memmap, int]:
    """Returns the writable table ``[images, k]`` and how many of its lines are filled."""
    shape, dtype = (plan["images"], plan["k"]), np.int32 if plan["database_rows"] < 2**31 else np.int64
    if (path / PLAN).is_file() and (path / PARTIAL).is_file():
        found = read_json(path / PLAN, f"delete {path}")
        done = found.pop("done")
        if found == plan:
            LOG.info("continuing neighbour table %s after %d of %d images", path, done, plan["images"])
            return np.lib.format.open_memmap(path / PARTIAL, mode="r+"), done
    path.mkdir(parents=True, exist_ok=True)
    return np.lib.format.open_memmap(path / PARTIAL, mode="w+", dtype=dtype, shape=shape), 0


def _rows_by_picture(database: RetrievalDatabase) -> dict[str, int]:
    """Returns the row of each picture hash; empty for a database too large to hold them all."""
    if len(database) > _REUSE_ROWS:
        return {}
    return {digest: row for row, digest in enumerate(database.column("sha256").to_pylist())}


def _query_vectors(
    items: list[dict[str, Any]], embedder: Embedder, database: RetrievalDatabase, known: Mapping[str, int]
) -> np.ndarray:
    """Returns raw vectors ``[B, D] float32`` of the items, read from the database where it has them."""
    rows = np.array([known.get(picture_hash(to_pixels(item["image"])), -1) for item in items])
    vectors = np.empty((len(items), embedder.dim), dtype=np.float32)
    vectors[rows >= 0] = database.embeddings(rows[rows >= 0])
    new = [item for item, row in zip(items, rows, strict=True) if row < 0]
    if new:
        vectors[rows < 0] = embed_images(embedder, [item["image"] for item in new], [item["id"] for item in new])
    return vectors
