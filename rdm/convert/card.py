"""The model card of an exported folder: a README.md with the metadata that the hub reads and the record of training."""

from __future__ import annotations

import csv
import re
import shutil
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ldm.checkpoint import read_metadata
from ldm.config import picture_params, read_config
from ldm.files import atomic_path, located, read_text, write_text
from ldm.hub import card_metadata
from rdm.convert.whole import Parts
from rdm.retrieval.database.rows import RetrievalDatabase

CARD = "README.md"
LICENCE = "other"
KINDS = {  # beginnings of targets: what the model is, and its tags
    "rdm.models.diffusion": ("A retrieval-augmented diffusion model", ["retrieval-augmented", "diffusion"]),
    "rdm.models.autoregression": (
        "A retrieval-augmented autoregressive model",
        ["retrieval-augmented", "autoregressive"],
    ),
    "ldm.models.diffusion": ("A latent diffusion model", ["latent-diffusion", "diffusion"]),
    "ldm.models.autoencoder": ("A first stage of latent diffusion models", ["autoencoder"]),
}
_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)#\s]+)(#[^)\s]*)?\)")


def write_card(run: str | Path, output: str | Path, parts: Parts, licence: str = LICENCE) -> Path:
    """Writes the card of an exported folder and returns its path.

    Args:
        run: the run or the folder that was exported. Its ``metrics.csv`` and ``README.md`` are used if it has them.
        output: the exported folder.
        parts: what it holds, see :func:`rdm.convert.whole.complete_export`.
        licence: of the weights, by the hub's identifier.
    """
    run, output = located(run), Path(output)
    config = read_config([output / "config.yaml"])
    target = str(config["model"]["target"])
    what, tags = next((each for start, each in KINDS.items() if target.startswith(start)), ("A model", []))
    lines = [card_metadata(licence, tags), "", f"# {output.resolve().name}", "", f"{what} (`{target}`).", ""]
    if "autoencoder" not in target:
        lines += ["```python", "import rdm", "", 'pipeline = rdm.load("hf:OWNER/NAME")  # or this folder', "```", ""]
    lines += _parts(parts) + _record(run, config) + _licences(parts, licence) + _own_words(run, output)
    write_text(output / CARD, "\n".join(lines) + "\n")
    return output / CARD


def _parts(parts: Parts) -> list[str]:
    if not parts.held and not parts.missing:
        return []
    lines = ["## What is here", "", "| part | where |", "|---|---|", "| weights | `model.safetensors`, `config.yaml` |"]
    lines += [f"| {name} | {text} |" for name, text in parts.held.items()]
    return [*lines, *(f"| {name} | not here: {text} |" for name, text in parts.missing.items()), ""]


def _record(run: Path, config: Mapping[str, Any]) -> list[str]:
    """Returns the section about the training, of what the config and the metrics of a run say."""
    model, data = (config.get(name, {}).get("params") or {} for name in ("model", "data"))
    trainer = (config.get("lightning") or {}).get("trainer") or {}
    rows: dict[str, Any] = {
        "steps in the config": trainer.get("max_steps"),
        "batch size on each device": data.get("batch_size"),
        "learning rate": model.get("learning_rate", config["model"].get("base_learning_rate")),
        "picture size": (picture_params(data) or {}).get("size"),
        "neighbours": (model.get("conditioner") or {}).get("k"),
        "training pictures": _named(data.get("train")),
        **_last_metrics(run / "metrics.csv"),
    }
    file = run / "model.safetensors"
    if file.is_file():
        rows |= {name: value for name, value in read_metadata(file).items() if name != "format"}
    known = [f"| {name} | {value} |" for name, value in rows.items() if value is not None]
    return ["## Training", "", "| | |", "|---|---|", *known, "", "`config.yaml` has all settings.", ""]


def _named(images: Any) -> str | None:
    if not isinstance(images, Mapping):
        return None
    params = images.get("params") or {}
    where = next((params[key] for key in ("name", "files", "root", "shards") if key in params), "")
    return f"`{images.get('target')}` {where}".strip()


def _last_metrics(file: Path) -> dict[str, str]:
    """Returns the last step and the last value of each validation loss in the metrics of a run."""
    if not file.is_file():
        return {}
    found: dict[str, str] = {}
    with file.open(encoding="utf-8", newline="") as stream:
        for line in csv.DictReader(stream):
            found |= {name: value for name, value in line.items() if value and (name == "step" or "val" in name)}
    step = found.pop("step", None)
    return {**({"last step": step} if step else {}), **{f"last {name}": value for name, value in found.items()}}


def _licences(parts: Parts, licence: str) -> list[str]:
    lines = ["## Licences", ""]
    lines += ["The licence of the weights is not stated." if licence == LICENCE else f"Weights: {licence}.", ""]
    if parts.database is None:
        return lines
    counts = Counter(RetrievalDatabase.open(parts.database).column("licence").to_pylist())
    lines += ["| licence of pictures in the database | rows |", "|---|---|"]
    return [*lines, *(f"| {name or 'unknown'} | {rows} |" for name, rows in counts.most_common(20)), ""]


def _own_words(run: Path, output: Path) -> list[str]:
    """Returns the README of the run, whose pictures are copied; links to files that are not here become words."""
    if not (run / CARD).is_file():
        return []

    def kept(match: re.Match[str]) -> str:
        picture, words, path, _ = match.groups()
        if "://" in path:
            return match.group(0)
        file = run / path
        if picture and file.is_file() and "/" not in path:
            with atomic_path(output / path) as temporary:
                shutil.copyfile(file, temporary)
            return match.group(0)
        return words

    text = _LINK.sub(kept, read_text(run / CARD)).strip()
    text = re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.DOTALL)
    return ["## In its authors' words", "", re.sub(r"^#", "##", text, flags=re.MULTILINE)]
