"""Reads CompVis' ``nn_memory`` pickles: which neighbours each training picture has, without running the pickle."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np

# What a pickle of numpy arrays, numbers and dictionaries names; none of it runs code. numpy 2 moved core to _core.
_ARRAYS = {
    *((f"numpy.{core}.multiarray", name) for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
    *((f"numpy.{core}.numeric", "_frombuffer") for core in ("core", "_core")),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("collections", "Counter"),
    ("collections", "OrderedDict"),
    ("_codecs", "encode"),
}


class _ArrayReader(pickle.Unpickler):
    """Reads pickles of arrays and plain containers, and refuses whatever else they name."""

    def find_class(self, module: str, name: str) -> Any:
        """Returns what a pickle names.

        Raises:
            UnpicklingError: anything that is not needed for arrays.
        """
        if (module, name) not in _ARRAYS:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which could run code")
        return super().find_class(module, name)


def read_nn_memory(file: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """Returns rows of CompVis' ``nn_memory`` files, most popular first, and how often each is somebody's neighbour.

    They are pickles of ``{"nn_memory": rows, "id_count": {row: count}}``; nothing in them is run.

    Args:
        file: such as ``in_imagenet.p``.

    Returns:
        Rows ``[M] int64`` and counts ``[M] int64``.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is damaged, asks for more than arrays, or is none of these files.
    """
    path = Path(file)
    if not path.is_file():
        raise FileNotFoundError(f"no file at {path}; name one of CompVis' nn_memory files")
    try:
        with path.open("rb") as stream:
            content = _ArrayReader(stream).load()
        rows = np.asarray(content["nn_memory"], dtype=np.int64).ravel()
        return rows, np.array([content["id_count"][int(row)] for row in rows], dtype=np.int64)
    except pickle.UnpicklingError as error:
        raise ValueError(f"{path} was refused: {error}; nothing of it was run") from error
    except (EOFError, LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(f"{path} is no complete nn_memory of CompVis ({reason}); fetch it again") from error
