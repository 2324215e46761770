from __future__ import annotations

import pytest

from rdm.retrieval.index.factory import budget, choose_factory, index_bytes


@pytest.mark.parametrize(
    ("rows", "dim", "ram", "expected"),
    [
        (7830, 512, "2GB", "Flat"),
        (65536, 512, "100MB", "OPQ64_256,IVF1024,PQ64x4fs"),
        (100_000, 512, "2GB", "OPQ64_256,IVF1024,PQ64x4fs"),
        (1_000_000, 512, "2GB", "OPQ64_256,IVF4096,PQ64x4fs"),
        (20_000_000, 512, "2GB", "OPQ64_256,IVF16384,PQ64x4fs"),
        (20_000_000, 512, "600MB", "OPQ32_128,IVF16384,PQ32x4fs"),
        (20_000_000, 768, "1.5GB", "OPQ64_256,IVF16384,PQ64x4fs"),
        (1_000_000, 96, "2GB", "OPQ64_64,IVF4096,PQ64x4fs"),
        (1_000_000, 8, "2GB", "IVF4096,SQ8"),
    ],
)
def test_the_index_follows_rows_width_and_memory(rows: int, dim: int, ram: str, expected: str) -> None:
    assert choose_factory(rows, dim, budget(ram)) == expected
    assert index_bytes(expected, rows, dim) <= budget(ram)


def test_too_little_memory_is_said() -> None:
    with pytest.raises(ValueError, match="^ram: got 100 MB.* MB for 20000000 rows of 512"):
        choose_factory(20_000_000, 512, 100_000_000)
