"""The studio: what the page can do, without the page. Its methods are what the tabs and the endpoints call."""

from __future__ import annotations

import contextlib
import logging
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

import rdm
from rdm.loading import with_database
from rdm.retrieval.database.rows import RetrievalDatabase
from rdm.retrieval.index.faiss_index import current_index
from rdm.sampling.pipeline import Pipeline
from rdm.sampling.request import Request
from rdm.sampling.samples import settings_of
from rdm.sampling.settings import Settings
from rdm.sampling.signing import Key
from rdm.web.drawing import Drawn, Job, Step, draw
from rdm.web.folder import upload_folder
from rdm.web.limits import Limits
from rdm.web.popular import PopularRows

LOG = logging.getLogger(__name__)
RULES = ": "  # between the name of a database and the rules of a part of it
EVERY = "*"  # in place of a value: a part for each value
COLUMNS = ("style", "licence", "category")  # whose values are offered as parts of a database
MOST_PARTS, MOST_ROWS = 16, 500_000  # of a column, and of a database whose columns are read for them
PATIENCE = 10  # seconds that a step may take until sampling ends
_KEPT = 64  # pipelines of parts that are kept


class Studio:
    """Pipelines with their limits, one lock for the model, and a folder for temporary files.

    Args:
        pipelines: pipelines of one model by the names of their databases, the model's own first.
        limits: what one request may ask for.
        allow_changes: whether databases may be changed.
        key: signs what is drawn, and checks the signatures of pictures that are inspected; None does neither.

    Attributes:
        pipelines: see above.
        limits: see above.
        allow_changes: see above.
        key: see above.
        lock: held while the model samples, so that one request does at a time.
        folder: the folder of uploads and other temporary files, which :meth:`close` removes.
        popular: counts popular rows again after additions.

    Raises:
        ValueError: there is no pipeline, a model has no database, or a name has a colon.
    """

    def __init__(
        self,
        pipelines: Mapping[str, Pipeline],
        limits: Limits | None = None,
        allow_changes: bool = False,
        key: Key | None = None,
    ) -> None:
        if not pipelines:
            raise ValueError("got no database, expected at least that of the model")
        for name, pipeline in pipelines.items():
            if not name or RULES.strip() in name:
                raise ValueError(f"got '{name}' as the name of a database, expected one without a colon")
            if pipeline.is_plain:
                raise ValueError(
                    f"{pipeline.path} is a plain latent diffusion model, expected a retrieval-augmented one; give its "
                    "run with --ckpt"
                )
        self.pipelines, self.limits, self.allow_changes = dict(pipelines), limits or Limits(), allow_changes
        self.key = key
        self.lock, self.popular = threading.Lock(), PopularRows()
        self._open = contextlib.ExitStack()
        self.folder = self._open.enter_context(upload_folder())
        self._parts: dict[str, Pipeline] = {}
        self._stops: dict[str, set[threading.Event]] = {}

    @classmethod
    def open(
        cls,
        checkpoint: str | None = None,
        databases: Mapping[str, str] | None = None,
        config: str | None = None,
        limits: Limits | None = None,
        allow_changes: bool = False,
        generator: Mapping[str, str | None] | None = None,
        key: Key | None = None,
    ) -> Studio:
        """Returns the studio of a model, or of a pipeline of diffusers.

        Args:
            checkpoint: see :func:`rdm.load`.
            databases: folders of further databases by their names.
            config: see :func:`rdm.load`.
            limits: see :class:`Studio`.
            allow_changes: see :class:`Studio`.
            generator: ``generator``, ``adapter`` and ``image_encoder`` of :func:`rdm.load`, for a pipeline of diffusers
                in the place of a model. Its first database is the first of ``databases``.
            key: see :class:`Studio`.

        Raises:
            FileNotFoundError: there is no such checkpoint or database.
            ValueError: a database was made by another embedder, or see :class:`Studio`.
        """
        others = dict(databases or {})
        named: dict[str, Any] = {name: value for name, value in (generator or {}).items() if value is not None}
        first = next(iter(others), None) if named else None
        own = others.pop(first) if first is not None else None
        pipeline = rdm.load(checkpoint, own, config=config, **named)
        if pipeline.is_plain:
            return cls({"none": pipeline})  # raises
        pipelines = {first or pipeline.retriever.database.path.name: pipeline}
        for name, folder in others.items():
            if name in pipelines:
                raise ValueError(f"got two databases of the name '{name}', expected one each; give another name")
            pipelines[name] = with_database(pipeline, folder)
            current_index(pipelines[name].retriever.database)  # built before the first search has to wait for it
        return cls(pipelines, limits, allow_changes, key)

    def __enter__(self) -> Studio:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends all sampling for good, and removes the folder of temporary files."""
        self.halt()
        self.popular.end(PATIENCE)  # no thread that computes must outlive the process
        self.lock.acquire(timeout=PATIENCE)  # and is not released
        self._open.close()

    @property
    def names(self) -> list[str]:
        """The names of the databases; the first is that of the model's own."""
        return list(self.pipelines)

    def places(self) -> list[str]:
        """Returns the names of all databases, and of the parts of them that the values of some columns make.

        A part is named like ``emoji: style=noto``; ``emoji: style=*`` stands for one part for each style.
        """
        found = []
        for name, pipeline in self.pipelines.items():
            found.append(name)
            for column, values in parts(pipeline.retriever.database).items():
                found += [f"{name}{RULES}{column}={value}" for value in (EVERY, *values)]
        return found

    def expanded(self, places: Sequence[str]) -> list[str]:
        """Returns some places with ``*`` replaced by each value of the column; the first database if there is none.

        Raises:
            ValueError: there is no such place.
        """
        found: dict[str, None] = {}
        for place in places or self.names[:1]:
            name, _, rule = place.partition(RULES)
            column, _, value = rule.partition("=")
            if value != EVERY:
                found |= {place: None}
                continue
            known = parts(self._named(name).retriever.database)
            if column not in known:
                raise ValueError(f"got '{place}', expected a column among {', '.join(known) or 'none'}")
            found |= dict.fromkeys(f"{name}{RULES}{column}={each}" for each in known[column])
        return list(found)

    def pipeline(self, place: str | None = None) -> Pipeline:
        """Returns the pipeline of a place; that of the first database if none is given.

        Args:
            place: the name of a database, or of a part of it such as ``emoji: style=noto``; see :meth:`places`.

        Raises:
            ValueError: there is no such database, or no row fits the rule.
        """
        name, _, rule = (place or self.names[0]).partition(RULES)
        whole = self._named(name)
        if not rule:
            return whole
        part = self._parts.get(str(place))
        if part is None or part.retriever.database is not whole.retriever.database:  # its rows have changed since
            while len(self._parts) >= _KEPT:
                self._parts.pop(next(iter(self._parts)), None)
            part = self._parts[str(place)] = with_database(whole, only=[rule])
        return part

    def _named(self, name: str) -> Pipeline:
        if name not in self.pipelines:
            raise ValueError(f"got database '{name}', expected one of {', '.join(self.names)}")
        return self.pipelines[name]

    def replace(self, name: str, pipeline: Pipeline) -> None:
        """Puts another pipeline in the place of that of a database, whose rows have changed."""
        self.pipelines[name] = pipeline

    def job(self, place: str, request: Request, settings: Settings) -> Job:
        """Returns a request that can be drawn, after a check of the limits.

        Raises:
            ValueError: a limit is exceeded, or see :func:`rdm.sampling.samples.settings_of`.
        """
        pipeline = self.pipeline(place)
        complete = settings_of(pipeline, request, settings)
        canvas = request.canvas
        repeats = 1 if canvas is None or canvas.paint is None else canvas.about["repeats"]
        sides = [complete.height, complete.width] if canvas is None else list(canvas.picture.shape[2:])
        self.limits.check(
            images=len(request.seeds) * complete.most_draws,
            steps=None if complete.steps is None else complete.steps * repeats,
            neighbours=request.retrieved.rows.shape[1],
            side=max((side for side in sides if side is not None), default=None),
        )
        return Job(place, pipeline, request, settings)

    def draw(self, jobs: Sequence[Job], session: str = "") -> Iterator[Step | Drawn]:
        """Yields the steps and images of some jobs as they are sampled; the images are sampled one job after another.

        Args:
            jobs: see :meth:`job`.
            session: who asks, so that :meth:`stop` can end it.

        Raises:
            ValueError: all jobs together exceed the limit of images, or see :func:`rdm.sampling.samples.sample`.
        """
        self.limits.check(images=sum(len(job.request.seeds) for job in jobs))
        stop = threading.Event()
        self._stops.setdefault(session, set()).add(stop)
        try:
            yield from draw(jobs, self.lock, self.temporary, stop, self.key)
        finally:
            self._stops[session].discard(stop)
            if not self._stops[session]:
                del self._stops[session]

    def stop(self, session: str = "") -> bool:
        """Ends what :meth:`draw` samples for a session at its next step; returns whether it was sampling."""
        stops = list(self._stops.get(session, ()))
        for stop in stops:
            stop.set()
        return bool(stops)

    def halt(self) -> None:
        """Ends what is sampled for anybody at its next step."""
        for session in list(self._stops):
            self.stop(session)

    def warm_up(self) -> None:
        """Loads the embedder and the index of the first database, which the first request would otherwise wait for."""
        if not self.lock.acquire(blocking=False):
            return  # a request is being drawn, for which they are loaded anyway
        try:
            _ = self.pipeline().retriever.embedder, self.pipeline().retriever.index
        except (ValueError, OSError) as error:  # which every request will say again
            LOG.warning("%s", error)
        finally:
            self.lock.release()

    @contextlib.contextmanager
    def temporary(self) -> Iterator[Path]:
        """Yields a new folder within :attr:`folder`, which is removed at the end."""
        with tempfile.TemporaryDirectory(dir=self.folder, ignore_cleanup_errors=True) as folder:
            yield Path(folder)


def parts(database: RetrievalDatabase) -> dict[str, list[str]]:
    """Returns the columns of a database that divide it into a few parts, with their values in order."""
    if len(database) > MOST_ROWS:
        return {}
    known = {name: all_values(database, name) for name in COLUMNS}
    return {name: values for name, values in known.items() if 2 <= len(values) <= MOST_PARTS}


def all_values(database: RetrievalDatabase, column: str) -> list[str]:
    """Returns the values of a column of a database in order, without the empty one; none if there is no such column."""
    shards = range(len(database.card["shards"]))
    if all(database.stored_as(number, column) is None for number in shards):
        return []
    found: list[Any] = pc.unique(database.column(column)).to_pylist()
    return sorted(value for value in found if value)
