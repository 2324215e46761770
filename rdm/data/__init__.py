"""Images together with their neighbours."""

from rdm.data.datamodule import RetrievalDataModule
from rdm.data.query_dataset import QueryDataset

__all__ = ["QueryDataset", "RetrievalDataModule"]
