"""The one road from a query to images: load a model with its database, look queries up, sample."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import to_pil_image
from tqdm import tqdm

from ldm.callbacks import image_grid
from ldm.checkpoint import average_as_weights, load_weights, read_weights
from ldm.config import read_config
from ldm.models.diffusion.wrapper import compile_network
from ldm.util import instantiate_from_config, nearest
from rdm.data.datamodule import RetrievalDataModule
from rdm.models.diffusion.ddpm import RetrievalAugmentedDiffusion
from rdm.retrieval.config import load_embedder
from rdm.retrieval.database import RetrievalDatabase
from rdm.retrieval.index import NeighbourIndex
from rdm.retrieval.neighbours import NeighbourTable
from rdm.retrieval.queries import class_queries, popular_queries, text_queries
from rdm.retrieval.retriever import Retrieved, Retriever

LOG = logging.getLogger(__name__)
SHIPPED = Path("models/rdm/emoji")
RDM = "rdm.models.diffusion."  # where the models of this road live


@dataclass(frozen=True)
class Loaded:
    """A model with what stands beside it.

    Attributes:
        model: in evaluation mode, holding its averaged weights.
        retriever: over the database in use.
        data: the data module of the model's config.
        latent_shape: ``(C, h, w)`` of the model's latents.
        path: the checkpoint.
    """

    model: RetrievalAugmentedDiffusion
    retriever: Retriever
    data: RetrievalDataModule
    latent_shape: tuple[int, int, int]
    path: Path

    def __call__(
        self,
        prompts: str | Sequence[str],
        *,
        neighbours: int | None = None,
        seed: int = 0,
        scale: float = 2.0,
        **options: Any,
    ) -> list[Image.Image]:
        """Returns an image for each prompt.

        Args:
            prompts: a text, or several.
            neighbours: how many of each text's neighbours the model sees; as many as in training where not given.
            seed: of the first image; the next ones count on.
            scale: of guidance, 1 for none.
            options: ``steps``, ``sampler`` and all others of :func:`sample_texts`.
        """
        prompts, k = [prompts] if isinstance(prompts, str) else prompts, neighbours or self.model.conditioner.k
        samples = sample_texts(self, prompts, k=k, seed=seed, scale=scale, **options)
        return [to_pil_image(image_grid({"": image[None]}, gap=0)) for image in samples.images]


@dataclass(frozen=True)
class Samples:
    """Images with what they were made from.

    Attributes:
        images: ``[B, 3, H, W]`` in [-1, 1].
        retrieved: their neighbours.
        labels: what each was asked for.
        seeds: one an image.
        settings: how they were made: ``tokens``, ``text_scale`` and the options of :func:`generate`.
    """

    images: Tensor
    retrieved: Retrieved
    labels: list[str]
    seeds: list[int]
    settings: dict[str, Any]


def find_checkpoint(path: str | None = None, logs: str = "logs") -> Path:
    """Returns the checkpoint a user means: the given file, a folder's, else the newest run's, else the shipped one.

    Raises:
        FileNotFoundError: nothing there.
    """
    if path:
        found = [Path(path)] if Path(path).is_file() else _checkpoints_in(Path(path))
    else:
        runs = [file for file in Path(logs).glob("*/checkpoints/last.ckpt") if _is_rdm(file.parent.parent)]
        found = sorted(runs, key=lambda file: file.stat().st_mtime, reverse=True)[:1] or _checkpoints_in(SHIPPED)
    if not found:
        raise FileNotFoundError(
            f"no checkpoint at {path or SHIPPED}; train one with main.py --base configs/rdm.yaml -t"
        )
    return found[0]


def _checkpoints_in(folder: Path) -> list[Path]:
    candidates = (folder / "model.safetensors", folder / "checkpoints" / "last.ckpt", folder / "model.ckpt")
    return [file for file in candidates if file.is_file()]


def _is_rdm(run: Path) -> bool:
    file = run / "config.yaml"
    return file.is_file() and read_config([file]).get("model", {}).get("target", "").startswith(RDM)


def load(checkpoint: str | None = None, database: str | None = None) -> Loaded:
    """Returns a model ready to sample, with its database built if it is missing.

    Args:
        checkpoint: file or folder; see :func:`find_checkpoint`.
        database: another database than the one of the model's config, made by the same embedder.

    Raises:
        FileNotFoundError: no such checkpoint, config or database.
        ValueError: weights or database do not fit.
    """
    path = find_checkpoint(checkpoint)
    config = config_beside(path)
    LOG.info("model %s", path)
    model = load_model(config["model"], path)
    data = instantiate_from_config(config["data"])
    data.prepare_data()
    opened = RetrievalDatabase.open(database) if database else data.database
    retriever = Retriever(load_embedder(data.embedder_config), opened, NeighbourIndex.open(opened))
    side = int(config["data"]["params"]["train"]["params"]["size"]) // model.first_stage_model.downsampling
    unet = config["model"]["params"]["unet_config"]["params"]
    return Loaded(model, retriever, data, (unet["in_channels"], side, side), path)


def config_beside(path: Path) -> dict[str, Any]:
    """Returns the config of a checkpoint of a retrieval-augmented model.

    Raises:
        FileNotFoundError: there is none beside it.
        ValueError: it is that of another kind of model.
    """
    folder = path.parent.parent if path.parent.name == "checkpoints" else path.parent
    if not (folder / "config.yaml").is_file():
        raise FileNotFoundError(f"no config.yaml beside the checkpoint {path}; give a run folder or its last.ckpt")
    config = read_config([folder / "config.yaml"])
    target = (config.get("model") or {}).get("target", "nothing")
    if not str(target).startswith(RDM):
        raise ValueError(f"{path} holds a {target}, expected a retrieval-augmented model; give its run with --ckpt")
    return config


def load_model(config: Mapping[str, Any], path: Path) -> RetrievalAugmentedDiffusion:
    """Returns the model of a config with the averaged weights of a checkpoint, on the GPU where there is one."""
    params = dict(config["params"])
    first_stage = dict(params["first_stage_config"])
    first_stage["params"] = {k: v for k, v in first_stage["params"].items() if k != "ckpt_path"}
    params |= {"first_stage_config": first_stage, "use_ema": False, "ckpt_path": None, "compile": False}
    model = instantiate_from_config({"target": config["target"], "params": params})
    load_weights(model, average_as_weights(read_weights(path)), source=path, allow=model.optional_names)
    return model.eval().requires_grad_(False).to("cuda" if torch.cuda.is_available() else "cpu")


def generate(
    model: RetrievalAugmentedDiffusion,
    context: Tensor,
    latent_shape: Sequence[int],
    seeds: Sequence[int],
    *,
    part: Tensor | None = None,
    weaker: str | None = None,
    batch_size: int | None = None,
    tile: int | str | None = None,
    compile: bool | str = False,
    **options: Any,
) -> Tensor:
    """Returns images ``[B, 3, H, W]`` in [-1, 1] on the CPU, one for each context and seed.

    Args:
        model: the model.
        context: ``[B, L, D]``.
        latent_shape: ``(C, h, w)``.
        seeds: one an image; image i depends on its seed and context, not on the batch.
        part: ``[B, l, D]``, a part of each context that is guided by a scale of its own, ``part_scale``.
        weaker: checkpoint of a weaker model to be led away from, by ``weaker_scale``.
        batch_size: images sampled together, see :func:`usual_batch_size`. A last batch is filled up, so that an image
            depends on this number in its last bits, but on no other image.
        compile: let ``torch.compile`` compile U-Net and decoder as they are now, which takes minutes and pays for many
            images; a string names another backend than inductor.
        tile: decode in tiles of so many pixels a side, or such as fit a memory (``2GB``); as configured if not given.
        options: ``sampler``, ``steps``, ``scale`` and all others of ``LatentDiffusion.sample``.

    Raises:
        ValueError: an option that makes no image; the weaker model has another latent.
    """
    model.first_stage_tile = tile or model.first_stage_tile
    for network in (model.model.diffusion_model, getattr(model.first_stage_model, "decoder", None)):
        if network is not None and compile:
            compile_network(network, compile, freeze=True)
    if weaker is not None:
        path = find_checkpoint(weaker)
        options["weaker"] = load_model(config_beside(path)["model"], path)
    size, parts = batch_size or usual_batch_size(model), []
    for start in tqdm(range(0, len(seeds), size), desc="sampling", unit="batch", disable=len(seeds) <= size):
        places = [min(place, len(seeds) - 1) for place in range(start, start + size)]
        piece = context[places].to(model.device)
        null = model.null_context(piece)
        if part is not None:
            options["part"] = part[places].to(model.device)
        images = model.sample(piece, latent_shape, [seeds[place] for place in places], null=null, **options)
        parts.append(images[: len(seeds) - start].clamp(-1, 1).cpu())
    return torch.cat(parts)


def usual_batch_size(model: torch.nn.Module) -> int:
    """Returns how many images are sampled together: one on a CPU, which gains little from more, else eight."""
    return 1 if next(model.parameters()).device.type == "cpu" else 8


def sample_texts(
    loaded: Loaded,
    prompts: Sequence[str],
    *,
    k: int,
    seed: int,
    tokens: str = "neighbours",
    text_scale: float | None = None,
    **options: Any,
) -> Samples:
    """Returns one image for every prompt; image i has seed ``seed + i``.

    Args:
        loaded: model and database.
        prompts: texts.
        k: neighbours of each.
        seed: of the first image.
        tokens: the context: ``neighbours``, ``text`` (the prompt alone) or ``both`` (the prompt, then the neighbours).
        text_scale: with ``both``, the guidance scale of the prompt, while ``scale`` is that of its neighbours.
        options: see :func:`generate`.

    Raises:
        ValueError: no prompt, an empty one, or unknown tokens.
    """
    if not prompts or not all(prompt.strip() for prompt in prompts):
        raise ValueError("got an empty prompt, expected some words")
    retrieved = loaded.retriever(text_queries(loaded.retriever.embedder, prompts), k)
    seeds = range(seed, seed + len(prompts))
    return sample_retrieved(loaded, retrieved, prompts, seeds, tokens=tokens, text_scale=text_scale, **options)


def sample_classes(loaded: Loaded, classes: Sequence[str], *, k: int, pool: int, seed: int, **options: Any) -> Samples:
    """Returns one image for every class name: k neighbours drawn from the class text's ``pool`` nearest rows.

    Source: Blattmann et al. 2022, section 3.2.
    """
    queries = class_queries(loaded.retriever.embedder, [name.rpartition("/")[2] for name in classes])
    retrieved = loaded.retriever(queries, k, pool=pool, generator=np.random.default_rng(seed))
    return sample_retrieved(loaded, retrieved, classes, range(seed, seed + len(classes)), **options)


def sample_popular(
    loaded: Loaded, n: int, *, k: int, top_m: float | int, weighted: bool, seed: int, **options: Any
) -> Samples:
    """Returns n images of no particular query: neighbours of rows drawn by how often they are somebody's neighbour.

    Raises:
        FileNotFoundError: the database has no neighbour table ``neighbours/train`` to count popularity from.
    """
    database = loaded.retriever.database
    table = NeighbourTable.open(database.path / "neighbours" / "train", database)
    popularity = table.popularity(loaded.model.conditioner.k)
    generator = np.random.default_rng(seed)
    queries = popular_queries(database, popularity, n, generator=generator, top_m=top_m, weighted=weighted)
    return sample_retrieved(
        loaded, loaded.retriever(queries, k), ["unconditional"] * n, range(seed, seed + n), **options
    )


def sample_retrieved(
    loaded: Loaded,
    retrieved: Retrieved,
    labels: Sequence[str],
    seeds: Sequence[int],
    *,
    tokens: str = "neighbours",
    text_scale: float | None = None,
    **options: Any,
) -> Samples:
    """Returns one image for each set of neighbours.

    Args:
        loaded: model and database.
        retrieved: the neighbours.
        labels: what each image was asked for; where ``tokens`` says so, the text that the model sees.
        seeds: one an image.
        tokens: see :func:`sample_texts`.
        text_scale: see :func:`sample_texts`.
        options: see :func:`generate`.

    Raises:
        ValueError: a scale of the text for a context that is not of both.
    """
    options["batch_size"] = options.get("batch_size") or usual_batch_size(loaded.model)
    settings = {"tokens": tokens, "text_scale": text_scale, **options}
    if tokens == "neighbours":
        context = loaded.model.conditioner(retrieved.embeddings, include_query=False)
    else:
        queries = text_queries(loaded.retriever.embedder, labels)
        neighbours = retrieved.embeddings[:, :0] if tokens == "text" else retrieved.embeddings
        context = loaded.model.conditioner(neighbours, queries, include_query=True)
    if text_scale is not None:
        if tokens != "both":
            raise ValueError(f"got text_scale={text_scale} with a context of {tokens}, expected one of both")
        options |= {"part": context[:, :1], "part_scale": text_scale}
    images = generate(loaded.model, context, loaded.latent_shape, seeds, **options)
    return Samples(images, retrieved, list(labels), list(seeds), settings)


def class_names(database: RetrievalDatabase) -> list[str]:
    """Returns the classes of a database, and every part of one written as ``category/subcategory``."""
    found = set(database.column("class_id").to_pylist())
    return sorted(found | {part for name in found for part in name.split("/")} - {""})


def resolve_class(name: str, database: RetrievalDatabase) -> str:
    """Returns the class a user means; a name that differs in a letter or two is taken, and said.

    Raises:
        ValueError: no class is like it.
    """
    known = class_names(database)
    if name in known:
        return name
    guess = nearest(name, known).partition("'")[2].partition("'")[0]
    if not guess:
        raise ValueError(f"no class '{name}' in {database.path}; it has {', '.join(known)}")
    LOG.warning("no class '%s'; taking '%s'", name, guess)
    return guess
