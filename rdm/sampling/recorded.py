"""What a record names: its sources, which must be as they were, and the request that the image was made for."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from rdm.generators import generator_of
from rdm.loading import Loaded
from rdm.retrieval.database.rows import RetrievalDatabase
from rdm.retrieval.queries import text_queries
from rdm.sampling.canvas import Canvas, open_canvas
from rdm.sampling.edit import with_inversion
from rdm.sampling.given import IN_MEMORY
from rdm.sampling.neighbours import Neighbour, chosen_neighbours
from rdm.sampling.plain import no_neighbours
from rdm.sampling.plain import with_inversion as with_plain_inversion
from rdm.sampling.request import Request
from rdm.sampling.shown import shown_picture

LOG = logging.getLogger(__name__)
ABOUT_A_ROW = ("image_id", "caption", "uri", "licence", "attribution")


def check_sources(record: Mapping[str, Any], loaded: Loaded) -> None:
    """Checks that checkpoints, database and config have the fingerprints that a record names.

    Raises:
        ValueError: a fingerprint differs.
    """
    checks = generator_of(loaded).sources(record)
    if not loaded.is_plain and not _has_equal_rows(record, loaded.retriever.database):
        opened = loaded.retriever.database
        checks.append((f"database {opened.path}", opened.fingerprint, record["database_fingerprint"]))
    for what, got, expected in checks:
        if got != expected:
            raise ValueError(f"{what} has fingerprint {got}, the image was made with {expected}; give that one")


def _has_equal_rows(record: Mapping[str, Any], database: RetrievalDatabase) -> bool:
    """Returns whether a database was made by the embedder of a record and holds the record's rows in their places.

    If another processor built it, its embeddings are rounded otherwise, so that it has another fingerprint.
    """
    recorded = [neighbour for neighbour in record["neighbours"] if "row" in neighbour]
    rows = [neighbour["row"] for neighbour in recorded]
    embedder = database.card["embedder"]["fingerprint"]
    if record.get("embedder_fingerprint") != embedder or max(rows, default=0) >= len(database):
        return False
    equal = all(
        entry[key] == neighbour[key]
        for entry, neighbour in zip(database.metadata(rows), recorded, strict=True)
        for key in ABOUT_A_ROW
    )
    if equal and not database.has_grown_from(record["database_fingerprint"]):
        LOG.warning("database %s was built anew; the image may differ in its last bits", database.path)
    return equal


def request_of(record: Mapping[str, Any], loaded: Loaded) -> Request:
    """Returns the request for the image of a record. Its neighbours are those in the record; none are looked up.

    Raises:
        FileNotFoundError: a picture that the record names does not exist.
        ValueError: a picture has another hash than in the record.
    """
    if loaded.is_plain:
        return _plain_request(record, loaded)
    found, pictures = chosen_neighbours(loaded, [_neighbour(each, loaded) for each in record["neighbours"]])
    scores = np.array([[neighbour["similarity"] for neighbour in record["neighbours"]]], dtype=np.float32)
    prompts, picture, shown, canvas = None, record.get("query_picture"), None, _canvas_of(record)
    if picture is not None:
        _check_file(picture["file"], picture["sha256"])
        shown = shown_picture(loaded, picture["file"], picture["sha256"]).query(loaded)
    elif "prompt" in record:
        prompts = [record["prompt"]]
        shown = None if record["tokens"] == "neighbours" else text_queries(loaded.retriever.embedder, prompts)
    if canvas is not None and (inverted := record["edit"]["inverted_with_rows"]) is not None:
        canvas = with_inversion(loaded, canvas, inverted)
    return Request(
        replace(found, scores=scores),
        [record["query"]],
        [record["seed"]],
        record["asked"],
        tokens=record["tokens"],
        query_tokens=shown,
        prompts=prompts,
        query_picture=picture,
        canvas=canvas,
        pictures=pictures,
    )


def _neighbour(recorded: Mapping[str, Any], loaded: Loaded) -> Neighbour:
    """Returns a neighbour of a record: the number of its row, or the picture in its file."""
    if "row" in recorded:
        return int(recorded["row"])
    _check_file(recorded["file"], recorded["sha256"])
    return shown_picture(loaded, recorded["file"], recorded["sha256"])


def _canvas_of(record: Mapping[str, Any]) -> Canvas | None:
    """Returns the canvas of an edit, without the context of an inversion; None if the record is of no edit."""
    if "edit" not in record:
        return None
    for part in ("picture", "mask"):
        _check_file(record["edit"][part], record["edit"][f"{part}_sha256"])
    return open_canvas(**record["edit"])


def _check_file(file: str | None, sha256: str | None) -> None:
    """Checks that a picture of a record was in a file.

    Raises:
        ValueError: it was given open, from Python.
    """
    if file is None and sha256 is not None:
        raise ValueError(
            f"the image was made with {IN_MEMORY} (sha256 of its pixels {sha256}), expected one in a file, which can "
            "be read again; make the image again from Python"
        )


def _plain_request(record: Mapping[str, Any], loaded: Loaded) -> Request:
    given, canvas = [record["given"]] if "given" in record else None, _canvas_of(record)
    return Request(
        no_neighbours(1),
        [record["query"]],
        [record["seed"]],
        record["asked"],
        tokens=record["tokens"],
        prompts=[record["prompt"]] if "prompt" in record else None,
        canvas=None if canvas is None else with_plain_inversion(loaded, canvas, given),
        given=given,
    )
