"""Reads and writes YAML configs; the only module that imports OmegaConf."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from ldm.convert.lightning import our_lightning
from ldm.files import atomic_path, beside, cache, located, project, read_text, to_build
from ldm.util import check_mapping, nearest

SECTIONS = ("model", "data", "lightning")
LIGHTNING = ("trainer", "callbacks", "checkpoint", "logger")
PROJECT = ("configs", "models", "logs")  # folders of the project whose configs name what is built in the project


@dataclass(frozen=True)
class RunConfig:
    """The config of a training run, with its sections checked.

    Attributes:
        content: the whole config, as the run folder keeps it.
        model: ``target`` and ``params`` of the model, and ``base_learning_rate`` in CompVis' configs.
        data: ``target`` and ``params`` of the data module.
        trainer: arguments of Lightning's ``Trainer``.
        callbacks: ``target`` and ``params`` of further callbacks, by a name of the user's.
        checkpoint: arguments of Lightning's ``ModelCheckpoint``.
        logger: ``target`` and ``params`` of each logger beside that of ``metrics.csv``.
    """

    content: dict[str, Any]
    model: Mapping[str, Any]
    data: Mapping[str, Any]
    trainer: Mapping[str, Any]
    callbacks: Mapping[str, Any]
    checkpoint: Mapping[str, Any]
    logger: Sequence[Mapping[str, Any]]

    @property
    def monitor(self) -> str | None:
        """Name of the logged value that picks the best checkpoint."""
        return (self.model.get("params") or {}).get("monitor")

    @property
    def learning_rate(self) -> float | None:
        """The learning rate where the config states it outside of the model's ``params``, as CompVis' configs do."""
        return self.model.get("base_learning_rate")

    @property
    def batch_size(self) -> int:
        """Images of a batch on one device."""
        return (self.data.get("params") or {}).get("batch_size", 1)


def read_config(files: Sequence[str | Path], overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Returns the merged content of YAML files, of which later ones win, and of overrides, which win over all files.

    In a config of the project (in its ``configs``, ``models`` and ``logs``), a relative ``path``, which names what is
    built (a database, a table of codes), follows :func:`ldm.files.to_build` and not the working directory, unless it
    exists there.
    A path ``beside:PATH`` starts from the folder of the file.

    Args:
        files: paths of YAML files, see :func:`ldm.files.located`.
        overrides: settings of the form ``model.params.k=8``.

    Raises:
        FileNotFoundError: a file is missing; names the nearest one in ``configs/``.
        ValueError: a file is not a YAML mapping, or an override has no ``=``.
    """
    found_at = [located(file) for file in files]
    for file in found_at:
        if not file.is_file():
            found = [str(path.relative_to(project())) for path in (project() / "configs").rglob("*.yaml")]
            raise FileNotFoundError(
                f"no config at {file}{nearest(str(file), found) or '; the shipped ones are in configs/'}"
            )
    for word in overrides:
        if "=" not in word:
            raise ValueError(f"got the setting '{word}', expected key.path=value")
    names = ", ".join(map(str, found_at))
    try:
        parts: list[Any] = [_loaded(file) for file in found_at]
        if lists := [str(file) for file, part in zip(found_at, parts, strict=True) if not OmegaConf.is_dict(part)]:
            raise ValueError(f"config {lists[0]}: expected a mapping, got a list")
        merged = OmegaConf.merge(*map(_with_paths, found_at, parts), OmegaConf.from_dotlist(list(overrides)))
        config: Any = OmegaConf.to_container(merged, resolve=True)
    except TypeError as error:  # of OmegaConf, which does not say where
        raise ValueError(
            f"config {names}: got a list in the place of a mapping, or a mapping in the place of a list; correct the "
            "config, or a setting that replaces it"
        ) from error
    except (OmegaConfBaseException, YAMLError) as error:
        raise ValueError(
            f"config {names}: {_reason(error)}; correct the config, or a setting that replaces it"
        ) from error
    return {str(key): value for key, value in config.items()}


