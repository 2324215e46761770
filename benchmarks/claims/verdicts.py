"""Claims of the paper, each a comparison of two cases by some figures, and what the figures say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

Lines = Sequence[Mapping[str, Any]]
SEEN, NOT_SEEN, WITHIN, UNKNOWN, MISSING = "seen", "not seen", "within noise", "noise unknown", "not measured"
FD = ("pixels_fd_train", "clip_fd_train")
GRADES = ("clip_score", "first", "class_balanced")
USUAL = ("retrieval", "neighbours scale 1")  # whose range is noise
GUIDED_USUAL = ("retrieval", "neighbours scale 2")
USUAL_TEXT = ("concepts", "held out, in database")
USUAL_CLASS = ("synthesis", "class, neighbours")
LOWER = ("_fd_", "loss", "seconds")  # parts of the names of figures that are better when lower


class Claim(NamedTuple):
    """A case that is to be better than another.

    Attributes:
        text: what the paper says.
        question: where both are.
        better: case.
        worse: case.
        figures: names, each judged for itself.
        noise: question and case whose range over seeds is noise.
        opposite: the figures are to be worse instead: a price is claimed.
    """

    text: str
    question: str
    better: str
    worse: str
    figures: tuple[str, ...] = FD
    noise: tuple[str, str] = USUAL
    opposite: bool = False


GUIDED = "guidance raises precision"
CLAIMS = (
    Claim("a model that looks at neighbours is better than one of equal size without", "retrieval",
          "neighbours scale 1", "plain", (*FD, "pixels_recall", "clip_recall", "val/loss_ema")),
    Claim("it is better than a larger one without", "retrieval", "neighbours scale 1", "plain-large",
          (*FD, "pixels_recall", "clip_recall", "val/loss_ema")),
    Claim("guided, it is better than one of equal size, which has nothing to be guided by", "retrieval",
          "neighbours scale 2", "plain", (*FD, "pixels_recall", "clip_recall"), GUIDED_USUAL),
    Claim("guided, it is better than a larger one", "retrieval", "neighbours scale 2", "plain-large",
          (*FD, "pixels_recall", "clip_recall"), GUIDED_USUAL),
    Claim("training with more neighbours is better: 4 than 1", "k_train", "k 4", "k 1", (*FD, "val/loss_ema")),
    Claim("training with more neighbours is better: 8 than 4", "k_train", "k 8", "k 4", (*FD, "val/loss_ema")),
    Claim("sampling with more neighbours than in training widens recall: 16 than 4", "k_test", "k 16", "k 4",
          ("pixels_recall", "clip_recall")),
    Claim("fewer neighbours at sampling cost quality: 4 than 1", "k_test", "k 4", "k 1"),
    Claim("the same with guidance", "k_test", "k 4 scale 2", "k 1 scale 2", FD, GUIDED_USUAL),
    Claim(GUIDED, "guidance", "p_uncond 0.1 scale 2", "p_uncond 0.1 scale 1", ("pixels_precision", "clip_precision"),
          GUIDED_USUAL),
    Claim("and lowers recall", "guidance", "p_uncond 0.1 scale 2", "p_uncond 0.1 scale 1",
          ("pixels_recall", "clip_recall"), GUIDED_USUAL, True),
    Claim("guidance makes images fit their texts", "guidance", "p_uncond 0.1 scale 2 text",
          "p_uncond 0.1 scale 1 text", ("clip_score",), USUAL_TEXT),
    Claim("guidance needs a null in training, and little of it: 0.1 than 0.3", "guidance", "p_uncond 0.1 scale 2",
          "p_uncond 0.3 scale 2", FD, GUIDED_USUAL),
    Claim("few popular rows (top-m) give precision: 1 % than all", "top_m", "top_m 0.01", "top_m 1",
          ("pixels_precision", "clip_precision")),
    Claim("many give recall: all than 1 %", "top_m", "top_m 1", "top_m 0.01", ("pixels_recall", "clip_recall")),
    Claim("what was never trained is made if the database has it", "concepts", "held out, in database",
          "held out, not in database", GRADES, USUAL_TEXT),
    Claim("concepts of training are no better than those", "concepts", "trained", "held out, in database", GRADES,
          USUAL_TEXT),
    Claim("a text's neighbours make better images than the text alone", "synthesis", "text, neighbours", "text, text",
          (*GRADES, *FD), ("synthesis", "text, neighbours")),
    Claim("a text and its neighbours are better than neighbours alone", "synthesis", "text, both", "text, neighbours",
          (*GRADES, *FD), ("synthesis", "text, neighbours")),
    Claim("a class's neighbours make better images than its name alone", "synthesis", "class, neighbours",
          "class, text", ("class_balanced", *FD), USUAL_CLASS),
    Claim("(not the paper's) min-SNR weights are better than flat ones", "objective", "neighbours scale 1",
          "flat scale 1"),
    Claim("(not the paper's) predicting v is better than noise", "objective", "v scale 1", "neighbours scale 1"),
    Claim("a larger database is better without training: 100 % than 10 %", "database_size", "100%", "10%",
          (*FD, "pixels_recall", "clip_recall")),
    Claim("the same: 10 % than 1 %", "database_size", "10%", "1%", (*FD, "pixels_recall", "clip_recall")),
    Claim("the same for texts: 100 % than 10 %", "database_size", "100% text", "10% text", ("clip_score", "first"),
          ("synthesis", "text, neighbours")),
)  # fmt: skip
NO_BETTER = "concepts of training are no better than those"
CHEAP = 0.05  # of the time of an image, at most, for retrieval to be cheap
CHEAPER = "retrieval costs little beside sampling"


def values(
    lines: Lines, training: Mapping[str, Mapping[str, Any]], question: str, case: str, figure: str
) -> list[float]:
    """Returns a figure of a case, one for each run."""
    own = [line for line in lines if line["question"] == question and line["case"] == case]
    if "/" in figure:  # of training
        found = [training.get(line["run"], {}).get(figure) for line in own]
    else:
        found = [line["figures"].get(figure) for line in own]
    return [value for value in found if value is not None]


def verdict(gain: float, noise: float | None, no_better: bool = False) -> str:
    """Returns what a gain says beside the noise; a claim that there is none is seen where it is not above that."""
    if noise is None:
        return UNKNOWN
    if no_better:
        return NOT_SEEN if gain > noise else SEEN
    if abs(gain) <= noise:
        return WITHIN
    return SEEN if gain > 0 else NOT_SEEN


def judge(lines: Lines, training: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Returns a row for each claim and figure."""
    rows: list[dict[str, Any]] = []
    for claim in CLAIMS:
        for figure in claim.figures:
            better, worse, usual = (
                values(lines, training, *place, figure)
                for place in ((claim.question, claim.better), (claim.question, claim.worse), claim.noise)
            )
            row: dict[str, Any] = {"claim": claim.text, "question": claim.question, "figure": figure}
            row |= {"first": claim.better, "second": claim.worse, "of_first": better, "of_second": worse}
            row["noise"] = noise = max(usual) - min(usual) if len(usual) > 1 else None
            if not better or not worse:
                rows.append({**row, "verdict": MISSING})
                continue
            gain = sum(better) / len(better) - sum(worse) / len(worse)
            gain *= -1 if any(part in figure for part in LOWER) else 1
            gain *= -1 if claim.opposite else 1
            rows.append({**row, "verdict": verdict(gain, noise, claim.text == NO_BETTER)})
    return [*rows, *cheap(lines)]


