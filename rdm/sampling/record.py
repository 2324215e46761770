"""The record in an image file: it names the sources of the image and holds everything needed to reproduce it.

In a record, the ``similarity`` of a neighbour is its similarity to the query (None if that is not known), and its
``likeness`` is its similarity to the image. A neighbour is a ``row`` of the database, or a picture with its ``file``
(None if it was given open) and its ``sha256``. ``copy`` is the result of copy detection, about the row nearest to the
image.

Format 2 stores the complete sampling settings, and only these, under ``settings``. Its ``query`` is the name of the
image, and its ``prompt`` is the text that the model saw. Format 1 can still be read. It stores tokens and the edited
picture under ``settings``, omits settings that were not given, and has one text instead of query and prompt.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from ldm.data.images import SUFFIXES
from ldm.files import located, parsed_json, portable, read_json, write_json
from ldm.hub import is_hub
from ldm.pictures import as_picture, save_png, to_uint8
from ldm.stopping import Stopped, going_on
from rdm.generators import generator_of
from rdm.loading import Loaded
from rdm.retrieval.database.rows import RetrievalDatabase
from rdm.sampling.copies import Likeness
from rdm.sampling.drafts import ALONE as DRAFT_TOKENS
from rdm.sampling.drafts import Draft
from rdm.sampling.pipeline import Pipeline
from rdm.sampling.ranking import Candidate
from rdm.sampling.record_form import check_record
from rdm.sampling.recorded import ABOUT_A_ROW, check_sources, request_of
from rdm.sampling.request import Request
from rdm.sampling.samples import Samples, sample
from rdm.sampling.settings import Settings
from rdm.sampling.sheet import Sheets
from rdm.sampling.shown import ShownRows
from rdm.sampling.signing import KEYWORD, SIGNATURE, Key
from rdm.sampling.values import check_arguments

LOG = logging.getLogger(__name__)
FORMAT = 2
READ = (1, 2)


def save(
    samples: Samples | Iterable[Samples],
    loaded: Loaded,
    outdir: str | Path,
    name: str,
    *,
    per_row: int | None = None,
    neighbours: bool = False,
    key: Key | None = None,
) -> Path:
    """Writes each image to a file, the contact sheet to ``<name>-grid.png`` and all records to ``<name>.json``.

    Each image file also holds its own record, see :func:`read_record`. The contact sheet is described in
    :mod:`rdm.sampling.sheet`; after every 64 rows, another one begins: ``<name>-grid-2.png`` and so on. A warning names
    the images that are flagged as copies. If sampling is stopped or fails, what was sampled is there with its sheet and
    records.

    Args:
        samples: the images, all together, or a batch at a time as they are sampled; then each batch is written at once.
        loaded: the model and database that the images were sampled with.
        outdir: the folder of the files.
        name: the prefix of the file names.
        per_row: number of images in a row of a grid without neighbours; None shows the neighbours.
        neighbours: whether to write the neighbours' pictures as well, to ``<name>-<number>-neighbour-<place>.png``.
        key: signs each image with its record, see :mod:`rdm.sampling.signing`; None signs nothing. The pictures of
            neighbours are not signed, as they were not made here.

    Returns:
        the path of the contact sheet, or of the first one.
    """
    check_arguments(per_row=per_row)
    outdir, database = Path(outdir), None if loaded.is_plain else loaded.retriever.database
    if neighbours and database is None:
        LOG.warning("a model without retrieval has no neighbours, so none are written")
    common: dict[str, Any] = {}
    records: list[dict[str, Any]] = []
    sheets = Sheets(database, outdir / f"{name}-grid.png", per_row)
    parts = iter([samples] if isinstance(samples, Samples) else samples)

    def finish() -> None:
        if records:
            sheets.finish()
            write_json(outdir / f"{name}.json", {**common, "images": records})

    try:
        for part in parts:
            common = common or about_the_run(part, loaded)
            _save_images(part, database, outdir, name, common, neighbours, key, records)
            sheets.add(part)
    except (KeyboardInterrupt, Stopped):
        with going_on(f"{len(records)} images are in {outdir}, with their records"):
            finish()
            raise
    except Exception:
        with contextlib.suppress(OSError):
            finish()
        raise
    finish()
    copies = [
        f"{r['file']} of {r['copy']['uri'] or r['copy']['row']}" for r in records if r.get("copy", {}).get("is_copy")
    ]
    if copies:
        LOG.warning("%d of %d images are flagged as copies: %s", len(copies), len(records), ", ".join(copies))
    return sheets.first


def _save_images(
    samples: Samples,
    database: RetrievalDatabase | None,
    outdir: Path,
    name: str,
    common: Mapping[str, Any],
    neighbours: bool,
    key: Key | None,
    records: list[dict[str, Any]],
) -> None:
    """Writes the images, and adds their records to those of the images before them."""
    request, first = samples.request, len(records)
    for i, (image, label, seed) in enumerate(zip(samples.images, request.labels, samples.seeds, strict=True)):
        rows = request.retrieved.rows[i]
        found = [] if database is None else _about_neighbours(rows, request.retrieved.scores[i], request, database)
        record: dict[str, Any] = {"query": label, "seed": int(seed), "neighbours": found}
        if request.prompts is not None:
            record["prompt"] = request.prompts[i]
        if request.given is not None:
            record["given"] = request.given[i]
        if samples.copies is not None and database is not None:
            for neighbour, score in zip(found, samples.copies[i].neighbours, strict=True):
                neighbour["likeness"] = score
            record["copy"] = _about_a_copy(samples.copies[i], database)
        if samples.drafts is not None:
            record["draft"] = asdict(samples.drafts[i])
            if samples.is_draft(i):  # in the place of the tokens of the request
                record["tokens"] = DRAFT_TOKENS
        if samples.candidates is not None:
            record["score"] = next(each.score for each in samples.candidates[i] if each.seed == seed)
            record["candidates"] = [asdict(each) for each in samples.candidates[i]]
        file = outdir / f"{name}-{first + i:03d}.png"
        _write(to_uint8(image), file, {**common, **record}, key)
        records.append({"file": file.name, **record})
        shown = [] if database is None or not neighbours else ShownRows(database, request.pictures).patches(rows)
        for place, patch in enumerate(shown):
            named = {key: value for key, value in found[place].items() if key not in ("similarity", "likeness")}
            target = outdir / f"{name}-{first + i:03d}-neighbour-{place}.png"
            _write(torch.from_numpy(patch).permute(2, 0, 1), target, named)


def _write(pixels: torch.Tensor, file: Path, record: Mapping[str, Any], key: Key | None = None) -> None:
    """Writes pixels ``[C, H, W] uint8`` with their record, which a key signs if there is one."""
    texts = {KEYWORD: json.dumps(record)}
    if key is not None:
        texts[SIGNATURE] = key.signature(texts[KEYWORD], as_picture(pixels))
    save_png(pixels, file, texts)


def _about_neighbours(
    rows: np.ndarray, scores: np.ndarray, request: Request, database: RetrievalDatabase
) -> list[dict[str, Any]]:
    """Returns the entries about the neighbours ``[K]`` of an image: rows and given pictures."""
    entries, found = iter(database.metadata(rows[rows >= 0])), []
    for row, score in zip(rows.tolist(), scores.tolist(), strict=True):
        similarity = {"similarity": None if math.isnan(score) else round(score, 4)}
        if row < 0:
            picture = request.pictures[-1 - row]
            found.append({"file": picture.file, "sha256": picture.sha256, **similarity})
        else:
            entry = next(entries)
            found.append({"row": row, **similarity, **{key: entry[key] for key in ABOUT_A_ROW}})
    return found


def _about_a_copy(likeness: Likeness, database: RetrievalDatabase) -> dict[str, Any]:
    (entry,) = database.metadata([likeness.row])
    return {
        "is_copy": likeness.is_copy,
        "threshold": likeness.threshold,
        "likeness": likeness.similarity,
        "row": likeness.row,
        **{key: entry[key] for key in ABOUT_A_ROW},
        "rejected_seeds": list(likeness.rejected),
    }


def about_the_run(samples: Samples, loaded: Loaded) -> dict[str, Any]:
    """Returns the entries that the records of all images of one call have in common."""
    request, settings = samples.request, samples.settings
    about: dict[str, Any] = {
        "format": FORMAT,
        **generator_of(loaded).about(settings),
        **about_the_database(loaded),
        "asked": dict(request.asked),
        "tokens": request.tokens,
        "settings": settings.record(loaded.model.kind),
        "torch": torch.__version__,
    }
    if request.canvas is not None:
        about["edit"] = dict(request.canvas.about)
    if request.query_picture is not None:
        about["query_picture"] = dict(request.query_picture)
    return about


def about_the_database(loaded: Loaded) -> dict[str, Any]:
    """Returns the entries of a record about the database; none for a plain model, which has no database."""
    if loaded.is_plain:
        return {}
    database = loaded.retriever.database
    return {
        "database": portable(database.path),
        "database_fingerprint": database.fingerprint,
        "embedder_fingerprint": database.card["embedder"]["fingerprint"],
    }


def read_record(image: str | Path) -> dict[str, Any]:
    """Returns the record in an image file.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is not an image, or has no record or a record of an unknown format.
    """
    path = located(image)
    if not path.is_file():
        raise FileNotFoundError(f"no image at {path}; give a picture that was written by these scripts")
    try:
        with Image.open(path) as opened:
            text = getattr(opened, "text", {}).get(KEYWORD, "")
            record = parsed_json(text) if text else {}
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
        raise ValueError(f"{path} cannot be read ({error}); give a PNG that the sampling scripts wrote") from error
    found = record.get("format") if isinstance(record, dict) else None
    if not isinstance(record, dict) or type(found) is not int or found not in READ:
        got = "none" if found is None else ascii(found)[:80]
        known = " or ".join(map(str, READ))
        raise ValueError(f"{path} has a record of format {got}, expected {known}; give a PNG that our scripts wrote")
    if found == FORMAT:
        return record
    try:
        return _of_format_1(record)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} has a record of format 1 that is damaged ({error!r}); give another PNG") from error


def _of_format_1(record: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a record of format 1 converted to format 2."""
    settings = {"scale": 1.0, "copy_threshold": None, **record["settings"]}  # the defaults at that time
    if settings.get("weaker"):
        settings = {"weaker_scale": 1.0, **settings}
    names = ("tokens", "edit", "query_picture", "weaker_sha256")
    moved = {name: settings.pop(name) for name in names if name in settings}
    if record.get("copy"):
        settings["copy_threshold"] = record["copy"]["threshold"]
    prompt = {"prompt": record["query"]} if record["asked"]["way"] in ("text", "class") else {}
    return {**record, **prompt, **moved, "settings": settings}


