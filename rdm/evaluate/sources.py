"""The sources of pictures for an evaluation: files, samples of a model, and reconstructions by its first stage."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm

from ldm.data.decode import Size, open_picture, short_size
from ldm.files import file_hash, read_json, read_text, write_json
from ldm.models.tiling import reconstruct
from ldm.pictures import from_uint8, save_png, to_uint8
from ldm.util import evenly, instantiate_from_config
from rdm.loading import Loaded, config_beside, model_config
from rdm.retrieval.config import source_config
from rdm.retrieval.queries import text_queries
from rdm.sampling.copies import as_written
from rdm.sampling.request import Request
from rdm.sampling.samples import sample, settings_of
from rdm.sampling.settings import Settings
from rdm.sampling.values import TOP_M
from rdm.sampling.ways import popular_vectors

# Part of the fingerprint: with other words, earlier reports could not be repeated.
PREPROCESSING = "shorter side to `size`, antialiased bicubic, centre cut out; unchanged where it has that size"
TEXTS = 256  # texts that are embedded together
WRITTEN = 64  # samples after which samples.json is written again


def size_of(loaded: Loaded, settings: Settings) -> Size:
    """Returns the size of the images that a model samples with some settings, in pixels."""
    height, width = loaded.data.image_size
    return short_size((settings.height or height, settings.width or width))


class PictureFiles:
    """Pictures of a folder, of Parquet files, or of tar shards.

    Args:
        path: the folder, the Parquet files or the tar shards.
        split: split of Parquet files.
        size: size in pixels; None takes a square with the shorter side of the first picture.
        n: number of pictures, spread evenly over all; None takes all.
        workers: processes that read pictures.

    Attributes:
        about: how a report describes the pictures.

    Raises:
        FileNotFoundError: there are no pictures.
        ValueError: there are fewer than ``n`` pictures, or a file cannot be read.
    """

    def __init__(
        self, path: str, split: str | None = None, size: Size | None = None, n: int | None = None, workers: int = 0
    ) -> None:
        config = source_config(path, size or 1, split)
        config["params"]["max_broken"] = 0  # a picture that replaces a broken one would count twice
        self.dataset, self.workers = instantiate_from_config(config), workers
        total = len(self.dataset)
        if n is not None and n > total:
            raise ValueError(f"got {total} pictures in {path}, expected at least n={n}; ask for fewer")
        self.rows = evenly(total, n or total)
        if size is None:
            self.dataset.size = min(open_picture(self.dataset.read(0)).size)
        entries = [self.dataset.metadata(row) for row in self.rows]
        self.captions = [entry["caption"] for entry in entries]
        self.fingerprint = self._hash()
        self.about = {
            "path": path,
            "split": split,
            "n": len(self.rows),
            "of": total,
            "size": self.dataset.size,
            "preprocessing": PREPROCESSING,
            "classes": class_balance([entry["class_id"] for entry in entries]),
            "captions_sha256": digest(self.captions),
            "sha256": self.fingerprint,
        }

    def _hash(self) -> str:
        """Returns a hash of the encoded pictures in their order, of their size and of the preprocessing."""
        digest = hashlib.sha256(json.dumps([self.dataset.size, PREPROCESSING]).encode())
        for row in tqdm(self.rows, desc="hashing", unit="picture", disable=len(self.rows) < 5000):
            digest.update(hashlib.sha256(self.dataset.read(row)).digest())
        return digest.hexdigest()

    def __len__(self) -> int:
        """The number of pictures."""
        return len(self.rows)

    def batches(self, start: int, size: int) -> Iterator[Tensor]:
        """See :class:`rdm.evaluate.extract.Source`."""
        subset = Subset(self.dataset, self.rows[start:])
        yield from (batch["image"] for batch in DataLoader(subset, size, num_workers=self.workers))


class ModelSamples:
    """Images of a model, sampled when they are read. Image i has seed ``seed + i`` and 8 bits, as in a file.

    With the setting ``best_of``, each image is the best of several candidates, and the first candidate has this seed.
    Images are not checked for copies of database rows.

    Args:
        loaded: model and database.
        n: number of images.
        prompts: image i has prompt i, and prompts are reused from the first on after the last. Without prompts, images
            are unconditional, from the neighbours of popular rows.
        settings: how images are sampled.
        k: number of neighbours; None takes as many as in training.
        seed: seed of the first image.
        top_m: share or number of popular rows, see :func:`rdm.sampling.ways.popular`.
        weighted: whether rows are drawn by popularity, see :func:`rdm.sampling.ways.popular`.
        tokens: context of the model for a prompt, see :func:`rdm.sampling.ways.texts`.

    Attributes:
        about: how a report describes the images.
    """

    def __init__(
        self,
        loaded: Loaded,
        n: int,
        prompts: Sequence[str] = (),
        *,
        settings: Settings,
        k: int | None = None,
        seed: int = 0,
        top_m: float | int = TOP_M,
        weighted: bool = False,
        tokens: str = "neighbours",
    ) -> None:
        self.loaded, self.n, self.k, self.seed = loaded, n, k or loaded.k, seed
        self.settings = replace(settings, copy_threshold=None, reject_copies=0)
        self.tokens, self.has_prompts = tokens, bool(prompts)
        self.captions = [prompts[place % len(prompts)] for place in range(n)] if prompts else [""] * n
        asked = self.prepare(prompts, {"top_m": top_m, "weighted": weighted})
        if prompts:
            asked |= {"prompts": len(prompts), "sha256": digest(list(prompts))}
        config = model_config(loaded.config, loaded.path) if loaded.config else config_beside(loaded.path)
        sampled = settings_of(loaded, self.request(0, 1), self.settings)
        paths, database, context = self.sources()
        record = {
            "checkpoint_sha256": file_hash(loaded.path),
            "config_sha256": digest(config["model"]),
            **database,
            "asked": asked,
            "settings": {**context, **recorded(sampled, loaded.model.kind)},
            "weaker_sha256": file_hash(Path(sampled.weaker)) if sampled.weaker else None,
            "seeds": [seed, seed + n - 1],
            "n": n,
        }
        here = [torch.__version__, loaded.model.device.type, sampled.compile]  # the last bits may depend on these
        self.fingerprint = digest([record, here])
        self.about = {"checkpoint": str(loaded.path), **paths, **record, "sha256": digest(record)}

    def prepare(self, prompts: Sequence[str], popular: Mapping[str, Any]) -> dict[str, Any]:
        """Makes the queries of all images, and returns how they were made, for the record.

        Args:
            prompts: the different prompts, if there are any.
            popular: ``top_m`` and ``weighted``, which choose the popular rows of unconditional images.

        Raises:
            ValueError: the context is to hold prompts, and there are none.
        """
        retriever = self.loaded.retriever
        if prompts:
            parts = [prompts[start : start + TEXTS] for start in range(0, len(prompts), TEXTS)]
            vectors = torch.cat([text_queries(retriever.embedder, part) for part in parts])
            self.queries = vectors[[place % len(prompts) for place in range(self.n)]]
            return {"way": "text", "k": self.k, **retriever.about}
        if self.tokens != "neighbours":
            raise ValueError(f"got tokens '{self.tokens}' without prompts, expected neighbours; give --from-file")
        self.queries = popular_vectors(self.loaded, self.n, seed=self.seed, **popular)
        # The fingerprint of the database does not depend on popularity, so the drawn queries are hashed.
        drawn = hashlib.sha256(self.queries.numpy().tobytes()).hexdigest()
        return {"way": "popular", **popular, "k": self.k, "queries_sha256": drawn, **retriever.about}

    def sources(self) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        """Returns for the record: the path of the database, what it holds, and what the context consists of."""
        retriever = self.loaded.retriever
        database = {
            "database_fingerprint": retriever.database.fingerprint,
            "removed": retriever.database.removed,  # the fingerprint does not depend on removed rows
            "index": {key: retriever.index.card.get(key) for key in ("factory", "search", "sha256")},
            "rows_sha256": None if retriever.rows is None else digest(retriever.rows.tolist()),
        }
        return {"database": str(retriever.database.path)}, database, {"tokens": self.tokens}

    def __len__(self) -> int:
        """The number of images."""
        return self.n

    def request(self, start: int, stop: int) -> Request:
        """Returns the request for the images with numbers from ``start`` up to ``stop``."""
        places = slice(start, stop)
        texts = self.queries[places] if self.has_prompts else None
        return Request(
            self.loaded.retriever(self.queries[places], self.k),
            self.captions[places],
            range(self.seed + start, self.seed + stop),
            tokens=self.tokens,
            queries=texts,
            query_tokens=texts,
            prompts=self.captions[places] if self.has_prompts else None,
        )

    def neighbour_rows(self) -> list[set[int]]:
        """Returns the database rows that each image has as neighbours."""
        parts = [self.request(start, min(start + TEXTS, self.n)) for start in range(0, self.n, TEXTS)]
        return [set(line) for part in parts for line in part.retrieved.rows.tolist()]

    def batches(self, start: int, size: int) -> Iterator[Tensor]:
        """See :class:`rdm.evaluate.extract.Source`."""
        for first in range(start, self.n, size):
            request = self.request(first, min(first + size, self.n))
            yield from_uint8(to_uint8(sample(self.loaded, request, self.settings).images))


def recorded(settings: Settings, kind: str) -> dict[str, Any]:
    """Returns the settings that change an image."""
    return {
        name: value
        for name, value in settings.record(kind).items()
        if name not in ("compile", "copy_threshold", "reject_copies")
    }


class FirstStageCopies:
    """Reconstructions of a data set by a model's first stage: the most faithful copies that the model can produce.

    Args:
        images: the data set.
        loaded: the model.
    """

    def __init__(self, images: Any, loaded: Loaded) -> None:
        self.images, self.model = images, loaded.model

    def __len__(self) -> int:
        """Returns the number of pictures."""
        return len(self.images)

    def __getitem__(self, number: int) -> dict[str, Any]:
        """Returns a reconstruction with 8 bits, as in a file. Its id is empty, because it is another picture."""
        stage, tile = self.model.first_stage_model, self.model.first_stage_tile
        image = self.images[number]["image"][None].to(self.model.device)
        return {"image": as_written(reconstruct(stage, image, tile)[0].cpu()), "id": ""}


def write_samples(folder: Path, samples: ModelSamples) -> list[Path]:
    """Writes all samples to files that are named by their seeds, and returns the files.

    The file ``samples.json`` records what the samples are and how many are written; it is updated after each batch.
    Existing files of the same samples are kept; files of other samples are overwritten.
    """
    files = [folder / f"{seed:06d}.png" for seed in range(samples.seed, samples.seed + len(samples))]
    card, file, done = {**samples.about, "fingerprint": samples.fingerprint}, folder / "samples.json", 0
    if file.is_file() and (existing := read_json(file, f"delete {file}")).get("fingerprint") == samples.fingerprint:
        done = existing["done"]
    write_json(file, {**card, "done": done})
    with tqdm(desc=f"samples, {folder.name}", total=len(files), initial=done, unit="img") as bar:
        for images in samples.batches(done, WRITTEN):
            for target, image in zip(files[done : done + len(images)], images, strict=True):
                save_png(to_uint8(image), target)
            done += len(images)
            write_json(file, {**card, "done": done})
            bar.update(len(images))
    return files


def read_prompts(file: str) -> list[str]:
    """Returns the lines of a text file that are not blank.

    Raises:
        ValueError: there is no such line.
        FileNotFoundError: the file does not exist.
    """
    prompts = [line.strip() for line in read_text(file).splitlines() if line.strip()]
    if not prompts:
        raise ValueError(f"got no prompt in {file}, expected one in each line")
    return prompts


def read_captions(dataset: Any, where: str, n: int | None) -> list[str]:
    """Returns the captions of a data set's pictures, or of n of them, spread evenly over the set.

    Args:
        dataset: the data set.
        where: names the data set in messages.
        n: largest number of captions; None takes all.

    Raises:
        ValueError: a picture has no caption.
    """
    total = len(dataset)
    captions = [dataset.metadata(row)["caption"].strip() for row in evenly(total, min(n or total, total))]
    if not all(captions):
        raise ValueError(f"got pictures without a caption in {where}, expected one for each; leave captions out")
    return captions


def class_balance(classes: Sequence[str]) -> Mapping[str, int]:
    """Returns the number of classes, and the number of pictures in the smallest and in the largest one."""
    counts = Counter(classes)
    return {"count": len(counts), "smallest": min(counts.values()), "largest": max(counts.values())}


def digest(content: Any) -> str:
    """Returns the SHA-256 of a JSON value."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
