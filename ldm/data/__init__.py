"""Image datasets and the DataModule that a config describes.

Names are imported when they are first used, so that decoding pictures does not import Lightning.
"""

from ldm.util import names_when_used

_HOME = {
    "DataModule": "datamodule",
    "HashSplit": "split",
    "HubImages": "hub",
    "HubStream": "hub",
    "ImageFolder": "images",
    "ParquetImages": "parquet",
    "WebDatasetImages": "shards",
}
__all__ = sorted(_HOME)
__getattr__ = names_when_used(__name__, _HOME)
