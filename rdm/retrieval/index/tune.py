"""Chooses the search settings of an index and measures its recall and speed against exact search.

There are two kinds of query. *Image-like* queries are rows of the database; each is left out of its own neighbours, so
that it stands for a picture outside the database. *Text-like* queries are vectors of real texts if there are some.
Otherwise they are rows shifted into another cone, as CLIP's texts lie relative to its images (Liang et al. 2022, "Mind
the gap"). An index with coarse codes can do well on the first kind and fail on the second.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from rdm.retrieval.database.rows import RetrievalDatabase
from rdm.retrieval.embedder import Embedder
from rdm.retrieval.index.exact import cosine, search_exactly, unit_vectors
from rdm.retrieval.index.search import SearchIndex

LOG = logging.getLogger(__name__)
TARGETS = {"image": 0.97, "text": 0.95}  # recall@4 that the settings must reach
_KS = (4, 20)
_COUNTS = (24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
_FURTHER = 2  # settings that are tried after the first one that suffices
_MARGIN = 0.01  # added to the targets, because recall on new queries is a little lower
_NEARLY = 0.98  # share of the best possible recall that suffices if a target cannot be reached
_QUERIES = 512  # queries of each kind: half to choose settings, half to measure
_FEW_QUERIES = 64  # queries of each kind for an exact index


@dataclass(frozen=True)
class HeldOut:
    """Queries of one kind with the similarities of their exact neighbours.

    Attributes:
        unit: ``[B, D] float32``, of length one.
        own_rows: ``[B] int64``, the row that a query was made from and must not find; -1 for none.
        truth: maps k to ``[B] float32``, the exact similarity of the k-th neighbour.
        made_from: description of the queries.
    """

    unit: np.ndarray
    own_rows: np.ndarray
    truth: dict[int, np.ndarray]
    made_from: str

    def subset(self, chosen: slice) -> HeldOut:
        """Returns some of the queries."""
        truth = {k: values[chosen] for k, values in self.truth.items()}
        return HeldOut(self.unit[chosen], self.own_rows[chosen], truth, self.made_from)

    def recall(self, scores: np.ndarray, k: int) -> float:
        """Returns recall@k of found rows, given their exact scores ``[B, C]``; minus infinity excludes a row.

        A row counts if it is at least as similar as the exact k-th neighbour, so the order of equally similar rows does
        not matter.
        """
        top = -np.sort(-scores, axis=1)[:, :k]
        return float((top >= self.truth[k][:, None] - 1e-5).sum() / (k * len(scores)))


def text_like(vectors: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Returns for each unit vector ``[B, D]`` a stand-in for the vector of a text that describes it, ``[B, D]``.

    Every vector is moved by one common direction, the gap between the cones of images and texts, and a quarter as far
    by a random direction.
    """
    gap, of_each = rng.standard_normal((1, vectors.shape[1])), rng.standard_normal(vectors.shape)
    gap, of_each = (part / np.linalg.norm(part, axis=1, keepdims=True) for part in (gap, of_each))
    return unit_vectors((vectors + gap + 0.25 * of_each).astype(np.float32), "query")


