"""Data sets of images with their neighbours and their codes."""

from rdm.data.codes import CodedDataModule
from rdm.data.datamodule import RetrievalDataModule
from rdm.data.query_dataset import QueryDataset

__all__ = ["CodedDataModule", "QueryDataset", "RetrievalDataModule"]
