"""The index of a database in parts, each of which a process of a Ray cluster holds and searches.

A query goes to all parts, and their candidates are merged. All machines must see the folder of the database.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from ldm.files import check_hash
from rdm.retrieval.cluster import connect
from rdm.retrieval.database.rows import RetrievalDatabase
from rdm.retrieval.index.factory import MIN_MAPPED, budget, choose_factory
from rdm.retrieval.index.search import CARD, SearchIndex, new_card
from rdm.retrieval.index.tune import tune_and_measure

SCHEME = "ray:"
_MOST = 256  # parts; the card of a database by someone else must not start more processes


class Part:
    """The rows of a part in a process of their own.

    Args:
        path: folder of the database.
        rows: the first row and the one behind the last.
    """

    def __init__(self, path: str, rows: tuple[int, int]) -> None:
        self.database, self.numbers = RetrievalDatabase.open(path), range(*rows)
        self.rows: Any = None

    def build(self, factory: str) -> dict[str, Any]:
        """Builds the index of the part and returns what kind of index it is."""
        from rdm.retrieval.index.faiss_rows import FaissRows

        self.rows = FaissRows.build(self.database, factory, self.numbers, progress=False)
        return self.kind()

    def read(self, file: str, factory: str, sha256: str) -> dict[str, Any]:
        """Reads the index of the part from a file and returns what kind of index it is."""
        from rdm.retrieval.index.faiss_rows import FaissRows

        check_hash(Path(file), sha256, "build the index again")
        self.rows = FaissRows.read(Path(file), factory, self.numbers.start)
        return self.kind()

    def write(self, file: str) -> dict[str, Any]:
        """Writes the index of the part to a file, and returns its ``bytes`` and ``sha256``."""
        return self.rows.write(Path(file))

    def kind(self) -> dict[str, Any]:
        """Returns the attributes of :class:`rdm.retrieval.index.faiss_rows.FaissRows`."""
        return {"setting": self.rows.setting, "exact": self.rows.exact, "widest": self.rows.widest}

    def candidates(
        self, unit: np.ndarray, count: int, breadth: int, allowed: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns candidates of the part, see :meth:`SearchIndex.candidates`."""
        return self.rows.candidates(unit, min(count, len(self.numbers)), min(breadth, self.rows.widest), allowed)


