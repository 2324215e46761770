"""Tables with a value for each picture of a data set, computed once by a first stage before training.

A table is a folder with the memory-mapped values ``NAME.npy`` ``[images, ...]`` and a card ``NAME.json``, which says
which pictures and which first stage they are of.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from ldm.data.identity import images_hash
from ldm.files import check_hash, read_json
from ldm.locks import building, delete_left_lock
from ldm.stopping import going_on
from ldm.table import KEPT, ResumableTable, check_disk

LOG = logging.getLogger(__name__)
FORMAT = 1
REMEDY = "delete it, and train again"
BATCH = 64


class PictureTable:
    """The values of the pictures of a data set, in their order; a subclass says which.

    Args:
        path: the folder.
        card: the content of its card.

    Attributes:
        name: of the values, in messages and as the names of the files.
        setting: where a config names the folder.
        values: ``[images, ...]``, memory-mapped.
    """

    name: ClassVar[str]
    setting: ClassVar[str]

    def __init__(self, path: Path, card: Mapping[str, Any]) -> None:
        self.path, self.card = path, dict(card)
        self.values = np.load(path / f"{self.name}.npy", mmap_mode="r", allow_pickle=False)

    @classmethod
    def open(cls, path: str | Path) -> Any:
        """Returns the table in a folder.

        Raises:
            FileNotFoundError: there is no table.
            ValueError: the table is damaged.
        """
        path = Path(path)
        file = path / f"{cls.name}.json"
        card = read_json(file, f"no {cls.name} at {path}; main.py makes them before it trains")
        if card.get("format") != FORMAT:
            raise ValueError(f"{file} has format {card.get('format')}, this version reads {FORMAT}; {REMEDY}")
        check_hash(path / f"{cls.name}.npy", card["sha256"], REMEDY)
        return cls(path, card)

    @classmethod
    def prepare(
        cls,
        path: str | Path,
        images: Any,
        made_by: Mapping[str, Any],
        values_of: Callable[[Tensor], np.ndarray],
        *,
        progress: bool = True,
    ) -> Any:
        """Returns the table at ``path``; builds or completes it unless it is of these pictures and made in this way.

        Of several processes, one builds and the others wait for it.

        Args:
            path: folder of the table; an existing table is replaced when the new one is complete.
            images: data set of ``ldm.data``.
            made_by: how the values are made, as JSON; a table that was made in another way is made again.
            values_of: pictures ``[n, C, H, W]`` in [-1, 1] -> their values ``[n, ...]``.
            progress: show a progress bar.

        Raises:
            ValueError: the pictures differ in size, or the disk is too small.
        """
        path, ids = Path(path), images_hash(images)
        plan = {"format": FORMAT, "images": len(images), "image_ids": ids, **made_by}
        if cls._differences(path, plan):
            with building(path), going_on(KEPT):
                if differs := cls._differences(path, plan):
                    if (path / f"{cls.name}.json").is_file():
                        LOG.warning("%s %s differ in %s; computing them again", cls.name, path, ", ".join(differs))
                    cls._fill(path, images, plan, values_of, progress)
        else:
            delete_left_lock(path)
        return cls.open(path)

    @classmethod
    def _differences(cls, path: Path, plan: Mapping[str, Any]) -> list[str]:
        """Returns in what the table at ``path`` is not the wanted one; an empty list if it is."""
        file = path / f"{cls.name}.json"
        card = read_json(file, REMEDY) if file.is_file() else {}
        return [key for key in plan if card.get(key) != plan[key]]

    @classmethod
    def _fill(
        cls,
        path: Path,
        images: Any,
        plan: Mapping[str, Any],
        values_of: Callable[[Tensor], np.ndarray],
        progress: bool,
    ) -> None:
        """Computes the values of all pictures, or what is left of them, and writes the table."""
        table, checked = ResumableTable(path, len(images), plan), False
        with tqdm(total=len(images), initial=table.done, unit="img", desc=cls.name, disable=not progress) as bar:
            for start in range(table.done, len(images), BATCH):
                some = [images[number]["image"] for number in range(start, min(start + BATCH, len(images)))]
                if len(sizes := {tuple(image.shape) for image in some}) > 1:
                    raise ValueError(
                        f"{cls.name}: got pictures of sizes {sorted(sizes)}, expected one size; set it in the data "
                        "config"
                    )
                with torch.no_grad():
                    values = values_of(torch.stack(some))
                if not checked:
                    check_disk(path, len(images) - start, values[0].nbytes, cls.name, cls.setting)
                    checked = True
                table.append(**{cls.name: values})
                bar.update(len(some))
        table.finish(f"{cls.name}.json", {**plan, "sha256": table.hashes()[cls.name]})
        LOG.info("wrote %s %s: %d images", cls.name, path, len(images))

    def __len__(self) -> int:
        """Returns the number of pictures."""
        return len(self.values)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles the path and the card only; a worker process opens the file again."""
        return type(self), (self.path, self.card)


class PicturesWithValues(Dataset[dict[str, Any]]):
    """Adds the value of a table to each item of a data set.

    Args:
        images: data set of ``ldm.data``.
        table: the values of these pictures.
        entry: name of the value in an item.
        dtype: of the value.

    Raises:
        ValueError: the table belongs to other pictures.
    """

    def __init__(self, images: Any, table: PictureTable, entry: str, dtype: torch.dtype) -> None:
        if table.card["image_ids"] != images_hash(images):
            raise ValueError(
                f"{table.name} {table.path} belong to {len(table)} other images, got {len(images)}; {REMEDY}"
            )
        self.images, self.table, self.entry, self.dtype = images, table, entry, dtype
        self.order = getattr(images, "order", None)

    def __len__(self) -> int:
        """Returns the number of pictures."""
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Returns one picture with its value."""
        return {**self.images[index], self.entry: torch.tensor(self.table.values[index], dtype=self.dtype)}

    def metadata(self, index: int) -> dict[str, str]:
        """Returns the texts of one picture, without decoding it."""
        return self.images.metadata(index)
