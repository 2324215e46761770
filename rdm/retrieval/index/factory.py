"""Chooses an index for a database from the number of rows, their width and a memory budget."""

from __future__ import annotations

import math
import re

from ldm.util import bytes_of

FLAT_ROWS = 65536  # exact search takes a few milliseconds up to this size
DEFAULT_RAM = "2GB"
_CODES = (64, 32, 16, 8)  # sub-quantisers of 4 bits; 64 with re-ranking reach the targets of rdm.retrieval.index.tune
_ID = 8  # bytes of the row number that is stored with each code
MIN_MAPPED = 64_000_000  # bytes of the database that may stay mapped, however little memory there is
_SPARE = 1.1  # lists are allocated in steps


def budget(ram: int | str | None) -> int:
    """Returns a memory budget in bytes; ``ram`` is a number of bytes, a size such as ``2GB``, or None for the default.

    Raises:
        ValueError: ``ram`` is not a size.
    """
    return ram if isinstance(ram, int) else bytes_of(ram or DEFAULT_RAM)


def choose_factory(rows: int, dim: int, ram: int) -> str:
    """Returns faiss' factory string of the index for a database.

    The index is exact (``Flat``) while that is fast. Otherwise it has about ``4 sqrt(rows)`` inverted lists and the
    longest codes that fit into the memory. Vectors of up to 64 numbers take one byte a number (SQ8). Wider vectors are
    rotated so that quantisation loses little (OPQ, Ge et al. 2013) and stored as product-quantised 4-bit codes, which
    are searched in registers (Andre et al. 2019, "Quicker ADC"). The codes describe the vectors themselves and not
    their differences from the centres of the lists: for the inner product centres have length one, and the difference
    is then longer than the vector.

    Args:
        rows: number of rows of the database, N.
        dim: width of its vectors, D.
        ram: bytes that the index may use.

    Raises:
        ValueError: even the shortest codes do not fit.
    """
    if rows <= FLAT_ROWS and 4 * rows * dim <= ram:
        return "Flat"
    lists = 2 ** min(round(math.log2(4 * math.sqrt(rows))), int(math.log2(max(rows // 39, 1))))
    options = [f"IVF{lists},SQ8"] if dim <= 64 else []
    for parts in _CODES:
        if parts <= dim:
            width = parts * max(1, min(4, dim // parts))
            options.append(f"OPQ{parts}_{width},IVF{lists},PQ{parts}x4fs")
    for factory in options:
        if index_bytes(factory, rows, dim) <= ram:
            return factory
    need = index_bytes(options[-1], rows, dim)
    raise ValueError(
        f"ram: got {ram / 1e6:.0f} MB, expected at least {need / 1e6:.0f} MB for {rows} rows of {dim} numbers"
    )


def index_bytes(factory: str, rows: int, dim: int) -> int:
    """Returns about how many bytes of memory an index of :func:`choose_factory` uses."""
    if factory == "Flat":
        return 4 * rows * dim
    lists, code = re.findall(r"IVF(\d+),(.*)", factory)[0]
    turned = re.match(r"OPQ\d+_(\d+)", factory)
    width = int(turned[1]) if turned else dim
    size = dim if code == "SQ8" else int(code[2:].partition("x")[0]) / 2
    return int(rows * (size + _ID) * _SPARE) + 4 * (int(lists) + dim) * width