def caption_vectors(database: RetrievalDatabase, embedder: Embedder) -> np.ndarray:
    """Returns raw vectors ``[M, D] float32`` of some captions of a database.

    M is 0 if it has no captions, or if its embedder has no texts.

    Args:
        database: the database; captions are taken from runs of rows at random places.
        embedder: the embedder that made the database.
    """
    places = np.random.default_rng(1).integers(0, len(database), (16, 1))
    rows = np.unique((places + np.arange(_QUERIES // 8)) % len(database))
    captions = list(dict.fromkeys(row["caption"] for row in database.metadata(rows) if row.get("caption")))
    if not captions or not getattr(embedder, "has_texts", True):
        return np.empty((0, database.dim), np.float32)
    return embedder.texts(captions[:_QUERIES]).float().cpu().numpy()


def tune_and_measure(
    index: SearchIndex, texts: Callable[[], np.ndarray] | None = None, *, progress: bool = True
) -> None:
    """Chooses the settings of a new index, measures it, and writes both to its card.

    Args:
        index: an index that is filled but not measured.
        texts: returns vectors of real texts ``[M, D] float32``, see :func:`caption_vectors`; not called if there is
            no setting to choose.
        progress: show a progress bar.
    """
    if index.exact and not index.setting:
        index.card |= measure(index, held_out(index, None, _FEW_QUERIES))
        return
    queries = held_out(index, texts() if texts else None, _QUERIES)
    index.card["search"] = tune(
        index, {kind: held.subset(slice(0, None, 2)) for kind, held in queries.items()}, progress
    )
    index.card |= measure(index, {kind: held.subset(slice(1, None, 2)) for kind, held in queries.items()})


def held_out(index: SearchIndex, texts: np.ndarray | None, count: int) -> dict[str, HeldOut]:
    """Returns queries of both kinds with their exact neighbours.

    Args:
        index: the index of the database.
        texts: raw vectors of real texts ``[M, D] float32``; None or empty if there are none.
        count: largest number of queries of each kind.
    """
    rng = np.random.default_rng(0)
    rows = rng.choice(len(index), min(count, len(index)), replace=False)
    images = unit_vectors(index.database.embeddings(rows), "row")
    if texts is None or not len(texts):
        as_texts, texts_of = text_like(images, rng), "rows shifted like texts"
    else:
        as_texts, texts_of = unit_vectors(texts[:count], "text"), "texts"
    kinds = {"image": (images, rows, "rows, left out"), "text": (as_texts, np.full(len(as_texts), -1), texts_of)}
    nearest = search_exactly(index.reader, np.concatenate([images, as_texts]), max(_KS) + 1)
    queries, start = {}, 0
    for kind, (unit, own_rows, made_from) in kinds.items():
        part = slice(start, start + len(unit))
        start += len(unit)
        scores = -np.sort(-np.where(nearest.rows[part] == own_rows[:, None], -np.inf, nearest.scores[part]), axis=1)
        left = max(scores.shape[1] - (kind == "image"), 1)
        truth = {k: scores[:, k - 1] for k in _KS if k <= left} or {left: scores[:, left - 1]}
        queries[kind] = HeldOut(unit, own_rows, truth, made_from)
    return queries


def tune(index: SearchIndex, queries: dict[str, HeldOut], progress: bool) -> dict[str, int]:
    """Returns the fastest settings that reach the target recall: :attr:`SearchIndex.setting` and ``candidates``.

    If a target cannot be reached, settings suffice that come close to the best possible recall of the kind of query
    that misses its target most.

    Args:
        index: an index that does not look at every row, or that compares codes.
        queries: the queries of each kind.
        progress: show a progress bar.
    """
    breadths = sorted({min(2**power, index.widest) for power in range(2, 2 + index.widest.bit_length())})
    aims = {kind: TARGETS[kind] + _MARGIN for kind in queries}
    recalls: dict[int, dict[str, dict[int, float]]] = {}
    for breadth in tqdm(breadths, desc="tuning", unit="setting", leave=False, disable=not progress):
        recalls[breadth] = {kind: _recalls(index, held, breadth) for kind, held in queries.items()}
        if len(_good(index, recalls, aims)) > _FURTHER:
            break
    good = _good(index, recalls, aims)
    if not good:
        best = {kind: max(max(of_kinds[kind].values()) for of_kinds in recalls.values()) for kind in queries}
        finer = f"IVF{index.widest},SQ8" if index.setting == "nprobe" and not index.exact else "Flat"
        LOG.warning(
            "index %s reaches a recall@4 of %s, expected %s; use a finer index such as %s",
            *(index.card["factory"], best, aims, finer),
        )
        shares = {
            (breadth, count): min(of_kinds[kind][count] / aims[kind] for kind in queries)
            for breadth, of_kinds in recalls.items()
            for count in _counts(index)
        }
        enough = _NEARLY * max(shares.values())
        good = [_settings(index, *next(setting for setting, share in shares.items() if share >= enough))]
    seconds = []
    for settings in good[: _FURTHER + 1]:
        index.card["search"] = settings
        seconds.append(_median_seconds(index, queries["image"].unit[:48]))
    return good[int(np.argmin(seconds))]


def _good(
    index: SearchIndex, recalls: dict[int, dict[str, dict[int, float]]], targets: dict[str, float]
) -> list[dict[str, int]]:
    """Returns the settings that reach all targets, each with the fewest candidates; narrow settings come first."""
    good = []
    for breadth, of_kinds in recalls.items():
        enough = [
            next((count for count, recall in by_count.items() if recall >= targets[kind]), 0)
            for kind, by_count in of_kinds.items()
        ]
        if all(enough):
            good.append(_settings(index, breadth, max(enough)))
    return good


def _settings(index: SearchIndex, breadth: int, count: int) -> dict[str, int]:
    settings = {index.setting: breadth} if index.setting else {}
    return settings if index.exact else {**settings, "candidates": count}


def _counts(index: SearchIndex) -> list[int]:
    """Returns the numbers of candidates to try; with exact scores only the neighbours and the query's own row."""
    return sorted({min(count, index.most) for count in ((_KS[0] + 1,) if index.exact else _COUNTS)})


def _recalls(index: SearchIndex, held: HeldOut, breadth: int) -> dict[int, float]:
    """Returns recall@4 for each number of candidates; exact scores are computed once, for the largest number."""
    counts, k = _counts(index), min(held.truth)
    rows, _ = index.candidates(held.unit, counts[-1], breadth)
    scores = cosine(index.reader, held.unit, np.where(rows == held.own_rows[:, None], -1, rows))
    return {count: held.recall(scores[:, :count], k) for count in counts}


def measure(index: SearchIndex, queries: dict[str, HeldOut]) -> dict[str, Any]:
    """Returns the measurements for the card of an index: recall of both kinds of query and time per query.

    Args:
        index: an index with its settings.
        queries: queries that were not used to choose the settings.
    """
    recall: dict[str, Any] = {}
    for kind, held in queries.items():
        values = {}
        for k in held.truth:
            nearest = index.search(held.unit, min(k + int(held.own_rows[0] >= 0), index.database.living_count))
            scores = cosine(index.reader, held.unit, np.where(nearest.rows == held.own_rows[:, None], -1, nearest.rows))
            values[f"recall@{k}"] = round(held.recall(scores, k), 4)
        recall[kind] = {**values, "queries": len(held.unit), "made_from": held.made_from}
    unit = np.concatenate([held.unit for held in queries.values()])
    batch = np.resize(unit, (256, unit.shape[1]))
    start = time.perf_counter()
    index.search(batch, min(4, index.database.living_count))
    together = (time.perf_counter() - start) / len(batch)
    speed = {"single": _median_seconds(index, unit[:48]) * 1e3, "batch of 256": together * 1e3}
    return {
        "recall": recall,
        "ms_per_query": {key: round(value, 4) for key, value in speed.items()},
        "threads": torch.get_num_threads(),
    }


def _median_seconds(index: SearchIndex, unit: np.ndarray) -> float:
    times = []
    for query in unit:
        start = time.perf_counter()
        index.search(query[None], min(4, index.database.living_count))
        times.append(time.perf_counter() - start)
    return float(np.median(times))
