"""The DataModule of retrieval-augmented training: makes what is missing of database, index and tables."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from ldm.data.datamodule import DataModule, ResumableSampler
from ldm.util import instantiate_from_config
from rdm.data.query_dataset import CaptionSampler, QueryDataset
from rdm.retrieval.builder.build import check_source, prepare_database
from rdm.retrieval.config import check_database, load_embedder
from rdm.retrieval.database.rows import RetrievalDatabase
from rdm.retrieval.index.search import read_card
from rdm.retrieval.neighbours.build import check_query, prepare_neighbour_table
from rdm.retrieval.neighbours.table import CAPTION, NEAR_DUPLICATE, PICTURE, NeighbourTable

LOG = logging.getLogger(__name__)
CAPTIONS = "train-captions"  # the table of the neighbours of the training images' captions


class RetrievalDataModule(DataModule):
    """Images with neighbours from a database.

    ``prepare_data`` runs on one process and needs the embedder and faiss only if something is missing or has
    to be checked; training afterwards reads memory-mapped files.

    Args:
        batch_size: images per step and device.
        embedder: ``{target, params}`` of the embedder.
        database: ``path`` and ``source`` (``{target, params}``) of the database, optionally ``batch_size``
            and ``shard_rows`` of its build.
        train: ``{target, params}`` of the training images.
        validation: of the validation images.
        test: of the test images.
        k: neighbours per image that a batch holds.
        stored_k: neighbours per image that the tables hold.
        near_duplicate: database rows at least this similar (cosine) to an image are not its neighbours.
        patches_per_side: n; neighbours are found for each of n x n patches of an image, a batch holds ``n * n * k``.
        caption_share: probability of a training image to come with the neighbours of its caption in place of its own,
            drawn anew each time it is seen (0: none). Sampling from texts looks at such neighbours, which are of the
            text's content in any style. The images need captions; validation and test images keep their own neighbours.
        options: ``num_workers``, ``shuffle`` and ``seed``, arguments of :class:`DataModule`.

    Raises:
        ValueError: a key of ``database`` is unknown or missing, k is more than ``stored_k``, or ``caption_share`` is no
            probability or goes with patches.
    """

    def __init__(
        self,
        batch_size: int,
        embedder: Mapping[str, Any],
        database: Mapping[str, Any],
        train: Mapping[str, Any],
        validation: Mapping[str, Any] | None = None,
        test: Mapping[str, Any] | None = None,
        k: int = 4,
        stored_k: int = 20,
        near_duplicate: float = NEAR_DUPLICATE,
        patches_per_side: int = 1,
        caption_share: float = 0.0,
        **options: Any,
    ) -> None:
        super().__init__(batch_size, train, validation, test, **options)
        check_database(database)
        if not 1 <= k <= stored_k:
            raise ValueError(f"got k={k}, stored_k={stored_k}; expected k from 1 to stored_k")
        if not 0.0 <= caption_share <= 1.0:
            raise ValueError(f"got caption_share={caption_share}, expected a probability, 0 to 1")
        if caption_share:
            check_query(CAPTION, patches_per_side)
        self.embedder_config = dict(embedder)
        self.database_config = dict(database)
        self.k, self.stored_k, self.near_duplicate = k, stored_k, near_duplicate
        self.patches_per_side, self.caption_share = patches_per_side, caption_share
        self._database: RetrievalDatabase | None = None

    @property
    def database(self) -> RetrievalDatabase:
        """The database, opened when first used.

        Raises:
            FileNotFoundError: ``prepare_data`` has not built it yet.
        """
        if self._database is None:
            self._database = RetrievalDatabase.open(self.database_config["path"])
        return self._database

    @property
    def table_names(self) -> list[str]:
        """The neighbour tables: one for each data set, and ``train-captions`` where there is a share of captions."""
        return [*self.dataset_configs, *([CAPTIONS] if self.caption_share else [])]

    def table_path(self, name: str) -> Path:
        """Returns the folder of a neighbour table: of ``train``, ``validation``, ``test`` or ``train-captions``."""
        return Path(self.database_config["path"]) / "neighbours" / name

    def table(self, name: str) -> NeighbourTable:
        """Returns the neighbour table of ``train``, ``validation``, ``test`` or ``train-captions``."""
        return NeighbourTable.open(self.table_path(name), self.database)

    def prepare_data(self) -> None:
        """Builds or completes the database, its index and the neighbour tables; finished ones are checked.

        Raises:
            ValueError: the database was made by another embedder or from another source.
        """
        super().prepare_data()
        self._prepare(self.table_names)

    def prepare_retrieval(self) -> None:
        """Builds what sampling reads where it is not there: database, index, and the table of the training images.

        Raises:
            ValueError: the database was made by another embedder, where that is needed, or from another source.
        """
        if not self._is_ready():
            self._prepare(["train"])

    def _is_ready(self) -> bool:
        """Whether what sampling reads is there; which embedder made it is looked at when one is needed."""
        try:
            check_source(self.database, self.database_config["source"], self.database_config.get("patches"))
            read_card(self.database, self.database.path / "index")
        except FileNotFoundError:
            return False
        try:
            return self.table("train").left() >= self.k
        except (FileNotFoundError, ValueError):  # it is made again where it is another's
            return False

    def _prepare(self, names: Sequence[str]) -> None:
        from rdm.retrieval.index.faiss_index import NeighbourIndex  # so that processes which only train load no faiss

        embedder = load_embedder(self.embedder_config)
        database = prepare_database(embedder=embedder, **self.database_config)
        index = NeighbourIndex.open(database)
        for name in names:
            images = instantiate_from_config(self.dataset_configs["train" if name == CAPTIONS else name])
            prepare_neighbour_table(
                self.table_path(name),
                images,
                embedder,
                database,
                index,
                k=self.stored_k,
                used=self.k,
                near_duplicate=self.near_duplicate,
                patches_per_side=self.patches_per_side,
                query=CAPTION if name == CAPTIONS else PICTURE,
            )

    def setup(self, stage: str | None = None) -> None:
        """Builds the data sets that ``stage`` reads, with their neighbours."""
        super().setup(stage)
        for name in list(self.datasets):
            self._dataset(name)

    def _dataset(self, name: str) -> QueryDataset:
        """Returns a data set with its neighbours."""
        images = super()._dataset(name)
        if not isinstance(images, QueryDataset):
            captions = self.table(CAPTIONS) if name == "train" and self.caption_share else None
            self.datasets[name] = images = QueryDataset(images, self.database, self.table(name), self.k, captions)
        return images

    def _sampler(
        self, dataset: Dataset[Any], kind: Callable[..., ResumableSampler] = ResumableSampler
    ) -> ResumableSampler:
        if self.caption_share:
            kind = partial(CaptionSampler, share=self.caption_share)
        return super()._sampler(dataset, kind)
