"""A model's samples to measure it by, in a folder: written as they come, continued where they were stopped."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from ldm.callbacks import image_grid, save_png
from ldm.files import file_hash, read_json, write_json
from ldm.models.tiling import decode_tiled, encode_tiled
from ldm.modules.distributions.distributions import DiagonalGaussianDistribution
from ldm.util import evenly, instantiate_from_config
from rdm.copies import as_written
from rdm.evaluate.options import WAYS
from rdm.loading import Loaded
from rdm.provenance import about_the_run
from rdm.retrieval.neighbours import ids_hash
from rdm.retrieval.queries import text_queries
from rdm.sample import sample_retrieved, unconditional_queries

POPULAR, CAPTIONS = WAYS
CARD = "samples.json"
_AT_ONCE = 64  # images between two writings of the card


def sample_into(
    folder: Path, loaded: Loaded, way: str, n: int, *, k: int, top_m: float | int, seed: int, **options: Any
) -> tuple[list[Path], dict[str, Any]]:
    """Returns the files of n samples and how they were made; what is there already is kept.

    Args:
        folder: for pictures named by their seeds, and a card; those of another plan are overwritten.
        loaded: model and database.
        way: ``popular``, unconditional images, or ``captions``, images of the captions of validation pictures.
        n: how many.
        k: neighbours of each.
        top_m: of the unconditional ones, see :func:`rdm.sample.sample_popular`.
        seed: of the first sample; the next ones count on.
        options: see :func:`rdm.sample.sample_retrieved`.

    Raises:
        FileNotFoundError: there is nothing to count popularity from.
        ValueError: no such way, or no captions.
    """
    database, asked = loaded.retriever.database, {"way": "text", "k": k}
    if way == POPULAR:
        queries = unconditional_queries(loaded, n, top_m=top_m, weighted=False, seed=seed)
        labels, asked = ["unconditional"] * n, {"way": "popular", "k": k, "top_m": top_m, "weighted": False}
        drawn = hashlib.sha256(queries.numpy().tobytes()).hexdigest()  # popularity is no part of the database
    elif way == CAPTIONS:
        labels, drawn = validation_captions(loaded, n), ""
    else:
        raise ValueError(f"got the way '{way}', expected {' or '.join(WAYS)}")
    plan = {
        "checkpoint": file_hash(loaded.path),
        "config": file_hash(loaded.config) if loaded.config else None,
        "database": [database.fingerprint, database.removed],
        "rows": None if loaded.retriever.rows is None else ids_hash(map(str, loaded.retriever.rows)),
        "asked": asked,
        "queries": drawn,
        "labels": labels,
        "options": options,
        "n": n,
        "seed": seed,
    }
    card = _resume(folder / CARD, plan)
    seeds = range(seed, seed + n)
    for start in tqdm(range(card["done"], n, _AT_ONCE), desc=f"samples, {way}", unit=f"{_AT_ONCE} img"):
        part = slice(start, min(start + _AT_ONCE, n))
        asked_for = queries[part] if way == POPULAR else text_queries(loaded.retriever.embedder, labels[part])
        retrieved = loaded.retriever(asked_for, k)
        samples = sample_retrieved(loaded, retrieved, labels[part], seeds[part], asked=asked, copies=None, **options)
        for number, image in zip(seeds[part], samples.images, strict=True):
            save_png(image_grid({"": image[None]}, gap=0), _file(folder, number))
        card |= {"done": part.stop, "made_by": about_the_run(samples, loaded)}
        write_json(folder / CARD, card)
    return [_file(folder, number) for number in seeds], card["made_by"]


def validation_captions(loaded: Loaded, n: int) -> list[str]:
    """Returns captions of n validation pictures, evenly spread; some twice where there are fewer.

    Raises:
        ValueError: there are no such pictures, or one has no caption.
    """
    images = instantiate_from_config(held_out_config(loaded))
    captions = [images.metadata(number)["caption"].strip() for number in evenly(len(images), n)]
    if not all(captions):
        raise ValueError(f"the validation pictures of {loaded.path} have no captions; leave --ways {CAPTIONS} out")
    return captions


class FirstStageCopies:
    """Pictures of a data set as a model's first stage gives them back: the most faithful copies that it can make.

    Args:
        images: the data set.
        loaded: the model.
    """

    def __init__(self, images: Any, loaded: Loaded) -> None:
        self.images, self.model = images, loaded.model

    def __len__(self) -> int:
        """Returns the number of pictures."""
        return len(self.images)

    @torch.no_grad()
    def __getitem__(self, number: int) -> dict[str, Any]:
        """Returns a picture as it is written, without an id: it is another one than that it was made of."""
        stage, tile = self.model.first_stage_model, self.model.first_stage_tile
        latent = encode_tiled(stage, self.images[number]["image"][None].to(self.model.device), tile)
        latent = latent.mode() if isinstance(latent, DiagonalGaussianDistribution) else latent
        made = decode_tiled(stage, latent, tile)[0].float().clamp(-1, 1).cpu()
        return {"image": as_written(made), "id": ""}


def held_out_config(loaded: Loaded) -> Mapping[str, Any]:
    """Returns the config of the pictures that a model was not trained on.

    Raises:
        ValueError: its config names none.
    """
    found = loaded.data.dataset_configs.get("validation")
    if not found:
        raise ValueError(f"the config of {loaded.path} has no validation pictures; add data.params.validation to it")
    return found


def _file(folder: Path, seed: int) -> Path:
    return folder / f"{seed:06d}.png"


def _resume(file: Path, plan: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the card of samples of this plan: the one there, else a new one, which is written first."""
    fresh = {"plan": json.loads(json.dumps(plan)), "done": 0}
    if file.is_file() and (card := read_json(file, f"delete {file}")).get("plan") == fresh["plan"]:
        return card
    write_json(file, fresh)
    return fresh
