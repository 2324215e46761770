"""Adapting the shipped model to pictures: the config of the run, the run itself, and the model before and after it."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ldm.checkpoint import read_weights
from ldm.config import read_config, write_config
from ldm.files import located
from ldm.stopping import Stopped, handled
from ldm.util import evenly, instantiate_from_config
from rdm.retrieval.config import embedder_config, load_embedder, source_config
from rdm.retrieval.embedder import Embedder
from rdm.sampling.pipeline import Pipeline

BASE = "configs/own.yaml"
CONFIG = "config.yaml"
KEPT_IN_MEMORY = 10_000  # at most so many decoded pictures, which have 49 kB each with 64 x 64 pixels
PROJECTIONS = ("attn2.to_k.weight", "attn2.to_v.weight")  # the weights of a U-Net that fit one width of embeddings only


@dataclass(frozen=True)
class Pictures:
    """Pictures with their captions, for a message.

    Attributes:
        path: where they are.
        images: the data set.
        captions: the caption of each picture, empty where it has none.
        sources: number of captions by where they come from, see :class:`ldm.data.captions.Captions`.
    """

    path: str
    images: Any
    captions: Sequence[str]
    sources: Mapping[str, int]

    @classmethod
    def of(cls, path: str, images: Any) -> Pictures:
        """Returns the pictures of a data set."""
        found = getattr(images, "captions", None)
        known = [images.metadata(number) for number in range(len(images))]
        captions = [each["caption"] for each in known]
        named = [found.of(each["id"])[1] if found else "column" for each in known if each["caption"]]
        return cls(path, images, captions, Counter(named))

    def distinct(self, n: int) -> list[int]:
        """Returns the numbers of at most n pictures with different captions, evenly spread."""
        first = {caption: number for number, caption in reversed(list(enumerate(self.captions))) if caption}
        numbers = sorted(first.values())
        return [numbers[place] for place in evenly(len(numbers), min(n, len(numbers)))]

    def __str__(self) -> str:
        count = len(self.images)
        if not self.sources:
            return f"{count} pictures in {self.path}, without captions"
        sources = ", ".join(f"{source} {number}" for source, number in self.sources.items())
        names = [Path(self.images.metadata(number)["id"]).name for number in self.distinct(3)]
        examples = ", ".join(f"'{self.captions[i]}' ({name})" for i, name in zip(self.distinct(3), names, strict=True))
        with_caption = sum(self.sources.values())
        return f"{count} pictures in {self.path}; {with_caption} have a caption ({sources}), such as {examples}"


@dataclass(frozen=True)
class Adaptation:
    """A run that adapts a model to pictures, in a folder with its config, its database and its run folder.

    Attributes:
        folder: the folder.
        config: the config of the run.
        pictures: the pictures.
        embedder: the embedder of the config.
    """

    folder: Path
    config: dict[str, Any]
    pictures: Pictures
    embedder: Embedder = field(repr=False)

    @property
    def run(self) -> Path:
        """The run folder."""
        return self.folder / "run"

    @property
    def starts_from(self) -> str:
        """The checkpoint of the model that is adapted."""
        return str(self.config["model"]["params"]["ckpt_path"])

    def before(self) -> Pipeline | None:
        """Returns the model before the training with the database of the pictures, which is built if it is missing.

        Returns None if the model does not understand the embeddings of the database, which are of another embedder.
        """
        if self.config["model"]["params"].get("ignore_keys"):
            return None
        return Pipeline.load(self.starts_from, config=str(self.folder / CONFIG))

    def after(self) -> Pipeline:
        """Returns the trained model with the database of the pictures."""
        return Pipeline.load(str(self.run))

    def train(self, minutes: float, main: Path) -> None:
        """Trains, or goes on with a training that was stopped, up to a number of minutes of training.

        Args:
            minutes: time of training, earlier parts of the run included.
            main: the file of ``main.py``, which runs in a process of its own and gets the signals of this one.

        Raises:
            Stopped: this process was told to stop, and the training has saved its step.
            ValueError: the training failed.
        """
        begun = (self.run / "checkpoints" / "last.ckpt").is_file()
        words = ["--resume", str(self.run)] if begun else ["--base", str(self.folder / CONFIG), "-p", str(self.run)]
        words += ["-t", "--no-test", f"lightning.trainer.max_time.seconds={round(60 * minutes)}"]
        child = subprocess.Popen([sys.executable, str(main), *words])  # noqa: S603
        with handled(dict.fromkeys((signal.SIGINT, signal.SIGTERM), lambda number, _: child.send_signal(number))):
            code = child.wait()
        ends = {128 + number: number for number in (signal.SIGINT, signal.SIGTERM)}
        if abs(code) in ends or -code in ends.values():
            raise Stopped(ends.get(abs(code), -code), "stopped; the same command goes on where it was")
        if code != 0:
            raise ValueError("the training failed; see its message above")


def adaptation(
    pictures: str,
    folder: Path,
    *,
    base: str = BASE,
    captions: Sequence[str] | None = None,
    caption_table: str | None = None,
    embedder: str | None = None,
    pretrained: str | None = None,
    first_stage: str | None = None,
    overrides: Sequence[str] = (),
) -> Adaptation:
    """Returns a run that adapts a diffusion model to pictures; writes its config into its folder.

    Args:
        pictures: a folder of pictures, Parquet files or tar shards.
        folder: where everything is written. It is the same run if it was begun with the same arguments.
        base: the config that is filled in, a whole one like ``configs/own.yaml``.
        captions: where captions come from, see :class:`ldm.data.captions.Captions`; by default as the config says. An
            empty list stands for pictures without captions.
        caption_table: the table of captions, see there.
        embedder: another CLIP than that of the config, see :func:`rdm.retrieval.config.embedder_config`.
        pretrained: its weights, see there.
        first_stage: the weights of another first stage of the same shape.
        overrides: further settings, such as ``data.params.batch_size=8``.

    Raises:
        FileNotFoundError: there are no pictures, or a file is missing.
        ValueError: there are too few pictures, or the folder was begun with other arguments.
    """
    config = read_config([base], overrides)
    data, model = config["data"]["params"], config["model"]["params"]
    source = source_config(str(located(pictures).absolute()), data["train"]["params"]["size"])
    of_folder = source["target"].endswith("ImageFolder")
    if not of_folder and (captions or caption_table):
        raise ValueError(f"captions: got a choice for {pictures}, which has a column of its own; leave it out")
    if of_folder:
        source["params"]["captions"] = data["train"]["params"]["captions"] if captions is None else list(captions)
        source["params"] |= {"caption_table": caption_table} if caption_table else {}
    found = Pictures.of(pictures, instantiate_from_config(source))
    count, k = len(found.images), data["k"]
    if count <= k:
        raise ValueError(
            f"pictures in {pictures}: got {count}, expected at least {k + 1}, as the model sees {k} neighbours of "
            "each; add some"
        )
    source["params"]["max_broken"] = max(10, count // 20)
    stored = min(data["stored_k"], max(k, count // 2))
    data |= {
        "database": {**data["database"], "path": str(folder / "database"), "source": source},
        "train": {**source, "params": {**source["params"], "keep": count <= KEPT_IN_MEMORY}},
        "batch_size": min(data["batch_size"], count),
        "caption_share": data["caption_share"] if found.sources else 0.0,
        "stored_k": stored,
        "draw_from": min(data["draw_from"], stored),
    }
    if embedder is not None:
        data["embedder"] = embedder_config(embedder, pretrained)
    clip = load_embedder(data["embedder"])
    _fit_embedder(model, clip.dim)
    if first_stage is not None:
        for stage in (model["first_stage_config"], data["references"]["first_stage"]):
            stage["params"]["ckpt_path"] = first_stage
        model["load_only_unet"] = True  # the file of the whole model has a first stage, too
    config.get("lightning", {}).get("trainer", {}).pop("max_time", None)  # which the command gives
    _begin(folder, config)
    return Adaptation(folder, config, found, clip)


def _fit_embedder(model: dict[str, Any], width: int) -> None:
    """Changes the parameters of a model so that it takes embeddings of another width; its projections are then new."""
    network = model["unet_config"]["params"]
    if network["context_dim"] == width:
        return
    network["context_dim"] = width
    model["conditioner"] = {**model["conditioner"], "scale": round(width**0.5, 1)}
    model["ignore_keys"] = sorted(name for name in read_weights(model["ckpt_path"]) if name.endswith(PROJECTIONS))


def _begin(folder: Path, config: dict[str, Any]) -> None:
    """Writes the config of a run into its folder.

    Raises:
        ValueError: the folder has another one.
    """
    file = folder / CONFIG
    if not file.is_file():
        write_config(file, config)
        return
    theirs, ours = _settings(read_config([file])), _settings(config)
    for name in sorted({*theirs, *ours}):
        if theirs.get(name) != ours.get(name):
            raise ValueError(
                f"{folder} was begun with {name}={theirs.get(name)}, got {ours.get(name)}; name another folder, or "
                f"delete {folder} to begin again"
            )


def _settings(config: Any, name: str = "") -> dict[str, Any]:
    """Returns the settings of a config by their dotted names, without the time of training."""
    if not isinstance(config, Mapping) or not config:
        return {} if ".max_time" in name else {name: config}
    parts = [_settings(value, f"{name}.{key}" if name else str(key)) for key, value in config.items()]
    return {key: value for part in parts for key, value in part.items()}
