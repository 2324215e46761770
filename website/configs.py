"""Tables of the keys of configs, made from the signatures and the docstrings of the classes that configs name."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

from ldm.config import RunConfig
from ldm.data import __all__ as data_sets
from rdm.sampling.settings import AUTOREGRESSION, DIFFUSERS, DIFFUSION, EVERY, OPTIONS, Settings
from website.commands import cell
from website.signatures import ROOT, class_of, descriptions, in_markdown, keys_of, summary_of

# The heading of the classes whose names begin with one of these; a class stands below the first that fits.
GROUPS = {
    "Models": ("ldm.models.diffusion.", "rdm.models."),
    "First stages": ("ldm.models.autoencoder.",),
    "Networks": ("ldm.modules.diffusionmodules.", "rdm.modules."),
    "Data": ("ldm.data.", "rdm.data."),
    "Embedders and encoders of conditions": ("ldm.modules.encoders.",),
    "Losses": ("ldm.modules.losses.",),
    "Learning-rate schedules": ("ldm.lr_scheduler.",),
    "Callbacks": ("ldm.callbacks.", "rdm.callbacks."),
}
# Sections whose keys are the arguments of a class, without a target.
SECTIONS = {
    "model.params.conditioner": "rdm.modules.conditioner.Conditioner",
    "model.params.references": "rdm.models.references.References",
    "first_stage_config.params.ddconfig": "ldm.modules.diffusionmodules.model.Encoder",
    "database, beside path and source": "rdm.retrieval.builder.work.Work",
}
NOT_IN_CONFIGS = ("progress",)  # an argument of Work that Python alone can give


def config_files() -> list[Path]:
    """Returns the configs."""
    return sorted((ROOT / "configs").rglob("*.yaml"))


def targets() -> list[str]:
    """Returns the classes of this project that configs name, and all data sets."""
    found = {f"ldm.data.{name}" for name in data_sets}
    for file in config_files():
        found |= set(re.findall(r"target: *((?:ldm|rdm)\.[\w.]+)", file.read_text(encoding="utf-8")))
    return sorted(found)


def files_table() -> str:
    """Returns the table of configs with what their first lines say."""
    lines = ["| config | what it is |", "|---|---|"]
    for file in config_files():
        about, known = _comment(file)
        name = f"`configs/`<br>`{file.relative_to(ROOT / 'configs').as_posix()}`"
        more = [f"*{key}:* {known[key]}" for key in ("Hardware", "Result") if key in known]
        lines.append(f"| {name} | {cell('<br>'.join([about, *more]))} |")
    return "\n".join(lines)


def _comment(file: Path) -> tuple[str, dict[str, str]]:
    """Returns the first sentences of a config, and what follows words such as ``Hardware:`` in its first lines."""
    about: list[str] = []
    known: dict[str, str] = {}
    key = ""
    for line in file.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        text = line.removeprefix("#").strip()
        if begun := re.match(r"([A-Z]\w+):\s*(.*)", text):
            key, text = begun[1], begun[2]
        if key:
            known[key] = f"{known.get(key, '')} {text}"
        else:
            about.append(text)
    return " ".join(about), known


def sections_table() -> str:
    """Returns the table of the sections of a training config."""
    described = descriptions(class_of("ldm.config.RunConfig"))
    names = [each.name for each in fields(RunConfig) if each.name != "content"]
    where = {name: name if name in ("model", "data") else f"lightning.{name}" for name in names}
    rows = [f"| `{where[name]}` | {in_markdown(cell(described[name]))} |" for name in names]
    return "\n".join(["| section | content |", "|---|---|", *rows])


def keys_page() -> str:
    """Returns the keys of all sections and classes, in Markdown."""
    parts = ["## Sections without a target"]
    for where, target in SECTIONS.items():
        parts += [f"### {where}", *_class_section(target)]
    for heading, beginnings in GROUPS.items():
        parts.append(f"## {heading}")
        for target in [target for target in targets() if target.startswith(beginnings)]:
            parts += [f"### {target.rpartition('.')[2]}", f"`{target}`", *_class_section(target)]
    return "\n\n".join(parts)


def _class_section(target: str) -> Iterator[str]:
    yield summary_of(target)
    rows = []
    for key in keys_of(target):
        if key.name not in NOT_IN_CONFIGS:
            default = "required" if key.default is None else f"`{key.default}`"
            words = (f"`{key.name}`", f"`{key.type}`" if key.type else "", key.about, default)
            rows.append(f"| {' | '.join(map(cell, words))} |")
    head = ["| key | type | what it is | default |", "|---|---|---|---|"]
    yield "\n".join([*head, *rows]) if rows else "It has no keys."


MODELS = {DIFFUSION: "diffusion", AUTOREGRESSION: "autoregressive", DIFFUSERS: "pipelines of diffusers"}


def settings_table() -> str:
    """Returns the table of the settings of sampling."""
    lines = ["| setting | what it is | default | models |", "|---|---|---|---|"]
    for each in fields(Settings):
        known = OPTIONS[each.name]
        models = "all" if known.kinds == EVERY else ", ".join(MODELS[kind] for kind in known.kinds)
        lines.append(f"| `{each.name}` | {cell(known.what)} | `{each.default!r}` | {models} |")
    return "\n".join(lines)
