"""Drawing: samples requests in a thread and hands over steps and images as they come, until it is done or stopped."""

from __future__ import annotations

import io
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ldm.pictures import as_picture, to_uint8, with_channels
from rdm.retrieval.patches.identity import picture_hash, to_pixels
from rdm.sampling.pipeline import Pipeline
from rdm.sampling.record import read_record, save
from rdm.sampling.request import Request
from rdm.sampling.samples import Samples, sample_batches
from rdm.sampling.settings import Settings
from rdm.sampling.signing import Key

PREVIEW = 0.4  # seconds from one preview to the next
GREY = 0.75  # what is not there yet, in [-1, 1]


@dataclass(frozen=True, eq=False)
class Job:
    """A request for images with the neighbours of one place.

    Attributes:
        place: the name of the database, or of the part of it, that the neighbours come from.
        pipeline: the pipeline of that place.
        request: the request.
        settings: the settings.
    """

    place: str
    pipeline: Pipeline
    request: Request
    settings: Settings


@dataclass(frozen=True, eq=False)
class Step:
    """What is known after a denoising step.

    Attributes:
        share: how much of all jobs is done, from 0 to 1.
        preview: a PNG file of the image as the model would complete it now; None if there is no new one.
    """

    share: float
    preview: bytes | None = None


@dataclass(frozen=True, eq=False)
class Drawn:
    """One image.

    Attributes:
        png: the content of its PNG file, with its record.
        record: the record.
        neighbours: the contents of the PNG files of its neighbours, nearest first.
        samples: what it was sampled as: the request, settings and so on of this image alone.
        place: see :class:`Job`.
        number: its number among the images of its job, from 0.
        edited: a PNG file of the picture that it is an edit of, at its size; None if it is no edit.
        sources: PNG files of the ``picture`` and the ``mask`` that it is an edit of, if they were given open: with
            them, it can be made again, as its record has the hashes of their pixels.
    """

    png: bytes
    record: Mapping[str, Any]
    neighbours: tuple[bytes, ...]
    samples: Samples
    place: str
    number: int
    edited: bytes | None = None
    sources: Mapping[str, bytes] = field(default_factory=dict)


class _Halted(Exception):  # noqa: N818 (it is no error)
    """Ends sampling because the user stopped it."""


def draw(
    jobs: Sequence[Job],
    lock: threading.Lock,
    temporary: Callable[[], AbstractContextManager[Path]],
    stop: threading.Event,
    key: Key | None = None,
) -> Iterator[Step | Drawn]:
    """Yields steps and images until all jobs are done, or ``stop`` is set. When it is closed early, sampling ends.

    Args:
        jobs: what is sampled, in this order.
        lock: held while the model samples.
        temporary: makes a folder for temporary files, which is removed at the end of the ``with`` block.
        stop: ends sampling at the next step when it is set.
        key: signs the images; None signs nothing.

    Raises:
        ValueError: see :func:`rdm.sampling.samples.sample`.
    """
    events: queue.SimpleQueue[Step | Drawn | BaseException | None] = queue.SimpleQueue()

    def work() -> None:
        end: BaseException | None = None
        try:
            with lock, temporary() as folder:
                _sample(jobs, folder, stop, events.put, key)
        except _Halted:
            pass
        except BaseException as error:  # noqa: BLE001 (it is raised again where the images are waited for)
            end = error
        events.put(end)

    threading.Thread(target=work, name="sampling", daemon=True).start()
    try:
        while True:
            event = events.get()
            if event is None:
                return
            if isinstance(event, BaseException):
                raise event
            yield event
    finally:
        stop.set()


def _sample(
    jobs: Sequence[Job], folder: Path, stop: threading.Event, tell: Callable[[Step | Drawn], None], key: Key | None
) -> None:
    shown = time.monotonic()
    for place, job in enumerate(jobs):
        if stop.is_set():
            raise _Halted

        def watch(done: int, steps: int, preview: Callable[[], Tensor], place: int = place) -> None:
            nonlocal shown
            if stop.is_set():
                raise _Halted
            picture = None
            if done < steps and time.monotonic() - shown >= PREVIEW:
                picture, shown = png_of(preview()[0]), time.monotonic()
            tell(Step((place + done / steps) / len(jobs), picture))

        number = 0
        for samples in sample_batches(job.pipeline, job.request, job.settings, watch):
            for each in range(len(samples.seeds)):
                tell(kept(samples.part([each]), job, number, folder, key))
                number += 1


def kept(samples: Samples, job: Job, number: int, folder: Path, key: Key | None = None) -> Drawn:
    """Returns one sampled image with its record, as ``scripts/`` write it, and the pictures of its neighbours."""
    try:
        save(samples, job.pipeline, folder, "image", neighbours=True, key=key)
        file = folder / "image-000.png"
        places = range(samples.request.retrieved.rows.shape[1])
        pictures = tuple((folder / f"image-000-neighbour-{place}.png").read_bytes() for place in places)
        before = edited(samples.request)
        sources = edit_sources(samples.request)
        return Drawn(file.read_bytes(), read_record(file), pictures, samples, job.place, number, before, sources)
    finally:
        for written in folder.iterdir():
            written.unlink()


def png_of(image: Tensor) -> bytes:
    """Returns a PNG file of an image ``[C, H, W]`` in [-1, 1], without a record."""
    return png_file(as_picture(to_uint8(image)))


def png_file(picture: Image.Image) -> bytes:
    """Returns a PNG file of a picture."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def edited(request: Request) -> bytes | None:
    """Returns a PNG file of the picture that is edited, on which what an outpainting adds is grey; None without one."""
    if request.canvas is None:
        return None
    picture = with_channels(request.canvas.picture, 3)[0]
    if request.canvas.paint is not None and request.canvas.about["outpaint"] is not None:
        picture = torch.lerp(picture, torch.full_like(picture, GREY), request.canvas.paint[0])
    return png_of(picture)


def edit_sources(request: Request) -> dict[str, bytes]:
    """Returns PNG files of the ``picture`` and the ``mask`` of an edit, whose pixels have the hashes in its record.

    A picture that was given as a file, or a mask in colours, is left out: the user has the file, and the canvas does
    not.
    """
    if request.canvas is None:
        return {}
    picture, paint, about = request.canvas.picture, request.canvas.paint, request.canvas.about
    left, top, right, bottom = about["outpaint"] or (0, 0, 0, 0)
    height, width = picture.shape[2:]
    tensors = {"picture": picture[..., top : height - bottom, left : width - right]}
    if about["mask_sha256"] is not None and paint is not None:
        tensors["mask"] = paint * 2 - 1
    pictures = {name: Image.fromarray(to_pixels(each[0])) for name, each in tensors.items()}
    return {
        name: png_file(each)
        for name, each in pictures.items()
        if picture_hash(np.asarray(each)) == about[f"{name}_sha256"]
    }
