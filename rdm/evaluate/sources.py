"""Where the pictures of an evaluation come from: files, or a model that samples or copies them when asked."""

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

from ldm.data.decode import open_picture
from ldm.files import file_hash, read_json, read_text, write_json
from ldm.models.tiling import decode_tiled, encode_tiled
from ldm.modules.distributions.distributions import DiagonalGaussianDistribution
from ldm.pictures import from_uint8, save_png, to_uint8
from ldm.util import evenly, instantiate_from_config
from rdm.loading import Loaded, config_beside, model_config
from rdm.retrieval.config import source_config
from rdm.retrieval.queries import text_queries
from rdm.sampling.copies import as_written
from rdm.sampling.request import Request
from rdm.sampling.samples import sample, settings_of
from rdm.sampling.settings import TOP_M, Settings
from rdm.sampling.ways import popular_vectors

PREPROCESSING = "shorter side to `size`, antialiased bicubic, centre cut out; unchanged where it has that size"
TEXTS = 256  # that are embedded at once
WRITTEN = 64  # images between two writings of a card


class PictureFiles:
    """Pictures of a folder, of Parquet files or of tar shards.

    Args:
        path: where they are.
        split: of Parquet files.
        size: side in pixels; that of the shorter side of the first picture where not given.
        n: number of pictures, evenly spread over all; all where not given.
        workers: processes that read them.

    Attributes:
        about: what a report states of them.

    Raises:
        FileNotFoundError: there are none.
        ValueError: fewer than ``n``, or files that cannot be read.
    """

    def __init__(
        self, path: str, split: str | None = None, size: int | None = None, n: int | None = None, workers: int = 0
    ) -> None:
        config = source_config(path, size or 1, split)
        config["params"]["max_broken"] = 0  # another picture in the place of a broken one would count twice
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
            "classes": balance([entry["class_id"] for entry in entries]),
            "captions_sha256": _digest(self.captions),
            "sha256": self.fingerprint,
        }

    def _hash(self) -> str:
        """Returns the hash of the encoded pictures in their order, and of what becomes of them."""
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
    """Images of a model, sampled when they are asked for; image i has seed ``seed + i`` and 8 bits, as in a file.

    With ``best_of`` among the settings, it is the best of so many candidates, of which the first has that seed. Images
    are not compared with the database.

    Args:
        loaded: model and database.
        n: number of images.
        prompts: texts; image i is of text i, from the first one again after the last. Without them, images are
            unconditional, of neighbours of popular rows.
        settings: how images are sampled.
        k: neighbours of each; as many as in training if None.
        seed: of the first image.
        top_m: of popular rows, see :func:`rdm.sampling.ways.popular`.
        weighted: likewise.
        tokens: what the model sees of a text, see :func:`rdm.sampling.ways.texts`.

    Attributes:
        about: what a report states of them.
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
        self.tokens, self.of_texts = tokens, bool(prompts)
        asked: dict[str, Any]
        if prompts:
            parts = [prompts[start : start + TEXTS] for start in range(0, len(prompts), TEXTS)]
            vectors = torch.cat([text_queries(loaded.retriever.embedder, part) for part in parts])
            places = [place % len(prompts) for place in range(n)]
            self.captions, self.queries = [prompts[place] for place in places], vectors[places]
            asked = {"way": "text", "prompts": len(prompts), "sha256": _digest(list(prompts)), "k": self.k}
        else:
            if tokens != "neighbours":
                raise ValueError(f"got tokens '{tokens}' without prompts, expected neighbours; give --from-file")
            self.captions = [""] * n
            self.queries = popular_vectors(loaded, n, top_m=top_m, weighted=weighted, seed=seed)
            drawn = hashlib.sha256(self.queries.numpy().tobytes()).hexdigest()  # popularity is no part of the database
            asked = {"way": "popular", "top_m": top_m, "weighted": weighted, "k": self.k, "queries_sha256": drawn}
        config = model_config(loaded.config, loaded.path) if loaded.config else config_beside(loaded.path)
        retriever = loaded.retriever
        sampled = settings_of(loaded, self.request(0, 1), self.settings)
        what = {
            "checkpoint_sha256": file_hash(loaded.path),
            "config_sha256": _digest(config["model"]),
            "database_fingerprint": retriever.database.fingerprint,
            "removed": retriever.database.removed,  # rows, which the fingerprint does not see
            "index": {key: retriever.index.card.get(key) for key in ("factory", "search", "sha256")},
            "rows_sha256": None if retriever.rows is None else _digest(retriever.rows.tolist()),
            "asked": asked,
            "settings": {"tokens": tokens, **_told(sampled, loaded.model.kind)},
            "weaker_sha256": file_hash(Path(sampled.weaker)) if sampled.weaker else None,
            "seeds": [seed, seed + n - 1],
            "n": n,
        }
        device = loaded.model.device.type
        here = [torch.__version__, device, sampled.compile]  # with others, last bits may differ
        self.fingerprint = _digest([what, here])
        paths = {"checkpoint": str(loaded.path), "database": str(retriever.database.path)}
        self.about = {**paths, **what, "sha256": _digest(what)}

    def __len__(self) -> int:
        """The number of images."""
        return self.n

    def request(self, start: int, stop: int) -> Request:
        """Returns the request for some of the images."""
        places = slice(start, stop)
        shown = None if self.tokens == "neighbours" else self.queries[places]
        return Request(
            self.loaded.retriever(self.queries[places], self.k),
            self.captions[places],
            range(self.seed + start, self.seed + stop),
            tokens=self.tokens,
            queries=self.queries[places] if self.of_texts else None,
            query_tokens=shown,
        )

    def batches(self, start: int, size: int) -> Iterator[Tensor]:
        """See :class:`rdm.evaluate.extract.Source`."""
        for first in range(start, self.n, size):
            request = self.request(first, min(first + size, self.n))
            yield from_uint8(to_uint8(sample(self.loaded, request, self.settings).images))


def _told(settings: Settings, kind: str) -> dict[str, Any]:
    """Returns the settings that images depend on."""
    return {
        name: value
        for name, value in settings.record(kind).items()
        if name not in ("compile", "copy_threshold", "reject_copies")
    }


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


def write_samples(folder: Path, samples: ModelSamples) -> list[Path]:
    """Returns files of all samples, named by their seeds, beside a card; those that are there already are kept.

    The card changes after the files of a batch are written. Files of other samples are written over.
    """
    files = [folder / f"{seed:06d}.png" for seed in range(samples.seed, samples.seed + len(samples))]
    card, file, done = {**samples.about, "fingerprint": samples.fingerprint}, folder / "samples.json", 0
    if file.is_file() and (there := read_json(file, f"delete {file}")).get("fingerprint") == samples.fingerprint:
        done = there["done"]
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
        ValueError: there is none.
        FileNotFoundError: no such file.
    """
    prompts = [line.strip() for line in read_text(file).splitlines() if line.strip()]
    if not prompts:
        raise ValueError(f"got no prompt in {file}, expected one in each line")
    return prompts


def read_captions(dataset: Any, where: str, n: int | None) -> list[str]:
    """Returns the captions of a data set's pictures; of n of them, evenly spread, where there are more.

    Raises:
        ValueError: one has none; says where.
    """
    total = len(dataset)
    captions = [dataset.metadata(row)["caption"].strip() for row in evenly(total, min(n or total, total))]
    if not all(captions):
        raise ValueError(f"got pictures without a caption in {where}, expected one for each; leave captions out")
    return captions


def balance(classes: Sequence[str]) -> Mapping[str, int]:
    """Returns how many classes there are, and of how many pictures the smallest and the largest."""
    counts = Counter(classes)
    return {"count": len(counts), "smallest": min(counts.values()), "largest": max(counts.values())}


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
