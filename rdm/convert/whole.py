"""Exports a model as a folder that loads anywhere: its weights and config, its embedder, its database and a card."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ldm.config import read_config, write_config
from ldm.data.images import expand_files
from ldm.files import BESIDE, atomic_path, located, read_json, write_json
from ldm.modules.encoders.clip import LOCAL_FORM
from rdm.loading import DATABASE_CONFIG
from rdm.retrieval.database.shards import CARD

LOG = logging.getLogger(__name__)
CLIP, DATABASE, PICTURES = "clip", "database", "pictures"
# Of a database: no index, which is built where it is used, and no tables that only training reads.
OF_DATABASE = (CARD, "removed.npz", "popularity.*", "embeddings/*", "metadata/*", "neighbours/train/*")
SUFFIX = {"files": ".parquet", "shards": ".tar"}  # arguments of data sets that name files, and how these end


@dataclass
class Parts:
    """What was put into a folder beside the weights, and what was not.

    Attributes:
        held: each part with its size.
        missing: each part that is too large or not here, with what to do.
        database: the folder of the database, if it is here.
    """

    held: dict[str, str] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    database: Path | None = None


def complete_export(output: str | Path, limit: float) -> Parts:
    """Puts what sampling needs beside the exported weights, and lets the exported config name it.

    Args:
        output: a folder with ``config.yaml``, see :func:`ldm.run.export_run`.
        limit: size in MB up to which each part is put into the folder: the embedder, the database, and the pictures
            that its rows were cut from. The config goes on to name larger ones where they are.

    Raises:
        ValueError: the config or the card of the database is damaged.
    """
    output, parts = Path(output), Parts()
    config = read_config([output / "config.yaml"])
    model, data = (config.get(name, {}).get("params") or {} for name in ("model", "data"))
    stage = model.get("cond_stage_config")
    encoder = (stage.get("params") or {}) if isinstance(stage, dict) else {}
    for params, key in ((encoder, "version"), ((data.get("embedder") or {}).get("params", {}), "model")):
        if key in params:
            _hold_clip(params, key, output, limit, parts)
    if "embedder" in data and "database" in data:
        database = data["database"]
        made_of = {"embedder": data["embedder"], "database": dict(database)}
        _hold_database(database, output, limit, parts)
        made_of["database"]["path"] = database["path"]
        write_config(output / DATABASE_CONFIG, made_of, "What builds the database: scripts/build_database.py --config")
    if parts.held:
        write_config(output / "config.yaml", config)
    return parts


def _hold_clip(params: dict[str, Any], key: str, output: Path, limit: float, parts: Parts) -> None:
    name, folder = params[key], located(params[key])
    if not folder.is_dir():
        parts.missing["embedder"] = f"`{name}`, which open_clip fetches by its name"
        return
    if _held(parts, "embedder", CLIP, [folder / each for each in LOCAL_FORM], folder, output, limit):
        params[key] = BESIDE + CLIP


def _hold_database(database: dict[str, Any], output: Path, limit: float, parts: Parts) -> None:
    folder = Path(database["path"])
    build = f"`python scripts/build_database.py --config {DATABASE_CONFIG}` builds it at `{database['path']}`"
    if not (folder / CARD).is_file():
        parts.missing["database"] = build
        return
    parts.database = folder
    card = read_json(folder / CARD, "build the database again")
    if any("files" in shard for shard in card["shards"]):
        parts.missing["database"] = f"{card['rows']} imported rows; import them again at `{database['path']}`"
        return
    files = [file for pattern in OF_DATABASE for file in sorted(folder.glob(pattern))]
    if not _held(parts, "database", DATABASE, files, folder, output, limit):
        parts.missing["database"] += f"; {build}"
        return
    source, sources = database["source"], card.get("sources") or []
    if len(sources) == 1 and sources[0]["source"] == source and _hold_pictures(source, output, limit, parts):
        key = next(name for name in (*SUFFIX, "root") if name in source["params"])
        for each, up in ((database, ""), (sources[0], "../")):
            each["source"] = {**source, "params": {**source["params"], key: f"{BESIDE}{up}{PICTURES}"}}
        write_json(output / DATABASE / CARD, card)
    elif "pictures" not in parts.missing:
        parts.missing["pictures"] = f"those of {source['target']} {source['params']}, which must be found there"
    database["path"] = BESIDE + DATABASE


def _hold_pictures(source: Mapping[str, Any], output: Path, limit: float, parts: Parts) -> bool:
    """Copies the pictures of a source, unless they are too large or spread over several folders."""
    params = source["params"]
    if "root" in params:
        root = located(params["root"])
        found = [] if params.get("files") else sorted(root.rglob("*"))
        files, folders = [each for each in found if each.is_file()], {root}
    else:
        key = next((name for name in SUFFIX if name in params), None)
        files = expand_files(params[key], SUFFIX[key]) if key else []
        folders = {each.parent for each in files}
    if not files or len(folders) != 1:
        return False
    return _held(parts, "pictures", PICTURES, files, folders.pop(), output, limit)


def _held(parts: Parts, what: str, name: str, files: Sequence[Path], folder: Path, output: Path, limit: float) -> bool:
    """Copies the files of a part into a folder of the output, unless they are larger than the limit."""
    size = sum(file.stat().st_size for file in files) / 1e6
    if size > limit:
        parts.missing[what] = f"{size:.1f} MB at `{folder}`, more than the limit of {limit:g} MB"
        LOG.info("%s: left out, %s", what, parts.missing[what])
        return False
    for file in files:
        with atomic_path(output / name / file.relative_to(folder)) as temporary:
            shutil.copyfile(file, temporary)
    parts.held[what] = f"`{name}/`, {size:.1f} MB"
    return True
