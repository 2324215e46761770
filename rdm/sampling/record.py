"""What an image was made from, kept in its file: enough to name its sources and to make it again.

A neighbour's ``similarity`` is to the query, its ``likeness`` to the image; ``copy`` is about the row most like it.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from ldm.data.images import SUFFIXES
from ldm.files import file_hash, read_json, write_json
from ldm.pictures import image_grid, save_png
from rdm.loading import Loaded, load
from rdm.retrieval.database.rows import RetrievalDatabase
from rdm.retrieval.retriever import Retrieved
from rdm.sampling.copies import CopyCheck, Likeness
from rdm.sampling.ranking import Candidate
from rdm.sampling.samples import Samples, sample_retrieved
from rdm.sampling.sheet import sheet

LOG = logging.getLogger(__name__)
FORMAT = 1
KEYWORD = "rdm"  # of the text in a PNG file
ABOUT_A_ROW = ("image_id", "caption", "uri", "licence", "attribution")


def save(
    samples: Samples,
    loaded: Loaded,
    outdir: str | Path,
    name: str,
    *,
    per_row: int | None = None,
    neighbours: bool = False,
) -> Path:
    """Writes single images, ``<name>-grid.png`` with the neighbours beside each sample, and ``<name>.json``.

    Each image carries its own record (:func:`read_record`); the JSON file repeats them all. An image that is marked
    as a copy has a red frame in the grid, and is named in a warning. Where samples were made of a picture, the grid
    shows it before each of them.

    Args:
        samples: the images.
        loaded: what they were made with.
        outdir: the folder.
        name: what the names of files begin with.
        per_row: the grid shows the images alone, so many in a row.
        neighbours: write the neighbours' pictures as ``<name>-<number>-neighbour-<place>.png``, too.

    Returns:
        the path of the grid.
    """
    outdir, database = Path(outdir), loaded.retriever.database
    common = about_the_run(samples, loaded)
    records: list[dict[str, Any]] = []
    for i, (image, label, seed) in enumerate(zip(samples.images, samples.labels, samples.seeds, strict=True)):
        rows, scores = samples.retrieved.rows[i], samples.retrieved.scores[i]
        found = [
            {"row": int(row), "similarity": round(float(score), 4), **{key: entry[key] for key in ABOUT_A_ROW}}
            for row, score, entry in zip(rows, scores, database.metadata(rows), strict=True)
        ]
        record: dict[str, Any] = {"query": label, "seed": int(seed), "neighbours": found}
        if samples.copies is not None:
            for neighbour, score in zip(found, samples.copies[i].neighbours, strict=True):
                neighbour["likeness"] = score
            record["copy"] = _about_a_copy(samples.copies[i], database)
        if samples.candidates is not None:
            record["score"] = next(each.score for each in samples.candidates[i] if each.seed == seed)
            record["candidates"] = [asdict(each) for each in samples.candidates[i]]
        file = outdir / f"{name}-{i:03d}.png"
        save_png(image_grid({"": image[None]}, gap=0), file, {KEYWORD: json.dumps({**common, **record})})
        records.append({"file": file.name, **record})
        for place, patch in enumerate(database.patches(rows) if neighbours else []):
            about = {KEYWORD: json.dumps({key: found[place][key] for key in ("row", *ABOUT_A_ROW)})}
            target = outdir / f"{name}-{i:03d}-neighbour-{place}.png"
            save_png(torch.from_numpy(patch).permute(2, 0, 1), target, about)
    grid = outdir / f"{name}-grid.png"
    save_png(sheet(samples, database, per_row), grid)
    write_json(outdir / f"{name}.json", {**common, "images": records})
    copies = [
        f"{r['file']} of {r['copy']['uri'] or r['copy']['row']}" for r in records if r.get("copy", {}).get("is_copy")
    ]
    if copies:
        LOG.warning("%d of %d images are marked as copies: %s", len(copies), len(records), ", ".join(copies))
    return grid


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
    """Returns what the records of images that were made together have in common."""
    database = loaded.retriever.database
    settings = dict(samples.settings)
    config = {"config": str(loaded.config), "config_sha256": file_hash(loaded.config)} if loaded.config else {}
    if settings.get("weaker"):
        settings["weaker_sha256"] = file_hash(Path(settings["weaker"]))
    return {
        "format": FORMAT,
        "checkpoint": str(loaded.path),
        "checkpoint_sha256": file_hash(loaded.path),
        **config,
        "database": str(database.path),
        "database_fingerprint": database.fingerprint,
        "asked": samples.asked,
        "settings": settings,
        "torch": torch.__version__,
    }


def read_record(image: str | Path) -> dict[str, Any]:
    """Returns the record that an image carries.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is no image of ours, or one of another version.
    """
    path = Path(image)
    if not path.is_file():
        raise FileNotFoundError(f"no image at {path}")
    try:
        with Image.open(path) as opened:
            text = getattr(opened, "text", {}).get(KEYWORD, "")
            record = json.loads(text) if text else {}
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
        raise ValueError(f"{path} cannot be read ({error}); give a PNG that the sampling scripts wrote") from error
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        got = record.get("format") if isinstance(record, dict) and record else "none"
        raise ValueError(f"{path} has a record of format {got}, expected {FORMAT}; give a PNG that our scripts wrote")
    return record


def make_again(
    record: Mapping[str, Any], ckpt: str | None = None, database: str | None = None
) -> tuple[Samples, Loaded]:
    """Returns the image of a record, made anew, and what it was made with.

    Args:
        record: what :func:`read_record` returned.
        ckpt: where the checkpoint is now, if it has moved.
        database: likewise.

    Raises:
        FileNotFoundError: a checkpoint or the database is no longer there.
        ValueError: there is another one in its place.
    """
    loaded = load(ckpt or record["checkpoint"], database or record["database"], config=record.get("config"))
    opened, settings = loaded.retriever.database, dict(record["settings"])
    checks = [(f"checkpoint {loaded.path}", file_hash(loaded.path), record["checkpoint_sha256"])]
    checks.append((f"database {opened.path}", opened.fingerprint, record["database_fingerprint"]))
    if loaded.config:
        checks.append((f"config {loaded.config}", file_hash(loaded.config), record["config_sha256"]))
    if settings.get("weaker"):
        checks.append(
            (f"checkpoint {settings['weaker']}", file_hash(Path(settings["weaker"])), settings.pop("weaker_sha256"))
        )
    for what, got, expected in checks:
        if got != expected:
            raise ValueError(f"{what} has fingerprint {got}, the image was made with {expected}; give that one")
    best_of = settings.pop("best_of", None)
    rows = np.array([[neighbour["row"] for neighbour in record["neighbours"]]], dtype=np.int64)
    scores = np.array([[neighbour["similarity"] for neighbour in record["neighbours"]]], dtype=np.float32)
    retrieved = Retrieved(torch.from_numpy(opened.embeddings(rows)).to(loaded.model.device), rows, scores)
    copy: Any = record.get("copy")
    options = {"copies": CopyCheck(copy["threshold"]) if copy else None, "asked": record["asked"], **settings}
    samples = sample_retrieved(loaded, retrieved, [record["query"]], [record["seed"]], **options)
    if samples.copies is not None:  # the seed is the one that was kept
        again = [replace(likeness, rejected=tuple(copy["rejected_seeds"])) for likeness in samples.copies]
        samples = replace(samples, copies=again)
    if best_of is not None:  # likewise
        candidates = tuple(Candidate(**each) for each in record["candidates"])
        samples = replace(samples, candidates=[candidates], settings={**samples.settings, "best_of": best_of})
    return samples, loaded


def written_images(folder: str | Path) -> tuple[list[Path], list[dict[str, Any]]]:
    """Returns the images in a folder that its JSON records name, and those records without their images.

    Where there is no record, they are all pictures of the folder.

    Raises:
        FileNotFoundError: no such folder, or no image in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder of images at {folder}")
    found, runs = [], []
    for file in sorted(folder.glob("*.json")):
        try:
            record = read_json(file, "")
        except ValueError:  # another's
            continue
        if record.get("format") == FORMAT and "images" in record:
            found += [folder / image["file"] for image in record.pop("images")]
            runs.append(record)
    if not runs:
        found = [file for file in sorted(folder.iterdir()) if file.suffix.lower() in SUFFIXES]
    if not found:
        raise FileNotFoundError(f"no image in {folder}; expected files ending in {', '.join(SUFFIXES)}")
    return found, runs
