"""Builds neighbour tables: finds the neighbours of every training picture once, before training.

The query is the picture itself or its caption. A table is a folder with the memory-mapped ``neighbours.npy``
``[images, K]`` and its card ``neighbours.json``. It holds more neighbours than are used. When rows are removed from the
database, the next stored neighbours take their place without another search.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ldm.data.identity import ids_hash, images_hash
from ldm.files import read_json
from ldm.locks import building, delete_left_lock
from ldm.stopping import going_on
from ldm.table import KEPT, ResumableTable
from rdm.retrieval.database.outlines import Outlines, outline
from rdm.retrieval.database.rows import RetrievalDatabase
from rdm.retrieval.embedder import Embedder
from rdm.retrieval.index.search import SearchIndex
from rdm.retrieval.neighbours.search import (
    Drawings,
    picture_vectors,
    rows_by_picture,
    search_without_copies,
    split_picture,
)
from rdm.retrieval.neighbours.table import ASSUMED, CAPTION, CARD, FORMAT, NEAR_DUPLICATE, PICTURE, NeighbourTable
from rdm.retrieval.queries import text_queries

LOG = logging.getLogger(__name__)
_BATCH = 256


def prepare_neighbour_table(
    path: str | Path,
    images: Any,
    embedder: Embedder,
    database: RetrievalDatabase,
    index: SearchIndex,
    *,
    k: int = 20,
    used: int = 1,
    near_duplicate: float = NEAR_DUPLICATE,
    outlines: Outlines | None = None,
    patches_per_side: int = 1,
    query: str = PICTURE,
    agreement: bool = False,
    progress: bool = True,
) -> NeighbourTable:
    """Returns the table at ``path``; builds it if it is missing, differs from the arguments or has fewer neighbours.

    The arguments and errors are those of :func:`build_neighbour_table`. A table is also built again if removals from
    the database have left some picture fewer than ``used`` neighbours, or if ``agreement`` asks how much outlines agree
    and the table was built without ``outlines``. Of several processes, one builds and the others wait for it.
    """
    path = Path(path)
    plan = _new_plan(images, database, k, near_duplicate, outlines, patches_per_side, query)
    if not _differences(path, plan, database, used, agreement):
        delete_left_lock(path)
        return NeighbourTable.open(path, database)
    options: dict[str, Any] = {
        "near_duplicate": near_duplicate,
        "outlines": outlines,
        "patches_per_side": patches_per_side,
        "query": query,
        "progress": progress,
    }
    with building(path), going_on(KEPT):
        if differs := _differences(path, plan, database, used, agreement):
            if (path / CARD).is_file():
                LOG.warning("neighbour table %s differs in %s; building it again", path, ", ".join(differs))
            return build_neighbour_table(path, images, embedder, database, index, k=k, **options)
    return NeighbourTable.open(path, database)


def _differences(
    path: Path, plan: Mapping[str, Any], database: RetrievalDatabase, used: int, agreement: bool
) -> list[str]:
    """Returns in what the table at ``path`` is not the wanted one; an empty list if it can be used."""
    if not (path / CARD).is_file():
        return [CARD]
    card = {**ASSUMED, **read_json(path / CARD, f"delete {path}")}
    differs = [key for key, value in {**ASSUMED, **plan}.items() if key != "k" and card.get(key) != value]
    differs += ["k"] if not differs and card["k"] < plan["k"] else []
    differs += ["agreement"] if agreement and "agreement" not in card else []
    if not differs and NeighbourTable.open(path, database).left() < used:
        return ["rows that were removed from the database"]
    return differs


def build_neighbour_table(
    path: str | Path,
    images: Any,
    embedder: Embedder,
    database: RetrievalDatabase,
    index: SearchIndex,
    *,
    k: int = 20,
    near_duplicate: float = NEAR_DUPLICATE,
    outlines: Outlines | None = None,
    patches_per_side: int = 1,
    query: str = PICTURE,
    progress: bool = True,
) -> NeighbourTable:
    """Finds k neighbours of every picture and writes the table; continues a build that was killed.

    A picture's own rows (those with its image id) and its near-duplicates are left out, because a model that is given
    the picture itself learns to copy it. With ``outlines``, copies of nearer neighbours are left out, too, and
    ``agreement.npy`` says how much the outline of each neighbour agrees with that of the picture. The vectors of
    pictures that are in the database are read from it. Removed rows are left out.

    Args:
        path: folder of the table; an existing table is replaced when the new one is complete.
        images: data set of ``ldm.data``.
        embedder: the embedder that made the database.
        database: where neighbours come from.
        index: the index of that database.
        k: neighbours per picture.
        near_duplicate: rows at least this similar (cosine) to the picture are left out; above 1 none is.
        outlines: those of the database, if rows with the outline of the picture or of a nearer neighbour are left out.
        patches_per_side: n; each picture is cut into n x n patches, row by row, and each patch gets k neighbours
            (CompVis' ``n_patches_per_side``).
        query: ``picture``, or ``caption`` for the neighbours of each picture's caption, which are those that
            text-to-image sampling uses; a picture without a caption has its own neighbours. In both cases the same rows
            are left out.
        progress: show a progress bar.

    Raises:
        ValueError: the embedder or the index belongs to another database, a picture has fewer than k neighbours, no
            picture has a caption although captions are the queries, or captions are combined with patches.
    """
    path = Path(path)
    _check_made_for(database, embedder, index)
    plan = _new_plan(images, database, k, near_duplicate, outlines, patches_per_side, query)
    table = ResumableTable(path, len(images), {**plan, "agreement": outlines is not None})
    dtype = np.int32 if len(database) < 2**31 else np.int64
    line = (k,) if patches_per_side == 1 else (patches_per_side**2, k)
    known, step = rows_by_picture(database), max(1, _BATCH // patches_per_side**2)
    with tqdm(total=len(images), initial=table.done, unit="img", desc="neighbours", disable=not progress) as bar:
        for start in range(table.done, len(images), step):
            items = [images[number] for number in range(start, min(start + step, len(images)))]
            parts = [(part, item["id"]) for item in items for part in split_picture(item["image"], patches_per_side)]
            pictures, ids = picture_vectors(parts, embedder, database, known), [name for _, name in parts]
            drawings = None if outlines is None else Drawings(outlines, [outline(part) for part, _ in parts])
            if query == PICTURE:
                rows = search_without_copies(pictures, ids, database, index, k, near_duplicate, drawings=drawings)
            else:
                queries = caption_vectors(embedder, [item["caption"] for item in items], pictures)
                rows = search_without_copies(queries, ids, database, index, k, near_duplicate, pictures, drawings)
            columns = {"neighbours": rows.reshape(len(items), *line).astype(dtype)}
            if drawings is not None:
                columns["agreement"] = drawings.agreement(rows).reshape(len(items), *line)
            table.append(**columns)
            bar.update(len(items))
    hashes = table.hashes()
    table.finish(CARD, {**plan, "sha256": hashes.pop("neighbours"), **hashes})
    LOG.info("wrote neighbour table %s: %d images, %d neighbours each", path, len(images), k)
    return NeighbourTable.open(path, database)


def _check_made_for(database: RetrievalDatabase, embedder: Embedder, index: SearchIndex) -> None:
    if database.card["embedder"]["fingerprint"] != embedder.fingerprint:
        raise ValueError(
            f"database {database.path} was made with fingerprint {database.card['embedder']['fingerprint']}, "
            f"got embedder {embedder.name} with fingerprint {embedder.fingerprint}; "
            "use the embedder that made it"
        )
    if index.card["database"] != database.fingerprint:
        raise ValueError(
            f"the index belongs to database {index.card['database']}, got {database.fingerprint}; rebuild the index"
        )


def check_query(query: str, patches_per_side: int) -> None:
    """Checks the kind of query of a table.

    Raises:
        ValueError: the query is neither ``picture`` nor ``caption``, or captions are combined with patches.
    """
    if query not in (PICTURE, CAPTION):
        raise ValueError(f"got query={query!r}, expected '{PICTURE}' or '{CAPTION}'")
    if query == CAPTION and patches_per_side > 1:
        raise ValueError(
            f"got patches_per_side={patches_per_side}, expected 1 with captions, which have no patches; set it to 1, "
            "or use pictures as queries"
        )


def caption_vectors(embedder: Embedder, captions: Sequence[str], pictures: np.ndarray) -> np.ndarray:
    """Returns the raw vectors ``[B, D] float32`` of captions, or of the pictures of those that are empty."""
    given = [number for number, caption in enumerate(captions) if caption.strip()]
    vectors = pictures.copy()
    if given:
        vectors[given] = text_queries(embedder, [captions[number] for number in given]).cpu().numpy()
    return vectors


def captions_hash(images: Any) -> str:
    """Returns the SHA-256 of the captions of a data set without decoding its pictures; warns if some are missing.

    Raises:
        ValueError: no picture has a caption.
    """
    captions, without = [], []
    for number in range(len(images)):
        try:
            known = images.metadata(number)
        except ValueError:  # the picture cannot be read, and the data set delivers another one in its place
            captions.append("")
            continue
        captions.append(known["caption"])
        if not known["caption"].strip():
            without.append(known["id"])
    if without and len(without) == len(images):
        raise ValueError(
            f"none of {len(images)} images has a caption, such as '{without[0]}'; write captions, or use pictures as "
            "queries (caption_share: 0)"
        )
    if without:
        LOG.warning("images without a caption keep their own neighbours: %d, such as '%s'", len(without), without[0])
    return ids_hash(map(repr, captions))


def _new_plan(
    images: Any,
    database: RetrievalDatabase,
    k: int,
    near_duplicate: float,
    outlines: Outlines | None,
    patches_per_side: int,
    query: str,
) -> dict[str, Any]:
    check_query(query, patches_per_side)
    drawings = {} if outlines is None else {"same_outline": outlines.least}
    captions = {} if query == PICTURE else {"query": query, "captions": captions_hash(images)}
    return {
        "format": FORMAT,
        "images": len(images),
        "image_ids": images_hash(images),
        "k": k,
        "patches_per_side": patches_per_side,
        "database": database.fingerprint,
        "database_rows": len(database),
        "embedder": database.card["embedder"]["fingerprint"],
        "leave_out": {"same_image_id": True, "near_duplicate": near_duplicate, **drawings},
        **captions,
    }
