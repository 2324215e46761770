"""Verdicts and tables for given figures."""

from pathlib import Path
from typing import Any

import pytest

from benchmarks.claims import pictures, verdicts
from benchmarks.claims.cases import all_cases
from benchmarks.claims.report import HEAD, mean_range, tables, training_table
from benchmarks.claims.verdicts import CHEAPER, CLAIMS, judge, verdict


def line(question: str, case: str, run: str, **figures: float) -> dict[str, Any]:
    return {"question": question, "case": case, "run": run, "figures": figures, "settings": {"ask": "popular"}}


@pytest.mark.parametrize(
    ("gain", "noise", "no_better", "expected"),
    [
        (0.3, 0.2, False, "seen"),
        (0.2, 0.2, False, "within noise"),
        (-0.1, 0.2, False, "within noise"),
        (-0.3, 0.2, False, "not seen"),
        (0.3, None, False, "noise unknown"),
        (0.3, 0.2, True, "not seen"),
        (0.1, 0.2, True, "seen"),
    ],
)
def test_a_gain_counts_where_it_is_above_the_noise(
    gain: float, noise: float | None, no_better: bool, expected: str
) -> None:
    assert verdict(gain, noise, no_better) == expected


def test_distances_are_better_when_lower_and_noise_is_the_range_over_seeds() -> None:
    values = {"neighbours scale 1": (1.0, 1.25, 1.5), "plain": (2.0, 2.0, 2.5), "plain-large": (1.5, 1.5, 1.75)}
    lines = [
        line("retrieval", case, f"{case.split()[0]}-{seed}", pixels_fd_train=value, pixels_recall=value)
        for case, found in values.items()
        for seed, value in enumerate(found)
    ]
    training = {
        "plain-0": {"val/loss_ema": 2.0},
        "neighbours-0": {"val/loss_ema": 1.0},
        "neighbours-1": {"val/loss_ema": 1.5},
    }
    judged = [row for row in judge(lines, training) if row["first"] == "neighbours scale 1"]
    rows = {(row["second"], row["figure"]): row for row in judged if row["question"] == "retrieval"}
    equal = rows["plain", "pixels_fd_train"]
    assert equal["of_first"] == [1.0, 1.25, 1.5] and equal["noise"] == 0.5 and equal["verdict"] == "seen"
    assert rows["plain-large", "pixels_fd_train"]["verdict"] == "within noise"
    assert rows["plain", "pixels_recall"]["verdict"] == "not seen"
    assert rows["plain", "clip_fd_train"]["verdict"] == "not measured"
    assert rows["plain", "val/loss_ema"]["noise"] == 0.5 and rows["plain", "val/loss_ema"]["verdict"] == "seen"


def test_a_claimed_price_is_seen_where_the_figure_is_worse() -> None:
    lines = [line("retrieval", "neighbours scale 2", f"neighbours-{n}", clip_recall=0.5 + n / 100) for n in range(3)]
    lines += [
        line("guidance", f"p_uncond 0.1 scale {scale}", "neighbours-0", clip_recall=0.7 - scale / 10)
        for scale in (1, 2)
    ]
    found = [row["verdict"] for row in judge(lines, {}) if row["claim"] == "Guidance lowers recall"]
    assert found == ["not measured", "seen"]


def test_every_claim_is_about_cases_that_are_measured() -> None:
    known = {(case.question, case.name) for own in all_cases().values() for case in own}
    for claim in CLAIMS:
        assert {(claim.question, claim.better), (claim.question, claim.worse), claim.noise} <= known, claim
    names = {(question, case) for question, cases in pictures.COMPARED.values() for case in cases}
    assert names <= known


def test_the_page_has_the_words_of_the_report() -> None:
    page = (Path(__file__).parents[2] / "docs/claims/README.md").read_text(encoding="utf-8")
    cells = [line.split(" | ")[0].removeprefix("| ") for line in page.splitlines() if line.endswith("** |")]
    assert HEAD in page
    assert list(dict.fromkeys(cells)) == [*(claim.text for claim in CLAIMS), CHEAPER]


def test_retrieval_is_cheap_by_its_share_of_the_time() -> None:
    lines = [line("cost", "shipped", "", retrieval_share_1=0.01, retrieval_share_64=0.5)]
    assert [row["verdict"] for row in verdicts.cheap(lines)] == ["seen", "not seen"]


def test_tables_show_mean_and_range_over_seeds() -> None:
    lines = [line("retrieval", "plain", f"plain-{n}", images=8, clip_score=0.25 * (n + 1)) for n in range(2)]
    lines.append({**line("retrieval", "other", "v-0", images=8, clip_recall=0.5), "settings": {"n": 8}})
    assert tables(lines) == [
        "### retrieval",
        "`python -m benchmarks.claims --skip-training --questions retrieval --n 8`",
        "| case | runs | n | clip_recall | clip_score |\n"
        "| --- | --- | --- | --- | --- |\n"
        "| plain | 2 | 8 |  | 0.375 (0.25 to 0.5) |\n"
        "| other | 1 | 8 | 0.5 |  |",
    ]
    assert mean_range([2]) == "2"
    assert training_table({"v-0": {"parameters": 7, "val/loss": None}}).splitlines()[4] == "| v-0 | 7 |  |  |  |  |  |"


def test_plots_are_drawn_of_what_there_is(tmp_path: Path) -> None:
    assert pictures.plots(tmp_path, []) == []
    figures = {f"{space}_{name}": 0.5 for space in ("clip", "pixels") for name in ("fd_train", "precision", "recall")}
    lines = [
        {**line("top_m", f"top_m {m}", "neighbours-0", **figures), "settings": {"ask": "popular", "top_m": m}}
        for m in (0.1, 1.0)
    ]
    assert [file.name for file in pictures.plots(tmp_path, lines)] == ["top_m-plot.png"]
    assert (tmp_path / "top_m-plot.png").stat().st_size > 5000
