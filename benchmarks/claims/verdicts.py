"""The claims of the paper, each a comparison of two cases by some figures, and the verdicts on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

Lines = Sequence[Mapping[str, Any]]
SEEN, NOT_SEEN, WITHIN, UNKNOWN, MISSING = "seen", "not seen", "within noise", "noise unknown", "not measured"
FD = ("pixels_fd_train", "clip_fd_train")
GRADES = ("clip_score", "first", "class_balanced")
USUAL = ("retrieval", "neighbours scale 1")  # the range of its figures over seeds is the noise
GUIDED_USUAL = ("retrieval", "neighbours scale 2")
USUAL_TEXT = ("concepts", "held out, in database")
USUAL_CLASS = ("synthesis", "class, neighbours")
SHOWN = ("val/loss_ema", "judge_top1", "judge_top5", "clip_fd_held", "pixels_fd_held")
COPIES = ("clip_copies", "pixels_copies")
CONTEXTS = {
    "tokens": "Grids of tokens",
    "references": "Latents of the neighbours (references)",
    "both": "Grids of tokens and references",
}
USUAL_SHOWN = ("contexts", "held out, embeddings")
LOWER = ("_fd_", "loss", "seconds", "_copies")  # figures with these words in their names are better when lower


class Claim(NamedTuple):
    """A case that is claimed to be better than another.

    Attributes:
        text: the claim.
        question: the question that both cases belong to.
        better: the case that is claimed to be better.
        worse: the other case.
        figures: names of the figures; each one has a verdict of its own.
        noise: question and case whose range over the seeds is the noise.
        opposite: whether the claim says that the figures are worse.
    """

    text: str
    question: str
    better: str
    worse: str
    figures: tuple[str, ...] = FD
    noise: tuple[str, str] = USUAL
    opposite: bool = False


GUIDED = "Guidance raises precision"
CLAIMS = (
    Claim("A model with neighbours is better than a model of equal size without them",
          "retrieval", "neighbours scale 1", "plain", (*FD, "pixels_recall", "clip_recall", "val/loss_ema")),
    Claim("A model with neighbours is better than a larger model without them",
          "retrieval", "neighbours scale 1", "plain-large", (*FD, "pixels_recall", "clip_recall", "val/loss_ema")),
    Claim("With guidance, a model with neighbours is better than the model of equal size, which cannot be guided",
          "retrieval", "neighbours scale 2", "plain", (*FD, "pixels_recall", "clip_recall"), GUIDED_USUAL),
    Claim("With guidance, a model with neighbours is better than the larger model",
          "retrieval", "neighbours scale 2", "plain-large", (*FD, "pixels_recall", "clip_recall"), GUIDED_USUAL),
    Claim("Training with more neighbours is better: 4 are better than 1",
          "k_train", "k 4", "k 1", (*FD, "val/loss_ema")),
    Claim("Training with more neighbours is better: 8 are better than 4",
          "k_train", "k 8", "k 4", (*FD, "val/loss_ema")),
    Claim("Sampling with more neighbours than in training raises recall: 16 are better than 4",
          "k_test", "k 16", "k 4", ("pixels_recall", "clip_recall")),
    Claim("Sampling with fewer neighbours than in training reduces quality: 4 are better than 1",
          "k_test", "k 4", "k 1"),
    Claim("The same with guidance: 4 are better than 1", "k_test", "k 4 scale 2", "k 1 scale 2", FD, GUIDED_USUAL),
    Claim(GUIDED,
          "guidance", "p_uncond 0.1 scale 2", "p_uncond 0.1 scale 1", ("pixels_precision", "clip_precision"),
          GUIDED_USUAL),
    Claim("Guidance lowers recall",
          "guidance", "p_uncond 0.1 scale 2", "p_uncond 0.1 scale 1", ("pixels_recall", "clip_recall"),
          GUIDED_USUAL, True),
    Claim("Guidance makes images match their prompts better",
          "guidance", "p_uncond 0.1 scale 2 text", "p_uncond 0.1 scale 1 text", ("clip_score",), USUAL_TEXT),
    Claim("Guidance needs little dropped context in training: a share of 0.1 is better than 0.3",
          "guidance", "p_uncond 0.1 scale 2", "p_uncond 0.3 scale 2", FD, GUIDED_USUAL),
    Claim("Sampling from few popular rows (top-m) raises precision: 1 % is better than all",
          "top_m", "top_m 0.01", "top_m 1", ("pixels_precision", "clip_precision")),
    Claim("Sampling from many popular rows raises recall: all are better than 1 %",
          "top_m", "top_m 1", "top_m 0.01", ("pixels_recall", "clip_recall")),
    Claim("Concepts that were never trained can be sampled if the database has them",
          "concepts", "held out, in database", "held out, not in database", GRADES, USUAL_TEXT),
    Claim("Trained concepts are sampled no better than untrained concepts in the database",
          "concepts", "trained", "held out, in database", GRADES, USUAL_TEXT),
    Claim("The neighbours of a text give better images than the text alone",
          "synthesis", "text, neighbours", "text, text", (*GRADES, *FD), ("synthesis", "text, neighbours")),
    Claim("A text with its neighbours gives better images than the neighbours alone",
          "synthesis", "text, both", "text, neighbours", (*GRADES, *FD), ("synthesis", "text, neighbours")),
    Claim("The neighbours of a class give better images than its name alone",
          "synthesis", "class, neighbours", "class, text", ("class_balanced", *FD), USUAL_CLASS),
    Claim("(not in the paper) Min-SNR weights of the loss are better than equal weights",
          "objective", "neighbours scale 1", "flat scale 1"),
    Claim("(not in the paper) Predicting v is better than predicting the noise",
          "objective", "v scale 1", "neighbours scale 1"),
    *(
        claim
        for kind, what in CONTEXTS.items()
        for claim in (
            Claim(f"(not in the paper) {what} beside the embeddings are better than embeddings alone",
                  "contexts", f"held out, {kind}", "held out, embeddings", SHOWN, USUAL_SHOWN),
            Claim(f"(not in the paper) {what} beside the embeddings raise the share of copies",
                  "contexts", f"held out, {kind}", "held out, embeddings", COPIES, USUAL_SHOWN, True),
        )
    ),
    Claim("A larger database is better without further training: 100 % is better than 10 %",
          "database_size", "100%", "10%", (*FD, "pixels_recall", "clip_recall")),
    Claim("A larger database is better without further training: 10 % is better than 1 %",
          "database_size", "10%", "1%", (*FD, "pixels_recall", "clip_recall")),
    Claim("A larger database is better for texts, too: 100 % is better than 10 %",
          "database_size", "100% text", "10% text", ("clip_score", "first"), ("synthesis", "text, neighbours")),
)  # fmt: skip
NO_BETTER = "Trained concepts are sampled no better than untrained concepts in the database"
CHEAP = 0.05  # retrieval counts as cheap up to this share of the time that an image takes
CHEAPER = "Retrieval takes little time in comparison with sampling"


def values(
    lines: Lines, training: Mapping[str, Mapping[str, Any]], question: str, case: str, figure: str
) -> list[float]:
    """Returns the values of a figure for a case, one for each run."""
    runs = [line for line in lines if line["question"] == question and line["case"] == case]
    if "/" in figure:  # a figure of training
        figures = [training.get(line["run"], {}).get(figure) for line in runs]
    else:
        figures = [line["figures"].get(figure) for line in runs]
    return [value for value in figures if value is not None]


def verdict(gain: float, noise: float | None, no_better: bool = False) -> str:
    """Returns the verdict on a gain; a claim that there is none is seen if the gain is not above the noise."""
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
    """Returns the verdicts on the time that retrieval takes."""
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


def spread(values: Sequence[float]) -> str:
    """Returns the mean and the range of figures as text, or an empty string if there are none."""
    if not values:
        return ""
    mean = f"{sum(values) / len(values):.4g}"
    return f"{mean} ({min(values):.4g} to {max(values):.4g})" if len(values) > 1 else mean