def cheap(lines: Lines) -> list[dict[str, Any]]:
    """Returns what is said of the time of retrieval."""
    rows = []
    for line in lines:
        if line["question"] == "cost" and line["case"] != "plain":
            for batch in (1, 64):
                share = line["figures"][f"retrieval_share_{batch}"]
                row: dict[str, Any] = {
                    "claim": CHEAPER,
                    "question": "cost",
                    "figure": f"retrieval_share_{batch}",
                    "noise": None,
                }
                row |= {"first": line["case"], "second": f"at most {CHEAP}", "of_first": [share], "of_second": [CHEAP]}
                rows.append({**row, "verdict": SEEN if share <= CHEAP else NOT_SEEN})
    return rows


def table(judged: Sequence[Mapping[str, Any]]) -> str:
    """Returns the claims in Markdown, a row for each claim and figure."""
    rows = [["claim", "measured", "figure", "first", "second", "noise", "verdict"]]
    for row in judged:
        measured = f"{row['question']}: {row['first']} / {row['second']}"
        noise = "" if row["noise"] is None else f"{row['noise']:.3g}"
        both = [spread(row["of_first"]), spread(row["of_second"])]
        rows.append([row["claim"], measured, row["figure"], *both, noise, f"**{row['verdict']}**"])
    lines = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def spread(found: Sequence[float]) -> str:
    """Returns the mean of figures and their range; empty of none."""
    if not found:
        return ""
    mean = f"{sum(found) / len(found):.4g}"
    return f"{mean} ({min(found):.4g} to {max(found):.4g})" if len(found) > 1 else mean
