"""Image datasets and the DataModule that a config describes."""

from ldm.data.datamodule import DataModule
from ldm.data.images import ImageFolder
from ldm.data.parquet import ParquetImages
from ldm.data.shards import WebDatasetImages
from ldm.data.split import HashSplit

__all__ = ["DataModule", "HashSplit", "ImageFolder", "ParquetImages", "WebDatasetImages"]
