"""Popular rows after an addition: the neighbour table that they are counted from is built again, in the background."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ldm.files import read_json
from ldm.util import instantiate_from_config
from rdm.retrieval.neighbours.table import CARD
from rdm.sampling.pipeline import Pipeline
from rdm.sampling.settings import DIFFUSERS

LOG = logging.getLogger(__name__)
NAME = "train"  # the table of the training pictures


class _Halted(Exception):  # noqa: N818 (it is no error)
    """Ends a build, because the page ends or the rows have changed again."""


class PopularRows:
    """Builds the neighbour table of the model's own database again after its rows have changed, one build at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._next: Pipeline | None = None
        self._thread: threading.Thread | None = None
        self._ended = self._failed = False

    def count_again(self, pipeline: Pipeline) -> None:
        """Begins to build the table of a pipeline's database; a build for its earlier rows ends.

        Does nothing if the table is of these rows, or the database is another one than that of the model.
        """
        if not is_own(pipeline) or is_counted(pipeline):
            return
        with self._lock:
            self._next, self._failed = pipeline, False
            if self._thread is None and not self._ended:
                self._thread = threading.Thread(target=self._work, name="popular rows", daemon=True)
                self._thread.start()

    def note(self, pipeline: Pipeline) -> str:
        """Returns why popular rows of a pipeline's database are refused, and until when; "" if they are not."""
        own = is_own(pipeline)
        with self._lock:
            counting, failed = own and self._thread is not None, own and self._failed
        if counting:
            return "Popular rows are counted again in the background; until that is done, they are refused."
        if failed:
            return "Popular rows are refused: they could not be counted again, and the log of the page says why."
        if is_counted(pipeline) or not (own or card_of(pipeline).is_file()):
            return ""
        return "Popular rows are refused until search_neighbors.py has built the neighbour table of the new rows."

    def end(self, patience: float) -> None:
        """Ends a build for good, and waits so many seconds for it at most."""
        with self._lock:
            self._ended, thread = True, self._thread
        if thread is not None:
            thread.join(patience)

    def _work(self) -> None:
        while True:
            with self._lock:
                pipeline, self._next = self._next, None
                if pipeline is None or self._ended:
                    self._thread = None
                    return
            try:
                self._build(pipeline)
            except _Halted:
                continue
            except Exception:
                LOG.exception("popular rows of %s were not counted again", pipeline.retriever.database.path)
                self._failed = True

    def _build(self, pipeline: Pipeline) -> None:
        retriever, data = pipeline.retriever, pipeline.data
        images = _Pictures(instantiate_from_config(data.dataset_configs[NAME]), self._is_halted)
        data.prepare_table(NAME, images, retriever.embedder, retriever.database, retriever.index)

    def _is_halted(self) -> bool:
        return self._ended or self._next is not None


class _Pictures:
    """A data set whose next picture ends the work on it if that is halted.

    Args:
        images: the data set.
        is_halted: returns whether it is.
    """

    def __init__(self, images: Any, is_halted: Callable[[], bool]) -> None:
        self.images, self.is_halted = images, is_halted

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, number: int) -> Any:
        if self.is_halted():
            raise _Halted
        return self.images[number]

    def metadata(self, number: int) -> dict[str, str]:
        """Returns the texts of a picture."""
        return self.images.metadata(number)


def is_own(pipeline: Pipeline) -> bool:
    """Returns whether the database of a pipeline is the one that its model was trained with.

    A pipeline of diffusers was trained with none.
    """
    if pipeline.model.kind == DIFFUSERS:
        return False
    return pipeline.retriever.database.path.resolve() == pipeline.data.table_path(NAME).parents[1].resolve()


def card_of(pipeline: Pipeline) -> Path:
    """Returns the card of the neighbour table that popular rows are counted from."""
    return pipeline.retriever.database.path / "neighbours" / NAME / CARD


def is_counted(pipeline: Pipeline) -> bool:
    """Returns whether that table is there, and of the rows that the database has."""
    file = card_of(pipeline)
    return file.is_file() and read_json(file, "delete it").get("database") == pipeline.retriever.database.fingerprint