def make_again(
    record: Mapping[str, Any], ckpt: str | None = None, database: str | None = None, adapter: str | None = None
) -> tuple[Samples, Pipeline]:
    """Reproduces the image of a record; returns it with the pipeline that sampled it.

    Args:
        record: the record, see :func:`read_record`.
        ckpt: the path of the checkpoint or of the pipeline of diffusers, if it has moved.
        database: the path of the database, if it has moved.
        adapter: the file of the adapter of a pipeline of diffusers, if it has moved.

    Raises:
        FileNotFoundError: a checkpoint or the database does not exist.
        ValueError: a checkpoint or the database is not the one that the record names.
    """
    check_record(record)
    stored = record.get("database")  # none of a plain model
    named = record.get("generator")
    if named is None:
        if not ckpt and is_hub(record["checkpoint"]):
            raise ValueError(
                f"the record names the model {record['checkpoint']} of the Hugging Face hub, which is not fetched "
                f"because a file says so; give it with --ckpt {record['checkpoint']}"
            )
        pipeline = Pipeline.load(ckpt or record["checkpoint"], database or stored, config=record.get("config"))
    else:
        pipeline = Pipeline.load(
            database=database or stored,
            config=record.get("config"),
            generator=ckpt or named["pipeline"],
            adapter=adapter or named["adapter"],
            image_encoder=named["image_encoder"],
        )
    check_sources(record, pipeline)
    settings, request = Settings.from_record(record["settings"]), request_of(record, pipeline)
    # The record has the seed of the image that was kept, and what the model saw: one draw makes the image.
    samples = sample(pipeline, request, settings.one_draw)
    copies, candidates = samples.copies, None
    if copies is not None:
        copies = [replace(likeness, rejected=tuple(record["copy"]["rejected_seeds"])) for likeness in copies]
    if settings.best_of > 1:
        candidates = [tuple(Candidate(**each) for each in record["candidates"])]
    drafts = None if settings.retrieve_below is None else [Draft(**record["draft"])]
    changed = ("best_of", "reject_copies", "retrieve_below")
    kept = replace(samples.settings, **{name: getattr(settings, name) for name in changed})
    return replace(samples, settings=kept, copies=copies, candidates=candidates, drafts=drafts), pipeline


def written_images(folder: str | Path) -> tuple[list[Path], list[dict[str, Any]]]:
    """Returns the images that the JSON records in a folder name, and these records without their entries for images.

    Without a record, all pictures in the folder are returned.

    Raises:
        FileNotFoundError: the folder does not exist or has no image.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder of images at {folder}; give one that a script has written")
    found, runs = [], []
    for file in sorted(folder.glob("*.json")):
        try:
            record = read_json(file, "")
        except ValueError:  # a JSON file of another program
            continue
        if record.get("format") in READ and "images" in record:
            found += [folder / image["file"] for image in record.pop("images")]
            runs.append(record)
    if not runs:
        found = [file for file in sorted(folder.iterdir()) if file.suffix.lower() in SUFFIXES]
    if not found:
        raise FileNotFoundError(f"no image in {folder}; expected files ending in {', '.join(SUFFIXES)}")
    return found, runs
