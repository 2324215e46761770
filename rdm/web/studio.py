"""The studio: what the page can do, without the page. Its methods are what the tabs and the endpoints call."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rdm.sampling.pipeline import Pipeline
from rdm.sampling.record import read_record, save
from rdm.sampling.request import Request
from rdm.sampling.samples import Samples, sample_batches
from rdm.sampling.settings import Settings
from rdm.web.limits import Limits


@dataclass(frozen=True, eq=False)
class Drawn:
    """One image.

    Attributes:
        png: the content of its PNG file, with its record.
        record: the record.
        neighbours: the contents of the PNG files of its neighbours, nearest first.
        samples: what it was sampled as: images, request and settings of this one image.
        database: the name of the database of its neighbours.
    """

    png: bytes
    record: Mapping[str, Any]
    neighbours: tuple[bytes, ...]
    samples: Samples
    database: str


class Studio:
    """Pipelines with their limits, one lock for the model, and a folder for temporary files.

    Args:
        pipelines: pipelines of one model by the names of their databases, the model's own first.
        limits: what one request may ask for.
        allow_changes: whether databases may be changed.

    Attributes:
        pipelines: see above.
        limits: see above.
        allow_changes: see above.
        lock: held while the model samples, so that one request does at a time.
        folder: the folder of uploads and other temporary files, which :meth:`close` removes.
    """

    def __init__(
        self, pipelines: Mapping[str, Pipeline], limits: Limits | None = None, allow_changes: bool = False
    ) -> None:
        self.pipelines, self.limits, self.allow_changes = dict(pipelines), limits or Limits(), allow_changes
        self.lock = threading.Lock()
        self.folder = Path(tempfile.mkdtemp(prefix="rdm-web-"))

    def __enter__(self) -> Studio:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Removes the folder of temporary files."""
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def names(self) -> list[str]:
        """The names of the databases; the first is that of the model's own."""
        return list(self.pipelines)

    def pipeline(self, name: str | None = None) -> Pipeline:
        """Returns the pipeline of a database; that of the first one if none is named.

        Raises:
            ValueError: there is no database of this name.
        """
        if name is not None and name not in self.pipelines:
            raise ValueError(f"got database '{name}', expected one of {', '.join(self.names)}")
        return self.pipelines[name or self.names[0]]

    def draw(self, name: str, request: Request, settings: Settings) -> Iterator[Drawn]:
        """Yields the images of a request as they are sampled.

        Raises:
            ValueError: a limit is exceeded, or see :func:`rdm.sampling.samples.sample`.
        """
        self.limits.check(images=len(request.seeds), steps=settings.steps)
        pipeline = self.pipeline(name)
        with self.lock:
            for samples in sample_batches(pipeline, request, settings):
                for place in range(len(samples.seeds)):
                    yield self.kept(samples.part([place]), name)

    def kept(self, samples: Samples, name: str) -> Drawn:
        """Returns one sampled image with its record and the pictures of its neighbours."""
        with self.temporary() as folder:
            save(samples, self.pipeline(name), folder, "image", neighbours=True)
            file = folder / "image-000.png"
            neighbours = [
                (folder / f"image-000-neighbour-{place}.png").read_bytes()
                for place in range(samples.request.retrieved.rows.shape[1])
            ]
            return Drawn(file.read_bytes(), read_record(file), tuple(neighbours), samples, name)

    @contextlib.contextmanager
    def temporary(self) -> Iterator[Path]:
        """Yields a new folder within :attr:`folder`, which is removed at the end."""
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            yield Path(folder)
