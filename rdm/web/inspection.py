"""Inspection of a picture: its record, its neighbours, whether it is a copy, and the same image made again.

A record may come from a stranger. Its texts are only shown. What it names - checkpoint, database, config, pictures - is
never opened: the image is made again with a model and a database of the studio that have the same fingerprints, and
with uploaded pictures that have the same hashes.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ldm.data.decode import centre_crop, sides
from ldm.files import file_hash
from rdm.retrieval.patches.identity import picture_hash
from rdm.sampling.pipeline import Pipeline
from rdm.sampling.record import KEYWORD, read_record
from rdm.sampling.recorded import ABOUT_A_ROW, check_sources, request_of
from rdm.sampling.settings import THRESHOLD, Settings
from rdm.sampling.signing import Verified, verified
from rdm.sampling.values import check_arguments
from rdm.web.drawing import Job
from rdm.web.limits import Limits
from rdm.web.rows import GIVEN, Row, search, shown_rows
from rdm.web.studio import Studio
from rdm.web.uploads import FORMATS, decoded

LOG = logging.getLogger(__name__)
_LONGEST = 300  # characters of a message about a record


@dataclass(frozen=True, eq=False)
class Inspected:
    """What a picture says of itself.

    Attributes:
        picture: the picture, 8-bit RGB.
        record: its record; None if it has none that can be read.
        note: why there is no record; "" if there is one.
        place: the name of the database in the studio that it was made with; None if there is none.
        obstacle: why it cannot be made again here; "" if it can.
        signature: what the signature proves; None if the page has no key.
    """

    picture: Image.Image
    record: Mapping[str, Any] | None
    note: str = ""
    place: str | None = None
    obstacle: str = ""
    signature: Verified | None = None


@dataclass(frozen=True)
class Comparison:
    """Two pictures compared.

    Attributes:
        equal: whether all pixels are equal.
        worst: largest difference of a channel, 0 to 255; -1 if the pictures have different sizes.
        differing: number of pixels that differ.
        pixels: number of pixels.
    """

    equal: bool
    worst: int
    differing: int
    pixels: int

    def words(self) -> str:
        """Returns the result as a sentence."""
        if self.equal:
            return f"Made again: all {self.pixels:,} pixels are equal."
        if self.worst < 0:
            return "Made again: the two images have different sizes."
        return (
            f"Made again: {self.differing:,} of {self.pixels:,} pixels differ, by at most {self.worst} of 255 in a "
            "channel."
        )


def inspected(studio: Studio, data: bytes) -> Inspected:
    """Returns what a picture says of itself.

    Args:
        studio: the studio.
        data: the content of its file.

    Raises:
        ValueError: the file is too large, or no picture.
    """
    picture = decoded(data, studio.limits)
    signature = None if studio.key is None else verified(data, studio.key)
    return replace(_inspected(studio, data, picture), signature=signature)


def _inspected(studio: Studio, data: bytes, picture: Image.Image) -> Inspected:
    try:
        with _one_line():
            if not _has_record(data):
                words = "This picture has no record: it was not made here, or was saved again by another program."
                return Inspected(picture, None, words)
            record = _record_in(data, studio)
            check_shape(record)
    except ValueError as error:
        LOG.info("a record cannot be read: %s", error)
        return Inspected(picture, None, "The record of this picture is damaged, or of another program.")
    try:
        return Inspected(picture, record, place=_place_of(record, studio))
    except ValueError as error:
        return Inspected(picture, record, obstacle=str(error))


def check_shape(record: Mapping[str, Any]) -> None:
    """Checks that a record has the parts that are shown, and that they are what they should be.

    Raises:
        ValueError: a part is missing or is something else.
    """
    neighbours = [each for each in record["neighbours"] if "row" in each]
    given = [each for each in record["neighbours"] if "row" not in each]
    texts = [record[key] for key in ("query", "checkpoint", "checkpoint_sha256")]
    texts += [each[key] for each in neighbours for key in ABOUT_A_ROW] + [each["sha256"] for each in given]
    check_arguments(seed=record["seed"])
    numbers = [each["row"] for each in neighbours]
    scores = [each["similarity"] for each in record["neighbours"] if each["similarity"] is not None]
    copy = record.get("copy")
    if copy is not None:
        numbers.append(copy["row"])
        scores += [copy["likeness"], copy["threshold"]]
    parts = [record["settings"], record["asked"]]
    wrong = [value for value in texts if not isinstance(value, str)]
    wrong += [value for value in numbers if isinstance(value, bool) or not isinstance(value, int) or value < 0]
    wrong += [value for value in scores if not isinstance(value, int | float) or not math.isfinite(value)]
    wrong += [value for value in parts if not isinstance(value, dict)]
    if wrong:
        raise ValueError(f"got {str(wrong[0])[:40]!r} in the record, expected a value of another kind")


def record_rows(studio: Studio, found: Inspected) -> list[Row]:
    """Returns the neighbours in a record: with their pictures if the studio has the database, else only the texts."""
    if found.record is None:
        return []
    neighbours, known = found.record["neighbours"][: studio.limits.neighbours], dict[int, Row]()
    if found.place is not None:
        database = studio.pipeline(found.place).retriever.database
        known = {row.number: row for row in shown_rows(database, [each["row"] for each in neighbours if "row" in each])}
    rows = []
    for each in neighbours:
        if "row" in each:
            row = known.get(each["row"]) or Row(each["row"], {key: each[key] for key in ABOUT_A_ROW})
        else:
            row = Row(GIVEN, {"caption": "a given picture", "uri": f"sha256 {each['sha256'][:12]}..."})
        rows.append(replace(row, similarity=each["similarity"]))
    return rows


def nearest_rows(studio: Studio, found: Inspected, place: str | None = None, k: int = 8) -> list[Row]:
    """Returns the rows nearest to a picture, of the database it was made with unless a place is named."""
    return search(studio.pipeline(place or found.place), picture=found.picture, k=k)


def copy_words(found: Inspected, nearest: Sequence[Row]) -> str:
    """Returns whether a picture is a copy of a row: what its record says, or else what its nearest row says."""
    copy = (found.record or {}).get("copy")
    if copy is not None:
        row, likeness, least = copy["row"], copy["likeness"], copy["threshold"]
    elif nearest:
        row, likeness, least = nearest[0].number, nearest[0].similarity or 0.0, THRESHOLD
    else:
        return ""
    verdict = "A copy" if likeness >= least else "No copy"
    return f"{verdict}: the similarity to the nearest row, {row}, is {likeness:.3f}; a copy has at least {least:.3f}."


def needed(record: Mapping[str, Any]) -> dict[str, str]:
    """Returns the SHA-256 of the pictures that an image was made from, by what they are: file or pixels."""
    edit, query = record.get("edit") or {}, record.get("query_picture") or {}
    named = {"picture": edit.get("picture_sha256"), "mask": edit.get("mask_sha256"), "query": query.get("sha256")}
    named |= {f"neighbour {place + 1}": each.get("sha256") for place, each in enumerate(record["neighbours"])}
    return {name: sha256 for name, sha256 in named.items() if sha256 is not None}


def named_source(name: str) -> str:
    """Returns in words what a picture of :func:`needed` is."""
    words = {"picture": "a picture that was edited", "mask": "a mask", "query": "a picture in the query"}
    return words.get(name, f"a picture as {name}")


def again(studio: Studio, found: Inspected, pictures: Sequence[bytes] = ()) -> Job:
    """Returns the job that makes the image of a record again.

    Args:
        studio: the studio.
        found: the picture with its record.
        pictures: the contents of the files of the pictures that the image was made from, if it was made from any.

    Raises:
        ValueError: there is no record, the studio lacks its model or database, a picture is missing, or a limit is
            exceeded.
    """
    if found.record is None or found.place is None:
        raise ValueError(found.note or found.obstacle)
    pipeline, limits = studio.pipeline(found.place), studio.limits
    with _one_line(), studio.temporary() as folder:
        record = _with_pictures(found, pictures, studio, folder)
        _check_limits(record, limits)
        settings = Settings.from_record(_settings_of(record, pipeline)).one_draw
        request = request_of(record, pipeline)
        if request.query_picture is not None:  # as JSON again
            request = replace(request, query_picture=found.record["query_picture"])
        return studio.job(found.place, request, settings)


def compared(first: Image.Image, second: Image.Image) -> Comparison:
    """Returns in what two pictures differ."""
    total = first.width * first.height
    if first.size != second.size:
        return Comparison(False, -1, total, total)
    pixels = [np.asarray(each.convert("RGB")).astype(np.int16) for each in (first, second)]
    differences = np.abs(pixels[0] - pixels[1]).max(axis=2)
    worst, differing = int(differences.max()), int(np.count_nonzero(differences))
    return Comparison(differing == 0, worst, differing, total)


def _record_in(data: bytes, studio: Studio) -> dict[str, Any]:
    with studio.temporary() as folder:
        (folder / "picture.png").write_bytes(data)
        return read_record(folder / "picture.png")


def _has_record(data: bytes) -> bool:
    """Returns whether a PNG file has the text of a record."""
    with Image.open(io.BytesIO(data), formats=FORMATS) as opened:
        return KEYWORD in getattr(opened, "text", {})


def _place_of(record: Mapping[str, Any], studio: Studio) -> str:
    """Returns the name of the database in the studio that an image was made with.

    Raises:
        ValueError: the studio does not have it, or not the model.
    """
    made_with, configured = record["checkpoint_sha256"], record.get("config_sha256")
    pipeline = studio.pipeline()  # whose model is that of all others
    own = None if pipeline.config is None else _hash(pipeline.config)
    if made_with != _hash(pipeline.path) or configured != own:
        raise ValueError(f"It was made by another model than that of this page (sha256 {made_with[:12]}...).")
    last = max((each["row"] for each in record["neighbours"] if "row" in each), default=0)
    sources = {**record, "settings": {}}  # without the checkpoint that is named there
    for name, pipeline in studio.pipelines.items():
        with contextlib.suppress(ValueError), _one_line():
            check_sources(sources, pipeline)
            if last < len(pipeline.retriever.database):
                return name
    raise ValueError("It was made with a database that this page does not have, or whose rows have changed since.")


def _settings_of(record: Mapping[str, Any], pipeline: Pipeline) -> dict[str, Any]:
    """Returns the settings of a record, in which a weaker model is the one of the pipeline.

    Raises:
        ValueError: it is another one, or the networks were compiled.
    """
    settings = dict(record["settings"])
    if settings.get("compile"):
        raise ValueError("it was made with compiled networks, which this page does not compile; use sample.py for it")
    if settings.get("weaker"):
        if record.get("weaker_sha256") != _hash(pipeline.path):
            raise ValueError("it was made with a weaker model that this page does not have; use sample.py for it")
        settings["weaker"] = str(pipeline.path)
    return settings


def _with_pictures(found: Inspected, files: Sequence[bytes], studio: Studio, folder: Path) -> dict[str, Any]:
    """Returns the record of a picture with the pictures that it names in the place of their paths.

    Args:
        found: the picture with its record.
        files: the contents of files; one that was used as a file is written to the folder.
        studio: the studio.
        folder: a folder for files.

    Raises:
        ValueError: a picture is missing.
    """
    record, known = dict(found.record or {}), dict[str, str | Image.Image]()
    left, top, right, bottom = (record.get("edit") or {}).get("outpaint") or (0, 0, 0, 0)
    size = (found.picture.height - top - bottom, found.picture.width - left - right)
    for number, data in enumerate(files):
        picture, file = decoded(data, studio.limits), folder / f"{number}"
        file.write_bytes(data)
        known[hashlib.sha256(data).hexdigest()] = str(file)
        fitted = [centre_crop(picture, size)] if min(size) > 0 else []  # as the tab Edit does
        known |= {picture_hash(np.asarray(each)): each for each in (*fitted, picture)}
    named = {}
    for name, sha256 in needed(record).items():
        if sha256 not in known:
            what = f"{named_source(name)} with sha256 {str(sha256)[:12]}..."
            raise ValueError(f"it was made from {what}; upload this file, too")
        named[name] = known[sha256]
    if "edit" in record:
        record["edit"] = {**record["edit"], "picture": named["picture"], "mask": named.get("mask")}
    if "query" in named:
        record["query_picture"] = {**record["query_picture"], "file": named["query"]}
    record["neighbours"] = [
        each if "row" in each else {**each, "file": named[f"neighbour {place + 1}"]}
        for place, each in enumerate(record["neighbours"])
    ]
    return record


def _check_limits(record: Mapping[str, Any], limits: Limits) -> None:
    """Checks numbers of a record that could make the page work long or fill the memory.

    Raises:
        ValueError: one is above its limit.
    """
    limits.check(prompt_characters=len(record.get("prompt") or ""), neighbours=len(record["neighbours"]))
    edit = record.get("edit") or {}
    if edit.get("size") is not None:
        size = edit["size"]
        limits.check(side=max(sides(size if isinstance(size, int) else tuple(size))))
    limits.check(side=max(edit.get("outpaint") or [0]), neighbours=len(edit.get("inverted_with_rows") or []))
    limits.check(steps=edit.get("repeats"))


@contextlib.contextmanager
def _one_line() -> Iterator[None]:
    """Turns what a record of unexpected content raises into a ValueError of one short line.

    Raises:
        ValueError: something was raised.
    """
    try:
        yield
    except (ValueError, OSError) as error:
        raise ValueError(" ".join(str(error).split())[:_LONGEST]) from error
    except (LookupError, TypeError, AttributeError, ArithmeticError, RecursionError, MemoryError) as error:
        raise ValueError(f"the record is incomplete or damaged ({type(error).__name__})") from error


def _hash(file: Path) -> str:
    """Returns the SHA-256 of a file, which is computed anew only if the file has changed."""
    state = file.stat()
    return _hash_of(file, state.st_mtime_ns, state.st_size)


@functools.lru_cache(maxsize=16)
def _hash_of(file: Path, *_: int) -> str:
    return file_hash(file)
