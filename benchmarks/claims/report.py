"""Writes the report of the measurements: tables, plots and verdicts."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.claims import pictures, verdicts
from benchmarks.claims.measure import read_lines
from ldm.files import file_hash, read_json, write_json, write_text
from rdm.evaluate.features import device
from rdm.evaluate.protocol import machine, versions

LOG = logging.getLogger(__name__)
DATA = Path("data/emoji")
SHOWN = (
    "pixels_fd_train", "pixels_fd_held", "pixels_precision", "pixels_recall",
    "clip_fd_train", "clip_fd_held", "clip_precision", "clip_recall",
    "clip_score", "first", "class_balanced", "judge_top1", "judge_top5", "clip_copies", "pixels_copies",
    "distinct_rows",
)  # fmt: skip

HEAD = """Each row compares two cases, which the column *measured* names, by one figure. The verdict is

- **seen** if the first case is better than the second, as claimed, by more than the noise,
- **not seen** if it is worse by more than the noise,
- **within noise** otherwise.

A claim that the first case is no better is **seen** unless it is better by more than the noise. The noise is the range
over three seeds of the model with four neighbours. How another database changes the style is measured by
`python -m benchmarks.styles`.

| figure | meaning |
| --- | --- |
| `pixels_*` | in the features of a classifier of categories that learned from pixels alone |
| `clip_*` | in the features of the CLIP that also finds the neighbours, which may favour models with neighbours |
| `fd_train`, `fd_held` | Frechet distance to the training pictures, or to the held-out pictures; lower is better |
| `precision`, `recall` | against the training pictures, with k = 3 |
| `clip_score` | cosine similarity of an image and its prompt |
| `first` | share of the images whose own prompt is the nearest of all prompts |
| `class_balanced` | share of the images that the classifier assigns to the right category, averaged over categories |
| `judge_top1`, `judge_top5` | share of the images whose prompt is the first guess of models/judge/emoji, or one of 5 |
| `copies` | share of the images that are more similar to a training picture than 95 % of held-out pictures are |
| `distinct_rows` | number of different database rows among the rows nearest to each image |
| `val/loss_ema` | validation loss of the averaged weights; lower is better |
| `retrieval_share_1`, `retrieval_share_64` | share of retrieval in the time of an image, in batches of 1 and of 64 |

| case | meaning |
| --- | --- |
| `neighbours`, `plain`, `plain-large` | the model with four neighbours, without neighbours, and a larger one without |
| `embeddings`, `tokens`, `references`, `both` | what the network sees of the neighbours, always with their embeddings |
| `k` | the number of neighbours |
| `scale` | the guidance scale |
| `p_uncond` | the share of training pictures whose context was dropped |
| `text`, `neighbours`, `both` | the context: the text or class name alone, its neighbours alone, both |
| `10%` | the share of the database that neighbours come from |"""


class Results(NamedTuple):
    """The measurements of a folder.

    Attributes:
        lines: the lines of figures.
        training: the training record of each run.
    """

    lines: list[dict[str, Any]]
    training: dict[str, dict[str, Any]]


def gather(folder: Path) -> Results:
    """Returns the measurements of a folder; of a case that was measured twice, the last one."""
    lines = {}
    for line in read_lines(folder):
        lines[line["question"], line["case"], line["run"]] = line
    cards = sorted((folder / "models").glob("*/training.json"))
    training = {card.parent.name: read_json(card, "export the run again") for card in cards}
    return Results(list(lines.values()), training)


def write(folder: Path) -> str:
    """Writes ``results.json``, ``claims.md`` and pictures into the folder, and returns the claims."""
    measured = gather(folder)
    setup = read_json(folder / "setup.json", "measure first") if (folder / "setup.json").is_file() else {}
    judged = verdicts.judge(measured.lines, measured.training)
    protocol = {
        "versions": versions(),
        **machine(device()),
        "data_sha256": {file.name: file_hash(file) for file in sorted(DATA.glob("*.parquet"))},
        "setup": setup,
    }
    results = {"protocol": protocol, "claims": judged, "training": measured.training, "lines": measured.lines}
    write_json(folder / "results.json", results)
    parts = ["# Claims of the paper on the emoji data", head(setup, measured.lines), verdicts.table(judged)]
    drawn = {}
    steps: dict[str, Callable[..., Any]] = {"plots": pictures.plots, "compared": pictures.compared}
    for name, draw in steps.items():
        try:
            drawn[name] = draw(folder, measured.lines)
        except Exception:  # a failed plot must not cost the report
            LOG.exception("%s", name)
    parts += [f"![{file.stem}]({file.relative_to(folder)})" for files in drawn.values() for file in files]
    parts += ["## Training", training_table(measured.training), "## Figures", *tables(measured.lines)]
    text = "\n\n".join(part for part in parts if part) + "\n"
    write_text(folder / "claims.md", text)
    return text


def head(setup: Mapping[str, Any], lines: Sequence[Mapping[str, Any]]) -> str:
    """Returns the explanation of the figures."""
    words = [HEAD]
    if settings := next((line["settings"] for line in lines if "sampler" in line["settings"]), None):
        sentence = "Each case has {n} images with seeds from {seed} on, sampled by {sampler} in {steps} steps."
        words.append(sentence.format(**settings))
    if accuracy := setup.get("classifier_accuracy"):
        both = [f"{accuracy[name]['accuracy']:.1%} of held-out {name}" for name in ("pictures", "reconstructions")]
        words.append(f"The classifier is right for {' and '.join(both)}. No model is expected to exceed this.")
    return "\n\n".join(words)


def number(value: Any) -> str:
    """Returns a figure as text for a table."""
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def mean_range(values: Sequence[float]) -> str:
    """Returns the mean of figures as text, with their range if there are several."""
    mean = number(sum(values) / len(values)) if len(values) > 1 else number(values[0])
    return f"{mean} ({number(min(values))} to {number(max(values))})" if len(values) > 1 else mean


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """Returns a Markdown table whose first row is its heading."""
    lines = [list(rows[0]), ["---"] * len(rows[0]), *map(list, rows[1:])]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def training_table(training: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns the table of training runs."""
    keys = ("parameters", "steps", "batch_size", "step_seconds", "val/loss_ema", "val/loss")
    rows = [["run", *keys], *([name, *(number(card.get(key)) for key in keys)] for name, card in training.items())]
    note = (
        "The losses of `v-0` (another parameterisation) and `flat-0` (other weights) cannot be compared with the rest."
    )
    return f"`python -m benchmarks.claims --only RUN --questions`\n\n{markdown(rows)}\n\n{note}" if training else ""


def tables(lines: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns a heading, a command and a table for each question, with mean and range over seeds."""
    parts = []
    for question in dict.fromkeys(line["question"] for line in lines):
        cases = [line for line in lines if line["question"] == question]
        keys = [key for key in SHOWN if any(key in line["figures"] for line in cases)]
        keys = keys or list(dict.fromkeys(key for line in cases for key in line["figures"]))
        rows = [["case", "runs", "n", *keys]]
        for case in dict.fromkeys(line["case"] for line in cases):
            same = [line for line in cases if line["case"] == case]
            values = [[line["figures"][key] for line in same if key in line["figures"]] for key in keys]
            sizes = str(same[-1]["figures"].get("images", ""))
            rows.append([case, str(len(same)), sizes, *(mean_range(v) if v else "" for v in values)])
        n = next((f" --n {line['settings']['n']}" for line in cases if "n" in line.get("settings", {})), "")
        command = f"`python -m benchmarks.claims --skip-training --questions {question}{n}`"
        parts += [f"### {question}", command, markdown(rows)]
    return parts
