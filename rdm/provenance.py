"""What an image was made from, kept in its file: enough to name its sources and to make it again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, UnidentifiedImageError

from ldm.callbacks import image_grid, save_png
from ldm.files import file_hash, write_json
from rdm.loading import Loaded, load
from rdm.retrieval.pictures import pictures
from rdm.retrieval.retriever import Retrieved
from rdm.sample import Samples, sample_retrieved

FORMAT = 1
KEYWORD = "rdm"  # of the text in a PNG file
_ABOUT_A_ROW = ("image_id", "caption", "uri", "licence", "attribution")


def save(samples: Samples, loaded: Loaded, outdir: str | Path, name: str) -> Path:
    """Writes single images, ``<name>-grid.png`` with the neighbours beside each sample, and ``<name>.json``.

    Where samples were made of a picture, the grid shows it before each of them. Each image carries its own record
    (:func:`read_record`); the JSON file repeats them all.

    Returns:
        the path of the grid.
    """
    outdir, database = Path(outdir), loaded.retriever.database
    common = _about_the_run(samples, loaded)
    records = []
    for i, (image, label, seed) in enumerate(zip(samples.images, samples.labels, samples.seeds, strict=True)):
        rows, scores = samples.retrieved.rows[i], samples.retrieved.scores[i]
        neighbours = [
            {"row": int(row), "similarity": round(float(score), 4), **{key: entry[key] for key in _ABOUT_A_ROW}}
            for row, score, entry in zip(rows, scores, database.metadata(rows), strict=True)
        ]
        record = {"query": label, "seed": int(seed), "neighbours": neighbours}
        file = outdir / f"{name}-{i:03d}.png"
        save_png(image_grid({"": image[None]}, gap=0), file, {KEYWORD: json.dumps({**common, **record})})
        records.append({"file": file.name, **record})
    grid = outdir / f"{name}-grid.png"
    height, width = samples.images.shape[2:]
    side = min(height, width)
    shown = pictures(database, samples.retrieved.rows, side)
    columns = {"sample": samples.images, "neighbours": F.pad(shown, (0, width - side, 0, height - side), value=1.0)}
    if samples.picture is not None:
        columns = {"picture": samples.picture.expand_as(samples.images), **columns}
    save_png(image_grid(columns), grid)
    write_json(outdir / f"{name}.json", {**common, "images": records})
    return grid


def _about_the_run(samples: Samples, loaded: Loaded) -> dict[str, Any]:
    database = loaded.retriever.database
    settings = dict(samples.settings)
    if settings.get("weaker"):
        settings["weaker_sha256"] = file_hash(Path(settings["weaker"]))
    return {
        "format": FORMAT,
        "checkpoint": str(loaded.path),
        "checkpoint_sha256": file_hash(loaded.path),
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
    loaded = load(ckpt or record["checkpoint"], database or record["database"])
    opened, settings = loaded.retriever.database, dict(record["settings"])
    checks = [(f"checkpoint {loaded.path}", file_hash(loaded.path), record["checkpoint_sha256"])]
    checks.append((f"database {opened.path}", opened.fingerprint, record["database_fingerprint"]))
    if settings.get("weaker"):
        checks.append(
            (f"checkpoint {settings['weaker']}", file_hash(Path(settings["weaker"])), settings.pop("weaker_sha256"))
        )
    for what, got, expected in checks:
        if got != expected:
            raise ValueError(f"{what} has fingerprint {got}, the image was made with {expected}; give that one")
    rows = np.array([[neighbour["row"] for neighbour in record["neighbours"]]], dtype=np.int64)
    scores = np.array([[neighbour["similarity"] for neighbour in record["neighbours"]]], dtype=np.float32)
    retrieved = Retrieved(torch.from_numpy(opened.embeddings(rows)).to(loaded.model.device), rows, scores)
    return sample_retrieved(
        loaded, retrieved, [record["query"]], [record["seed"]], asked=record["asked"], **settings
    ), loaded
