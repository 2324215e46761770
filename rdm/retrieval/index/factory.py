"""Which index suits a database: chosen from its rows, their width and a budget of memory."""

from __future__ import annotations

import math
import re

from ldm.util import bytes_of

FLAT_ROWS = 65536  # up to here exact search takes a few milliseconds
DEFAULT_RAM = "2GB"
_CODES = (64, 32, 16, 8)  # sub-quantisers of 4 bits; 64 with re-ranking reach the targets of rdm.retrieval.index.tune
_ID = 8  # bytes of a row's number beside its code
_SPARE = 1.1  # lists grow in steps


def budget(ram: int | str | None) -> int:
    """Returns a budget of memory in bytes; ``ram`` is such a number, a size such as ``2GB``, or None for the default.

    Raises:
        ValueError: not a size.
    """
    return ram if isinstance(ram, int) else bytes_of(ram or DEFAULT_RAM)


def choose_factory(rows: int, dim: int, ram: int) -> str:
    """Returns faiss' description of the index for a database.

    Exact search where it is fast. Otherwise inverted lists, about ``4 sqrt(rows)`` of them, with the longest codes that
    fit: narrow vectors a byte a number (SQ8), wide ones as product-quantised 4-bit codes, which are searched in
    registers (Andre et al. 2019, "Quicker ADC"), of vectors turned so that little is lost (OPQ, Ge et al. 2013). The
    codes are of the vectors themselves: by inner product, lists have centres of length one, and what is left of a
    turned vector beside its centre is longer than the vector.

    Args:
        rows: of the database, N.
        dim: of its vectors, D.
        ram: bytes that the index may hold.

    Raises:
        ValueError: not even the shortest codes fit.
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
    raise ValueError(f"ram: got {ram / 1e6:.0f} MB, expected at least {need / 1e6:.0f} MB for {rows} rows of {dim}")


def index_bytes(factory: str, rows: int, dim: int) -> int:
    """Returns about how many bytes an index of :func:`choose_factory` holds in memory."""
    if factory == "Flat":
        return 4 * rows * dim
    lists, code = re.findall(r"IVF(\d+),(.*)", factory)[0]
    turned = re.match(r"OPQ\d+_(\d+)", factory)
    width = int(turned[1]) if turned else dim
    size = dim if code == "SQ8" else int(code[2:].partition("x")[0]) / 2
    return int(rows * (size + _ID) * _SPARE) + 4 * (int(lists) + dim) * width
