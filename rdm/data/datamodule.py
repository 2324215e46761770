"""The DataModule of retrieval-augmented training, which builds the database, index and neighbour tables if needed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from ldm.config import check_keys, picture_params
from ldm.data.datamodule import ResumableLoader, ResumableSampler
from ldm.data.decode import sides
from ldm.util import instantiate_from_config
from rdm.data.agreement import Agreement
from rdm.data.further import FurtherDataModule
from rdm.data.query_dataset import NeighbourSampler, QueryDataset
from rdm.retrieval.builder.build import check_source, prepare_database
from rdm.retrieval.config import check_database, load_embedder
from rdm.retrieval.database.outlines import Outlines
from rdm.retrieval.database.rows import RetrievalDatabase
from rdm.retrieval.embedder import Embedder
from rdm.retrieval.index.search import SearchIndex, read_card
from rdm.retrieval.neighbours.build import check_query, prepare_neighbour_table
from rdm.retrieval.neighbours.table import CAPTION, NEAR_DUPLICATE, PICTURE, NeighbourTable

LOG = logging.getLogger(__name__)
CAPTIONS = "train-captions"  # name of the table with the neighbours of the training images' captions


class RetrievalDataModule(FurtherDataModule):
    """Images with neighbours from a database.

    ``prepare_data`` runs in one process, which loads the embedder and faiss. Training reads memory-mapped files.

    Args:
        batch_size: images per step and device.
        embedder: ``{target, params}`` of the embedder.
        database: ``path`` and ``source`` (``{target, params}``) of the database, optionally ``batch_size``
            and ``shard_rows`` of its build.
        train: ``{target, params}`` of the training images.
        k: neighbours per image in a batch.
        stored_k: neighbours per image in the tables.
        near_duplicate: database rows at least this similar (cosine) to an image are left out of its neighbours.
        same_outline: database rows whose outline correlates at least this much with that of an image, or of a nearer
            neighbour, are left out of its neighbours (:mod:`rdm.retrieval.database.outlines`). None and numbers above 1
            leave out none. The database must still have its pictures.
        patches_per_side: n; each of n x n patches of an image has neighbours, so a batch holds ``n * n * k`` per image.
        caption_share: probability that a training image comes with the neighbours of its caption instead of its own
            (0 for never). It is drawn again each time the image is seen. Text-to-image sampling uses such neighbours,
            which match the content of the text in any style. The training images need captions. Validation and test
            images always have their own neighbours.
        draw_from: each time a training image is seen, its k neighbours are drawn at random from this many nearest ones;
            k, the default, takes the k nearest. Validation and test images always have the k nearest.
        agreement: ``share``, ``draw_from``, ``least`` and ``among``, see :class:`Agreement`: a share of the training
            images have neighbours whose outlines agree with theirs. It needs ``same_outline``.
        options: ``references`` and ``tokens``, see :class:`FurtherDataModule`, and ``validation``, ``test``,
            ``num_workers``, ``shuffle`` and ``seed``, arguments of :class:`DataModule`.

    Raises:
        ValueError: a key of ``database`` is unknown or missing, k is larger than ``stored_k``, ``draw_from`` is not
            between the two, or ``caption_share`` is not a probability or is combined with patches.
    """

    def __init__(
        self,
        batch_size: int,
        embedder: Mapping[str, Any],
        database: Mapping[str, Any],
        train: Mapping[str, Any],
        k: int = 4,
        stored_k: int = 20,
        near_duplicate: float = NEAR_DUPLICATE,
        same_outline: float | None = None,
        patches_per_side: int = 1,
        caption_share: float = 0.0,
        draw_from: int | None = None,
        agreement: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(batch_size=batch_size, train=train, **options)
        check_database(database)
        if not 1 <= k <= stored_k:
            raise ValueError(f"got k={k}, stored_k={stored_k}; expected k from 1 to stored_k")
        if draw_from is not None and not k <= draw_from <= stored_k:
            raise ValueError(f"got draw_from={draw_from}, expected a number from k={k} to stored_k={stored_k}")
        if not 0.0 <= caption_share <= 1.0:
            raise ValueError(f"got caption_share={caption_share}, expected a probability from 0 to 1")
        if caption_share:
            check_query(CAPTION, patches_per_side)
        self.embedder_config = dict(embedder)
        self.database_config = dict(database)
        self.k, self.stored_k = k, stored_k
        self.near_duplicate, self.same_outline = near_duplicate, same_outline
        self.patches_per_side, self.caption_share = patches_per_side, caption_share
        self.draw_from = draw_from or k
        self.agreement = None if agreement is None else self._agreement(agreement)
        self._database: RetrievalDatabase | None = None
        self._outlines: Outlines | None = None

    def _agreement(self, given: Mapping[str, Any]) -> Agreement:
        """Returns the options of neighbours that agree.

        Raises:
            ValueError: an option is unknown or does not accept its value, or there are no outlines to compare.
        """
        check_keys(dict(given), tuple(each.name for each in fields(Agreement)), "agreement")
        if self.same_outline is None or self.same_outline > 1 or self.patches_per_side > 1:
            raise ValueError(
                f"got agreement with same_outline={self.same_outline} and patches_per_side={self.patches_per_side}, "
                "expected same_outline of at most 1 and whole pictures, whose outlines are compared; set "
                "data.params.same_outline=0.9 or leave agreement out"
            )
        return Agreement(**given)

    @property
    def database(self) -> RetrievalDatabase:
        """The database, opened when it is first used.

        Raises:
            FileNotFoundError: ``prepare_data`` has not built it yet.
        """
        if self._database is None:
            self._database = RetrievalDatabase.open(self.database_config["path"])
        return self._database

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of training images in pixels.

        Raises:
            ValueError: the config of the training images does not say it.
        """
        return sides(self._image_params["size"])

    @property
    def value_range(self) -> Sequence[float] | None:
        """The values of black and white in grey pictures with more than 8 bits, if the config states them."""
        return self._image_params.get("value_range")

    @property
    def _image_params(self) -> Mapping[str, Any]:
        """The parameters of the data set that holds the training images."""
        found = picture_params(self.dataset_configs["train"])
        if found is None:
            raise ValueError("data.params.train has no 'size'; give the size of its images in pixels")
        return found

    @property
    def table_names(self) -> list[str]:
        """Names of the neighbour tables: one for each data set, and ``train-captions`` if captions have a share."""
        return [*self.dataset_configs, *([CAPTIONS] if self.caption_share else [])]

    def table_path(self, name: str) -> Path:
        """Returns the folder of the neighbour table ``train``, ``validation``, ``test`` or ``train-captions``."""
        return Path(self.database_config["path"]) / "neighbours" / name

    def table(self, name: str) -> NeighbourTable:
        """Returns the neighbour table ``train``, ``validation``, ``test`` or ``train-captions``."""
        return NeighbourTable.open(self.table_path(name), self.database)

    def prepare_data(self) -> None:
        """Builds or completes the database, its index and the neighbour tables, and checks finished ones.

        Within a trainer, also the tables of what batches hold of neighbours beside their embeddings.

        Raises:
            ValueError: the database was made by another embedder or from another source.
        """
        super().prepare_data()
        embedder = self._prepare(self.table_names)
        if self.trainer is not None:
            tables = [self.table(name).rows for name in self.table_names]
            config = self.dataset_configs["train"]
            own = self.own_rows(instantiate_from_config(config), config, self.database)
            tables += [] if own is None else [own]
            self.prepare_further(self.database, tables, embedder, self.image_size)

    def prepare_retrieval(self) -> None:
        """Builds what sampling reads and is missing: the database, its index and the table of the training images.

        Raises:
            ValueError: the database was made from another source, or by another embedder if something must be built.
        """
        if not self._is_ready():
            self._prepare(["train"])

    def _is_ready(self) -> bool:
        """Whether all that sampling reads is there; the embedder of the database is checked when it is first used."""
        try:
            check_source(self.database, self.database_config["source"], self.database_config.get("patches"))
        except FileNotFoundError:
            return False
        try:
            read_card(self.database, self.database.path / "index")
            return self.table("train").left() >= self.k
        except (FileNotFoundError, ValueError):  # an index or a table of other rows is built again
            return False

    def _prepare(self, names: Sequence[str]) -> Embedder:
        """Builds what is missing of the database, its index and some neighbour tables, and returns the embedder."""
        from rdm.retrieval.index.faiss_index import current_index  # so that processes which only train load no faiss

        embedder = load_embedder(self.embedder_config)
        database = prepare_database(embedder=embedder, **self.database_config)
        index = current_index(database)
        for name in names:
            images = instantiate_from_config(self.dataset_configs["train" if name == CAPTIONS else name])
            self.prepare_table(name, images, embedder, database, index)
        return embedder

    def prepare_table(
        self, name: str, images: Any, embedder: Embedder, database: RetrievalDatabase, index: SearchIndex
    ) -> NeighbourTable:
        """Returns a neighbour table, which is built if it is missing or of other rows.

        Args:
            name: see :meth:`table_path`.
            images: the pictures that it is of.
            embedder: the embedder that made the database.
            database: where neighbours come from.
            index: the index of that database.

        Raises:
            ValueError: see :func:`rdm.retrieval.neighbours.build.build_neighbour_table`.
        """
        return prepare_neighbour_table(
            self.table_path(name),
            images,
            embedder,
            database,
            index,
            k=self.stored_k,
            used=self.draw_from if name in ("train", CAPTIONS) else self.k,
            near_duplicate=self.near_duplicate,
            outlines=self._outlines_of(database),
            patches_per_side=self.patches_per_side,
            query=CAPTION if name == CAPTIONS else PICTURE,
            agreement=self.agreement is not None and name in ("train", CAPTIONS),
        )

    def _outlines_of(self, database: RetrievalDatabase) -> Outlines | None:
        """Returns the outlines of the database, which all tables share, so that each is computed once."""
        if self._outlines is None or self._outlines.database is not database:
            self._outlines = Outlines.of(database, self.same_outline)
        return self._outlines

    def setup(self, stage: str | None = None) -> None:
        """Builds the data sets that ``stage`` reads and adds their neighbours."""
        super().setup(stage)
        for name in list(self.datasets):
            self._dataset(name)

    def train_dataloader(self) -> ResumableLoader:
        """Returns the loader of the training images, see :meth:`DataModule.train_dataloader`.

        Raises:
            ValueError: also if another first stage than the model's encoded the references. A resumed run has its
                weights by now.
        """
        model = getattr(self.trainer, "lightning_module", None)
        if model is not None:
            self.check_first_stage(self.database, model)
        return super().train_dataloader()

    def _dataset(self, name: str) -> QueryDataset:
        """Returns a data set with its neighbours."""
        images = super()._dataset(name)
        if not isinstance(images, QueryDataset):
            options: dict[str, Any] = {"further": self.further(self.database)}
            if name == "train":
                options["draw_from"], options["agreement"] = self.draw_from, self.agreement
                options["captions"] = self.table(CAPTIONS) if self.caption_share else None
                options["own"] = self.own_rows(images, self.dataset_configs[name], self.database)
            self.datasets[name] = images = QueryDataset(images, self.database, self.table(name), self.k, **options)
        return images

    def _sampler(
        self, dataset: Dataset[Any], kind: Callable[..., ResumableSampler] = ResumableSampler
    ) -> ResumableSampler:
        draw = self.draw_from > self.k or self.agreement is not None
        if self.caption_share or draw:
            kind = partial(NeighbourSampler, share=self.caption_share, draw=draw)
        return super()._sampler(dataset, kind)
