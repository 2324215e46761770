"""Loading: finds a trained model and loads it with its database; index and embedder are loaded at their first use.

A plain latent diffusion model has no database, see :attr:`Loaded.is_plain`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch

from ldm.checkpoint import average_as_weights, load_weights, read_weights
from ldm.config import picture_params, read_config
from ldm.data.decode import sides
from ldm.files import located, looked_in, places, to_build
from ldm.hub import fetched_repository, is_hub
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.run import read_class_names
from ldm.util import check_target, instantiate_from_config
from rdm.models.autoregression.transformer import RetrievalAugmentedTransformer
from rdm.models.diffusion.ddpm import RetrievalAugmentedDiffusion
from rdm.retrieval.config import load_embedder
from rdm.retrieval.database.find import select_rows
from rdm.retrieval.database.rows import RetrievalDatabase
from rdm.retrieval.opening import open_index, outlines_of, retriever_of
from rdm.retrieval.retriever import NoRetriever, Retriever

LOG = logging.getLogger(__name__)
SHIPPED = Path("models/rdm/emoji")
DATABASE_CONFIG = "database.yaml"  # in an exported folder: what builds the database that it does not hold
# The kinds of models: the package of their classes, the folder of the shipped model, and a config that trains one.
PLAIN = "ldm"
KINDS = {
    "rdm": ("rdm.models.diffusion.", SHIPPED, "configs/rdm.yaml"),
    "rarm": ("rdm.models.autoregression.", Path("models/rarm/emoji"), "configs/rarm.yaml"),
    PLAIN: ("ldm.models.diffusion.", Path("models/ldm/emoji"), "configs/ldm/emoji.yaml"),
}
Model = RetrievalAugmentedDiffusion | RetrievalAugmentedTransformer
L = TypeVar("L", bound="Loaded")


@dataclass(frozen=True)
class PlainData:
    """What sampling needs to know of the data of a plain model.

    Attributes:
        image_size: height and width of training images in pixels.
        value_range: the values of black and white in grey pictures with more than 8 bits, if the config states them.
    """

    image_size: tuple[int, int]
    value_range: Sequence[float] | None = None

    @classmethod
    def of(cls, config: Mapping[str, Any] | None, model: LatentDiffusion) -> PlainData:
        """Returns what the config of the data says; without one, the size that the model is configured for."""
        params = picture_params(config) or {"size": side_of(model)}
        return cls(sides(params.get("crop_size") or params["size"]), params.get("value_range"))


@dataclass(frozen=True)
class Loaded:
    """A trained model together with its database.

    Attributes:
        model: the model in evaluation mode, with its averaged (EMA) weights.
        retriever: looks up neighbours in the database; a :class:`NoRetriever` for a plain model.
        data: the data module of the model's config; of a plain model, only the size of its images.
        class_names: the names of the classes of a class-conditional model, in the order of their numbers; empty if
            they are unknown.
        path: the file of the checkpoint.
        config: the file of the model's config; None stands for the one beside the checkpoint.
        compiled: cache of the networks that ``torch.compile`` has compiled for sampling.
    """

    model: Model
    retriever: Retriever
    data: Any
    path: Path
    config: Path | None = None
    class_names: Sequence[str] = ()
    compiled: dict[Any, Any] = field(default_factory=dict)

    @property
    def k(self) -> int:
        """The default number of neighbours of each image, which is the number in training; 0 for a plain model."""
        return 0 if self.is_plain else self.model.k

    @property
    def is_plain(self) -> bool:
        """Whether this is a latent diffusion model without retrieval."""
        return isinstance(self.retriever, NoRetriever)

    @property
    def plain(self) -> LatentDiffusion:
        """The model, for callers that need one without retrieval.

        Raises:
            ValueError: the model is retrieval-augmented.
        """
        model: Any = self.model
        if not self.is_plain:
            raise ValueError(f"{self.path} is a retrieval-augmented model, expected a plain latent diffusion model")
        return model

    @property
    def edits(self) -> bool:
        """Whether pictures can be edited."""
        return self.model.kind != RetrievalAugmentedTransformer.kind

    @property
    def diffusion(self) -> RetrievalAugmentedDiffusion:
        """The model, for callers that need a diffusion model of this project.

        Raises:
            ValueError: it is another kind of model.
        """
        return as_diffusion(self.model, self.path)

    def latent_shape_of(self, height: int | None = None, width: int | None = None) -> tuple[int, int, int]:
        """Returns the shape ``(C, h, w)`` of the latents of images.

        Args:
            height: of the images in pixels; if not given, as in training.
            width: of the images in pixels; if not given, as in training.

        Raises:
            ValueError: the model cannot make images of this size.
        """
        trained = self.data.image_size
        return self.model.latent_shape_of(height or trained[0], width or trained[1], trained)


def as_diffusion(model: Model, path: Path) -> RetrievalAugmentedDiffusion:
    """Returns the model after a check that it is a diffusion model of this project.

    Raises:
        ValueError: it is another kind of model.
    """
    if isinstance(model, RetrievalAugmentedTransformer):
        raise ValueError(f"{path} is an autoregressive model, expected a diffusion model; give another checkpoint")
    if model.kind != RetrievalAugmentedDiffusion.kind:
        raise ValueError(f"{path} is a pipeline of diffusers, expected a diffusion model of this project for this")
    return model


def find_checkpoint(path: str | None = None, logs: str = "logs") -> Path:
    """Returns the file of a checkpoint.

    Args:
        path: a checkpoint file or a folder that has one. ``hf:owner/name`` or ``hf:owner/name@revision`` is a
            repository of the Hugging Face hub. ``rdm`` (the default) and ``rarm`` stand for the newest run of that kind
            of model, or for the shipped model if there is no run. ``ldm`` stands for the newest plain one.
        logs: the folder of the runs.

    Raises:
        FileNotFoundError: there is no checkpoint.
    """
    named = path or "rdm"
    if is_hub(named):
        file = fetched_repository(named) / "model.safetensors"
        if not file.is_file():
            raise FileNotFoundError(f"{named} has no model.safetensors; push it with scripts/export_checkpoint.py")
        return file
    kind = named if named in KINDS else "rdm"
    wanted = KINDS[kind][1] if named in KINDS else named
    runs = []
    if named in KINDS:
        runs = [file for file in Path(logs).glob("*/checkpoints/last.ckpt") if _is_of(kind, file.parent.parent)]
    newest = sorted(runs, key=lambda file: file.stat().st_mtime, reverse=True)
    found = [*newest, *(file for place in places(wanted) for file in _checkpoints_at(place))]
    if not found:
        raise FileNotFoundError(
            f"no checkpoint at {wanted}{looked_in(wanted)}; correct the path, or train one with main.py --base "
            f"{KINDS[kind][2]} -t"
        )
    return found[0]


def _checkpoints_at(path: Path) -> list[Path]:
    candidates = (path, path / "model.safetensors", path / "checkpoints" / "last.ckpt", path / "model.ckpt")
    return [file for file in candidates if file.is_file()]


def _is_of(kind: str, run: Path) -> bool:
    file = run / "config.yaml"
    return file.is_file() and read_config([file]).get("model", {}).get("target", "").startswith(KINDS[kind][0])


def load(
    checkpoint: str | None = None,
    database: str | None = None,
    only: str | Sequence[str] = (),
    config: str | None = None,
    same_outline: float | None = None,
    agree: int | None = None,
) -> Loaded:
    """Loads a model that is ready to sample. The database of a run is built if it is missing.

    Args:
        checkpoint: file or folder; see :func:`find_checkpoint`.
        database: another database than the one of the model's config, made by the same embedder. The pictures of the
            model's own database are then not needed.
        only: ``COLUMN=VALUE`` rules for the rows that neighbours come from, such as ``licence=CC0-1.0``; one text
            stands for a list of it.
        config: file with the config of the model; the one beside the checkpoint if not given.
        same_outline: a neighbour counts as a copy of a nearer one and is left out if their outlines correlate at least
            this much; above 1 none is. If not given, this is as in the neighbour tables of the training, and off if the
            database has no pictures.
        agree: the neighbours after the first are those whose outlines agree most with the first, among this many
            nearest rows; 1 takes the nearest ones. If not given, ``data.params.agreement.among`` of the model's config,
            and 1 without it or if the database has no pictures.

    Raises:
        FileNotFoundError: the checkpoint, config or database does not exist.
        ValueError: the weights or the database do not fit the model, or a plain model is given options of a database.
    """
    only = [only] if isinstance(only, str) else only
    path = find_checkpoint(checkpoint)
    parts = config_beside(path) if config is None else model_config(located(config), path)
    LOG.info("model %s", path)
    config_file = None if config is None else located(config)
    if is_plain(parts["model"]):
        given = {"database": database, "only": list(only) or None, "same_outline": same_outline, "agree": agree}
        if named := [name for name, value in given.items() if value is not None]:
            raise ValueError(
                f"got {named[0]} for {path}, a plain latent diffusion model without a database; leave it out"
            )
        plain: Any = load_model(parts["model"], path)
        sizes = PlainData.of(parts.get("data"), plain)
        return Loaded(plain, NoRetriever(path), sizes, path, config_file, read_class_names(beside(path)))
    if not parts.get("data"):
        raise ValueError(
            f"the config of {path} has no 'data', which names embedder and database; give the config of a whole run"
        )
    check_target(parts["data"], "data")
    model = load_model(parts["model"], path)
    data = instantiate_from_config(parts["data"])
    if database is not None and not _same(database, data.database_config["path"]):
        opened = RetrievalDatabase.open(database)
    elif is_hub(checkpoint) or (beside(path) / DATABASE_CONFIG).is_file():
        opened = _database_of(data, beside(path))
    else:
        data.prepare_retrieval()
        opened = data.database
    retriever = retriever_of(opened, partial(load_embedder, data.embedder_config), data, only, same_outline, agree)
    return Loaded(model, retriever, data, path, config_file)


def with_database(
    loaded: L,
    database: str | Path | None = None,
    only: str | Sequence[str] = (),
    same_outline: float | None = None,
    agree: int | None = None,
) -> L:
    """Returns a model with neighbours from another database, or from a part of its own one.

    The two share the model and the embedder, and the index if the database is the same. The arguments are those of
    :func:`load`.

    Raises:
        FileNotFoundError: there is no such database.
        ValueError: another embedder made the database, no row fits the rules, or the model has no database.
    """
    own, only = loaded.retriever, [only] if isinstance(only, str) else only
    opened = own.database if database is None else RetrievalDatabase.open(database)
    made_by, expected = (each.card["embedder"] for each in (opened, own.database))
    if made_by["fingerprint"] != expected["fingerprint"]:
        raise ValueError(
            f"database {opened.path} was made by embedder {made_by['name']} with fingerprint {made_by['fingerprint']}, "
            f"expected {expected['fingerprint']} as of {own.database.path}; build it with the embedder of the model"
        )
    index = (lambda: own.index) if opened is own.database else partial(open_index, opened)
    rows = select_rows(opened, only) if only else None
    known = opened is own.database and same_outline is None and agree is None
    outlines = own.outlines if known else outlines_of(opened, loaded.data, same_outline, agree)
    return replace(loaded, retriever=Retriever(lambda: own.embedder, opened, index, rows, outlines))


def _same(database: str, own: str) -> bool:
    """Returns whether two paths name one database, from the working directory or in the project."""
    places, others = ({Path(each).absolute(), to_build(each).absolute()} for each in (database, own))
    return not places.isdisjoint(others)


def _database_of(data: Any, folder: Path) -> RetrievalDatabase:
    """Returns the database of a model that came without its training images; nothing is built for it.

    Raises:
        FileNotFoundError: the folder does not have it, and it was not built here.
    """
    try:
        return data.database
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"the model {folder} comes without its database {data.database_config['path']}; build it with "
            f"scripts/build_database.py --config {folder / DATABASE_CONFIG}, or name another one"
        ) from error


def beside(path: Path) -> Path:
    """Returns the folder of a run, or of an exported model, that a checkpoint belongs to."""
    return path.parent.parent if path.parent.name == "checkpoints" else path.parent


def is_plain(config: Mapping[str, Any]) -> bool:
    """Whether the config of a model names a latent diffusion model without retrieval."""
    return str(config.get("target")).startswith(KINDS[PLAIN][0])


def side_of(model: LatentDiffusion) -> int:
    """Returns the side in pixels of the images that the U-Net of a model is configured for."""
    return int(model.model.diffusion_model.image_size * model.first_stage_model.downsampling)


def config_beside(path: Path) -> dict[str, Any]:
    """Returns the config beside the checkpoint of a model.

    Raises:
        FileNotFoundError: there is no config beside the checkpoint.
        ValueError: the config describes another kind of model.
    """
    folder = beside(path)
    if not (folder / "config.yaml").is_file():
        raise FileNotFoundError(f"no config.yaml beside the checkpoint {path}; give a run folder or its last.ckpt")
    return model_config(folder / "config.yaml", path)


def model_config(file: Path, path: Path) -> dict[str, Any]:
    """Returns the config of a model that can be sampled.

    Args:
        file: the file of the config.
        path: the checkpoint of the model, for the error message.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the config describes another kind of model.
    """
    if not file.is_file():
        raise FileNotFoundError(f"no config at {file}; give the file that the model was trained with")
    config = read_config([file])
    target = (config.get("model") or {}).get("target", "nothing")
    if not str(target).startswith(tuple(place for place, _, _ in KINDS.values())):
        raise ValueError(
            f"{path} holds a {target}, expected a diffusion or autoregressive model; give its run with --ckpt"
        )
    return config


def load_model(config: Mapping[str, Any], path: Path) -> Model:
    """Returns the model of a config with the averaged (EMA) weights of a checkpoint, on the GPU if there is one."""
    params = dict(config["params"])
    if "first_stage_config" not in params:
        raise ValueError(
            f"{path} holds a {config['target']} without a first stage, expected a latent diffusion model; train it as "
            "LatentDiffusion with the first stage ldm.models.autoencoder.IdentityFirstStage"
        )
    check_target(params["first_stage_config"], "first_stage_config")
    first_stage = dict(params["first_stage_config"])
    first_stage["params"] = {k: v for k, v in (first_stage.get("params") or {}).items() if k != "ckpt_path"}
    params |= {"first_stage_config": first_stage, "ckpt_path": None}
    if "unet_config" in params:
        params |= {"use_ema": False, "compile": False}
    model = instantiate_from_config({"target": config["target"], "params": params})
    load_weights(model, average_as_weights(read_weights(path)), source=path, allow=model.optional_names)
    return model.eval().requires_grad_(False).to("cuda" if torch.cuda.is_available() else "cpu")
