"""The DataModule of retrieval-augmented training: makes what is missing of database, index and tables."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ldm.data.datamodule import DataModule
from ldm.util import instantiate_from_config
from rdm.data.query_dataset import QueryDataset
from rdm.retrieval.builder import check_source, prepare_database
from rdm.retrieval.config import check_database, load_embedder
from rdm.retrieval.database import RetrievalDatabase
from rdm.retrieval.neighbours import NEAR_DUPLICATE, NeighbourTable, prepare_neighbour_table
from rdm.retrieval.search import read_card

LOG = logging.getLogger(__name__)


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
        num_workers: loader processes.
        seed: of the order of the training images.

    Raises:
        ValueError: a key of ``database`` is unknown or missing, or k is more than ``stored_k``.
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
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, train, validation, test, num_workers=num_workers, seed=seed)
        check_database(database)
        if not 1 <= k <= stored_k:
            raise ValueError(f"got k={k}, stored_k={stored_k}; expected k from 1 to stored_k")
        self.embedder_config = dict(embedder)
        self.database_config = dict(database)
        self.k, self.stored_k, self.near_duplicate = k, stored_k, near_duplicate
        self.patches_per_side = patches_per_side
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

    def table_path(self, name: str) -> Path:
        """Returns the folder of the neighbour table of ``train``, ``validation`` or ``test``."""
        return Path(self.database_config["path"]) / "neighbours" / name

    def table(self, name: str) -> NeighbourTable:
        """Returns the neighbour table of ``train``, ``validation`` or ``test``."""
        return NeighbourTable.open(self.table_path(name), self.database)

    def prepare_data(self) -> None:
        """Builds or completes the database, its index and the neighbour tables; finished ones are checked.

        Raises:
            ValueError: the database was made by another embedder or from another source.
        """
        super().prepare_data()
        self._prepare(self.dataset_configs)

    def prepare_retrieval(self) -> None:
        """Builds what sampling reads where it is not there: database, index, and the table of the training images.

        Raises:
            ValueError: the database was made by another embedder, where that is needed, or from another source.
        """
        if not self._is_ready():
            self._prepare({"train": self.dataset_configs["train"]})

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

    def _prepare(self, images_of: Mapping[str, Mapping[str, Any]]) -> None:
        from rdm.retrieval.index import NeighbourIndex  # faiss, for this process only

        embedder = load_embedder(self.embedder_config)
        database = prepare_database(embedder=embedder, **self.database_config)
        index = NeighbourIndex.open(database)
        for name, config in images_of.items():
            images = instantiate_from_config(config)
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
            self.datasets[name] = images = QueryDataset(images, self.database, self.table(name), self.k)
        return images