def _loaded(file: Path) -> Any:
    """Returns the content of a YAML file.

    Raises:
        ValueError: the file is not UTF-8, or holds a value where a mapping is expected.
    """
    text = read_text(file)
    try:
        content = OmegaConf.load(io.StringIO(text))
        if OmegaConf.is_dict(content) and list(content) == [text.strip()]:  # a text alone becomes a key
            raise ValueError("got a text")
        return content
    except (OmegaConfBaseException, YAMLError):
        raise
    except (OSError, ValueError) as error:  # a number alone, or one with more digits than Python reads
        raise ValueError(f"config {file}: {_reason(error)}; expected a mapping of names to values") from error


def _reason(error: Exception) -> str:
    """Returns the first sentence of a parser's error in one line, with the place in the file."""
    lines = [line.strip() for line in str(error).splitlines()]
    said = [line for line in lines if line and not line.startswith(("full_key:", "object_type="))]
    keys = [line.removeprefix("full_key:").strip() for line in lines if line.startswith("full_key:")]
    return " ".join(said).rstrip(".") + (f" (at '{keys[0]}')" if keys and keys[0] else "")


def _with_paths(file: Path, config: Any) -> Any:
    """Returns a config with paths from its file (``beside:PATH``), and in the project paths of what is built."""
    content = beside(OmegaConf.to_container(config), file.parent)
    roots = (root / folder for root in (project(), cache()) for folder in PROJECT)
    ours = any(file.absolute().is_relative_to(root) for root in roots)
    return _built_there(content) if ours else OmegaConf.create(content)


def _built_there(part: Any) -> Any:
    if isinstance(part, list):
        return [_built_there(each) for each in part]
    if not isinstance(part, Mapping):
        return part
    content = {name: _built_there(value) for name, value in part.items()}
    path = content.get("path")
    if isinstance(path, str) and not Path(path).exists():
        content["path"] = str(to_build(path))
    return content


def read_run_config(files: Sequence[str | Path], overrides: Sequence[str] = ()) -> RunConfig:
    """Returns the merged config of a training run; for the arguments see :func:`read_config`.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: an unknown or missing section, or one that is no mapping.
    """
    content = read_config(files, overrides)
    check_keys(content, SECTIONS, "config")
    for section in ("model", "data"):
        if section not in content:
            names = ", ".join(map(str, files))
            raise ValueError(f"config {names}: section '{section}' is missing; give it with --base")
        check_mapping(content[section], section)
    check_mapping(content.get("lightning"), "lightning")
    lightning = our_lightning(content.get("lightning") or {})
    check_keys(lightning, LIGHTNING, "lightning")
    loggers = lightning.pop("logger", [])
    for name, part in lightning.items():
        check_mapping(part, f"lightning.{name}")
    parts = {name: lightning.get(name) or {} for name in LIGHTNING if name != "logger"}
    return RunConfig(content, content["model"] or {}, content["data"] or {}, **parts, logger=loggers)


def check_keys(mapping: dict[str, Any], known: Sequence[str], where: str) -> None:
    """Checks the keys of a mapping.

    Raises:
        ValueError: an unknown key, for which the error names the nearest known one; or no mapping.
    """
    check_mapping(mapping, where)
    for key in mapping:
        if key not in known:
            raise ValueError(
                f"{where}: unknown key '{key}'{nearest(str(key), known) or ', expected ' + ', '.join(known)}"
            )


def write_config(file: str | Path, config: dict[str, Any], comment: str = "") -> None:
    """Writes a config as YAML, below the lines of a comment. An interrupted call leaves the old file as it was."""
    with atomic_path(file) as temporary:
        text = "".join(f"# {line}\n" for line in comment.splitlines())
        temporary.write_text(text + OmegaConf.to_yaml(OmegaConf.create(config)), encoding="utf-8")


def picture_params(config: Any) -> Mapping[str, Any] | None:
    """Returns the parameters in the config of a data module or of a data set that state the size of the pictures.

    They are the first ones with a ``crop_size`` or a ``size`` below the first of ``train``, ``validation`` and ``test``
    that has such ones. None stands for a config without them.
    """
    if not isinstance(config, Mapping):
        return None
    if any(isinstance(config.get(name), int | Sequence) for name in ("crop_size", "size")):
        return config
    names = sorted(config, key=lambda name: ("train", "validation", "test", name).index(name))
    return next((found for name in names if (found := picture_params(config[name])) is not None), None)
