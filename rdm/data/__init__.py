"""Images together with their neighbours, and with their codes."""

from rdm.data.codes import CodedDataModule
from rdm.data.datamodule import RetrievalDataModule
from rdm.data.query_dataset import QueryDataset

__all__ = ["CodedDataModule", "QueryDataset", "RetrievalDataModule"]