class RayIndex(SearchIndex):
    """Searches the rows of one database in parts.

    The environment variable ``RAY_ADDRESS`` is the address of the cluster (``HOST:PORT`` or ``auto``); without it, a
    cluster on this machine is started. A part whose process ends is read again from its file.

    Args:
        database: the database.
        card: its factory is ``ray:PARTS``, or ``ray:PARTS:FACTORY`` with faiss' factory string for each part.
        path: the folder of the index.
    """

    needs = ("parts",)

    def __init__(self, database: RetrievalDatabase, card: dict[str, Any], path: Path) -> None:
        super().__init__(database, card, path, max(budget(card.get("ram")), MIN_MAPPED))
        count, self.factory = _described(card["factory"])
        if count > len(database):
            raise ValueError(f"index '{card['factory']}': got {count} parts for {len(database)} rows; use fewer parts")
        self.spans = list(pairwise(len(database) * number // count for number in range(count + 1)))
        if not self.factory:
            longest = max(stop - start for start, stop in self.spans)
            self.factory = choose_factory(longest, database.dim, budget(card.get("ram")) // count)
        connect(os.environ.get("RAY_ADDRESS", "local"))
        self._parts = [self._started(number) for number in range(count)]
        self._widest = 1

    @property
    def widest(self) -> int:
        """The value of the setting at which the index looks at every row."""
        return self._widest

    @classmethod
    def build(
        cls,
        database: RetrievalDatabase,
        factory: str,
        *,
        ram: int | str | None = None,
        texts: Callable[[], np.ndarray] | None = None,
        progress: bool = True,
    ) -> RayIndex:
        """Returns an index whose parts are built at the same time, tuned and measured; :meth:`save` writes it.

        Args:
            database: the database.
            factory: see :class:`RayIndex`.
            ram: memory for the indices of all parts together, and for mapped rows of the database.
            texts: see :meth:`rdm.retrieval.index.faiss_index.NeighbourIndex.build`.
            progress: show progress bars.

        Raises:
            ValueError: ray is not installed, the factory string is wrong, or a row is zero.
            ConnectionError: no cluster answers.
        """
        start = time.perf_counter()
        built = cls(database, new_card(database, factory, budget(ram)), database.path / "index")
        built._take(built._ask([(number, "build", (built.factory,)) for number in range(len(built.spans))]))
        tune_and_measure(built, texts, progress=progress)
        built.card["build_seconds"] = round(time.perf_counter() - start, 1)
        return built

    @classmethod
    def saved(cls, database: RetrievalDatabase, card: dict[str, Any], path: Path) -> RayIndex:
        """Returns the index that a card describes, after its parts are read."""
        count, _ = _described(card["factory"])
        sums = [part.get("sha256") for part in card["parts"] if isinstance(part, dict)]
        if len(sums) != count or not all(isinstance(each, str) for each in sums):
            raise ValueError(f"{path / CARD}: got parts without checksums, expected {count}; build the index again")
        index = cls(database, card, path)
        index._take(index._ask([(number, "read", index._file(number)) for number in range(count)]))
        return index

    def _write(self) -> list[str]:
        names = [_name(number) for number in range(len(self.spans))]
        files = [str((self.path / name).absolute()) for name in names]
        written = self._ask([(number, "write", (file,)) for number, file in enumerate(files)])
        self.card |= {"parts": written, "bytes": sum(each["bytes"] for each in written)}
        return names

    def candidates(
        self, unit: np.ndarray, count: int, breadth: int, allowed: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns the best candidates of all parts, see :meth:`SearchIndex.candidates`."""
        given = [None if allowed is None else allowed[start:stop] for start, stop in self.spans]
        asked = [(number, "candidates", (unit, count, breadth, part)) for number, part in enumerate(given)]
        rows, scores = (np.concatenate(columns, axis=1) for columns in zip(*self._ask(asked), strict=True))
        scores = np.where(rows >= 0, scores, -np.inf)
        order = np.argsort(-scores, axis=1, kind="stable")[:, :count]
        return np.take_along_axis(rows, order, axis=1), np.take_along_axis(scores, order, axis=1)

    def _take(self, kinds: Sequence[dict[str, Any]]) -> None:
        """Takes over from the parts what kind of index they have."""
        self.setting, self.exact = kinds[0]["setting"], all(kind["exact"] for kind in kinds)
        self._widest = max(kind["widest"] for kind in kinds)

    def _file(self, number: int) -> tuple[str, str, str]:
        """Returns the arguments with which a part reads its file."""
        return str((self.path / _name(number)).absolute()), self.factory, self.card["parts"][number]["sha256"]

    def _started(self, number: int) -> Any:
        """Starts the process of a part, on the machines in turn; several parts may share a core."""
        import ray

        placed = ray.remote(Part).options(num_cpus=0, scheduling_strategy="SPREAD")
        return placed.remote(str(self.database.path.absolute()), self.spans[number])

    def _ask(self, calls: Sequence[tuple[int, str, tuple[Any, ...]]]) -> list[Any]:
        """Calls methods of parts at the same time and returns their results.

        Args:
            calls: for each, the number of the part, the method and its arguments.

        Raises:
            ConnectionError: the process of a part ended and cannot be started again.
        """
        import ray
        from ray.exceptions import RayActorError, RayError, RayTaskError

        answers = [getattr(self._parts[number], method).remote(*given) for number, method, given in calls]
        results = []
        for answer, (number, method, given) in zip(answers, calls, strict=True):
            try:
                try:
                    results.append(ray.get(answer))
                except RayActorError:
                    if "parts" not in self.card or method == "write":
                        raise
                    self._parts[number] = self._started(number)
                    ray.get(self._parts[number].read.remote(*self._file(number)))
                    results.append(ray.get(getattr(self._parts[number], method).remote(*given)))
            except RayTaskError as error:
                raise error.cause from None
            except RayError as error:
                line = (str(error).strip().splitlines() or [type(error).__name__])[0]
                raise ConnectionError(f"part {number} of index {self.path}: {line}; run the command again") from error
        return results


def _name(number: int) -> str:
    """Returns the name of the file of a part."""
    return f"part-{number:04d}.faiss"


def _described(factory: str) -> tuple[int, str]:
    """Returns the number of parts and the kind of each, which is empty if it is not stated."""
    count, _, kind = factory.removeprefix(SCHEME).partition(":")
    if not count.isdigit() or not 1 <= int(count) <= _MOST:
        raise ValueError(
            f"index: got '{factory}', expected ray:PARTS or ray:PARTS:FACTORY with 1 to {_MOST} parts, such as ray:4"
        )
    return int(count), kind
