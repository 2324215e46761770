"""Reads CompVis' ``nn_memory`` pickles: which neighbours each training picture has, without running the pickle."""

from __future__ import annotations

import pickle
import pickletools
from pathlib import Path
from typing import Any

import numpy as np

# The names in a pickle of numpy arrays, numbers and dictionaries. None of them runs code. numpy 2 moved core to _core.
_ARRAYS = {
    *((f"numpy.{core}.multiarray", name) for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
    *((f"numpy.{core}.numeric", "_frombuffer") for core in ("core", "_core")),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("collections", "Counter"),
    ("collections", "OrderedDict"),
    ("_codecs", "encode"),
}


_PLACES = ("PUT", "BINPUT", "LONG_BINPUT", "FRAME")  # opcodes with a number that memory is taken for


class _ArrayReader(pickle.Unpickler):
    """Unpickler for arrays and plain containers, which refuses every other name."""

    def find_class(self, module: str, name: str) -> Any:
        """Returns the object of a name in the pickle.

        Raises:
            UnpicklingError: the name is not one that arrays need.
        """
        if (module, name) not in _ARRAYS:
            raise pickle.UnpicklingError(f"it asks for {ascii(f'{module}.{name}')[1:-1]}, which could run code")
        return super().find_class(module, name)


def _check_claims(path: Path) -> None:
    """Checks that no number in a pickle, of which memory would be taken, is beyond the size of its file.

    Raises:
        ValueError: a length or the place of a memo is beyond it.
    """
    size = path.stat().st_size
    with path.open("rb") as stream:
        for opcode, value, _ in pickletools.genops(stream):
            if opcode.name in _PLACES and int(value or 0) > size:
                raise ValueError(f"it has a memo {value}, in {size} bytes")


def read_nn_memory(file: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """Returns the database rows in one of CompVis' ``nn_memory`` files, and how often each row is a neighbour.

    The files are pickles of ``{"nn_memory": rows, "id_count": {row: count}}``. No code in them is run.

    Args:
        file: path such as ``in_imagenet.p``.

    Returns:
        Rows ``[M] int64``, the most frequent neighbour first, and their counts ``[M] int64``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, names more than arrays, or is no ``nn_memory`` file.
    """
    path = Path(file)
    if not path.is_file():
        raise FileNotFoundError(f"no file at {path}; name one of CompVis' nn_memory files")
    try:
        _check_claims(path)
        with path.open("rb") as stream:
            content = _ArrayReader(stream).load()
        rows = np.asarray(content["nn_memory"], dtype=np.int64).ravel()
        return rows, np.array([content["id_count"][int(row)] for row in rows], dtype=np.int64)
    except pickle.UnpicklingError as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise ValueError(f"{path} was refused: {reason}; nothing of it was run") from error
    except MemoryError as error:
        raise ValueError(
            f"{path} asks for more memory than there is, so it is damaged or forged; fetch it again"
        ) from error
    except (EOFError, LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(f"{path} is no complete nn_memory of CompVis ({reason}); fetch it again") from error
