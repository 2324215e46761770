"""The page about larger databases and trainings has the tables that its formulas give."""

from pathlib import Path

import pytest

from benchmarks.scale import INDEXED, databases, size, time, training

PAGE = Path(__file__).parents[2] / "docs" / "scale.md"


def test_the_page_has_the_tables() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert databases() in page and training() in page


@pytest.mark.parametrize(
    ("number", "words"), [(4.4e7, "0.044 GB"), (897301504, "0.897 GB"), (102.4e9, "102 GB"), (1.024e12, "1.0 TB")]
)
def test_sizes_in_words(number: float, words: str) -> None:
    assert size(number) == words


@pytest.mark.parametrize(
    ("seconds", "words"), [(5, "5 s"), (1440, "24 min"), (7200, "2 h"), (575000, "6.7 days"), (3.8e7, "440 days")]
)
def test_durations_in_words(seconds: float, words: str) -> None:
    assert time(seconds) == words


def test_the_time_of_ten_million_rows_is_the_measured_one() -> None:
    assert time(INDEXED * 10**7) == "12 min"
