"""Asks the questions of the paper to a model of photographs, in the features of a network of ImageNet.

    python -m benchmarks.photographs.questions --ckpt RUN --data data/photographs [--also NAME=RUN ...]

A case is one way to sample: number of neighbours, guidance, popular rows, classes that only the database knows, another
database. The images of a case are measured by the features of EfficientNet-Lite0 against held-out photographs: Frechet
distance, precision and recall. A linear classifier on these features, :mod:`benchmarks.photographs.judge`, says of
prompted images whether they show their class. As many real photographs stand beside the samples. ``--also`` names
further models, such as one without neighbours, of which unconditional images are measured.

The folder keeps images and features, so that a second run computes only what is missing.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.photographs.judge import Judge
from ldm.command_line import command_line, positive
from ldm.files import write_json
from ldm.pictures import image_grid, save_png
from ldm.util import evenly, instantiate_from_config
from rdm.evaluate.extract import extract
from rdm.evaluate.features import feature_network
from rdm.evaluate.metrics import Moments, frechet_distance, precision_recall
from rdm.evaluate.nearest import SampleFiles
from rdm.evaluate.plain_samples import samples_of
from rdm.evaluate.protocol import versions
from rdm.evaluate.sources import PictureFiles, write_samples
from rdm.loading import Loaded, load, with_database
from rdm.retrieval.builder.build import prepare_database
from rdm.retrieval.config import source_config
from rdm.sampling.settings import Settings

EYES = "efficientnet_lite0"
SEEDS = (0, 10_000, 20_000)  # first seeds of the usual case, whose range is the noise
SHOWN, PER_ROW = 32, 8  # images in a picture, and in a row of it
SEEN = 4000  # training photographs, spread evenly, that the judge learns from
ROWS = 1.0  # share of the database that unconditional images are drawn from


@dataclass(frozen=True)
class Case:
    """One way to sample.

    Attributes:
        question: the question that it belongs to.
        name: its name within the question.
        model: the name of the model.
        options: ``k``, ``top_m`` and ``seed`` of :class:`rdm.evaluate.sources.ModelSamples`, where they differ from
            all rows and the first seed.
        settings: settings of sampling that are not the usual ones.
        prompts: ``trained`` or ``held out`` for images by the names of these classes; else they are unconditional.
        database: name of the database, if it is not the model's own.
    """

    question: str
    name: str
    model: str = "model"
    options: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    prompts: str = ""
    database: str = ""


def cases(references: bool, parts: Sequence[str], others: Sequence[str]) -> Iterator[Case]:
    """Yields all cases.

    Args:
        references: whether the model sees the latents of its neighbours.
        parts: names of other databases.
        others: names of further models.
    """
    for seed in SEEDS:
        yield Case("usual", f"seed {seed}", options={"seed": seed})
    for k in (1, 4, 8):
        yield Case("neighbours", f"k = {k}", options={"k": k})
    for scale in (1.0, 1.5, 3.0):
        yield Case("guidance", f"scale {scale:g}", settings={"scale": scale})
    for scale in (0.0, 1.0) if references else ():
        yield Case("references", f"reference scale {scale:g}", settings={"reference_scale": scale})
    for top_m in (0.01, 0.1):
        yield Case("popular rows", f"top-m {top_m:g}", options={"top_m": top_m})
    for group in ("trained", "held out"):
        yield Case("classes", group, prompts=group)
    for part in parts:
        yield Case("database", part, prompts="trained", database=part)
    for name in others:
        for seed in SEEDS:
            yield Case("models", f"{name}, seed {seed}", model=name, options={"seed": seed})


QUESTIONS = tuple(dict.fromkeys(case.question for case in cases(True, ("",), ("",))))


@dataclass
class Bench:
    """Samples and measures cases.

    Attributes:
        folder: keeps images, features and databases.
        models: the checkpoint of ``model``, and those of further models by their names.
        pictures: folder of the Parquet files of photographs.
        drawings: path of pictures of another kind. They are a further database, beside each of the Parquet files.
        n: number of images in each case.
        options: settings of sampling that all cases share.
        features: name of the network of the features, see :func:`rdm.evaluate.features.feature_network`.
    """

    folder: Path
    models: dict[str, str]
    pictures: str
    drawings: str
    n: int
    options: dict[str, Any]
    features: str = EYES

    def __post_init__(self) -> None:
        """Loads the model, and trains the judge.

        Raises:
            ValueError: there are fewer images than a row of a picture holds.
        """
        if self.n < PER_ROW:
            raise ValueError(f"got n={self.n} images of each case, expected at least {PER_ROW}")
        self.network = feature_network(self.features)
        self.loaded: dict[str, Loaded] = {}
        self.size = self.model("model").data.image_size[0]
        files = {file.stem: str(file) for file in sorted(Path(self.pictures).glob("*.parquet"))}
        paths = {**files, "drawings": self.drawings}
        self.sources = {name: source_config(path, self.size, "train") for name, path in paths.items()}
        whole, self.held = (PictureFiles(self.pictures, split, self.size) for split in ("train", "val"))
        training = PictureFiles(self.pictures, "train", self.size, min(SEEN, len(whole)))
        features, self.reference = self.seen(training), self.seen(self.held)
        self.judge = Judge.trained(features, training.captions)
        self.real = spread(features, self.n)
        self.group_of = {
            name: kind for kind, file in files.items() for name in PictureFiles(file, "train", self.size).captions
        }
        known = instantiate_from_config(self.model("model").data.dataset_configs["train"])
        trained = {known.metadata(row)["caption"] for row in range(len(known))}
        self.names = {"trained": sorted(trained), "held out": sorted(set(self.judge.names) - trained)}

    def model(self, name: str) -> Loaded:
        """Returns a model; only the last one and the first are kept."""
        if name not in self.loaded:
            self.loaded = {key: value for key, value in self.loaded.items() if key == "model"}
            self.loaded[name] = load(self.models[name])
        return self.loaded[name]

    def seen(self, source: Any) -> Tensor:
        """Returns the features ``[n, D]`` of pictures."""
        return extract(source, [self.network], self.folder / "features")[0].features.clone()

    def with_sources(self, loaded: Loaded, name: str) -> Loaded:
        """Returns a model with the database of a name, which is built first."""
        path = self.folder / "databases" / name
        prepare_database(path, self.sources[name], loaded.retriever.embedder, progress=False)
        return with_database(loaded, str(path))

    def measure(self, case: Case) -> dict[str, Any]:
        """Returns the figures of a case, and writes its picture."""
        loaded = self.model(case.model)
        if case.database:
            loaded = self.with_sources(loaded, case.database)
        prompts = self.names[case.prompts] if case.prompts else []
        options = {"seed": SEEDS[0], **({} if loaded.is_plain else {"top_m": ROWS}), **case.options}
        settings = replace(Settings.of(**self.options), **case.settings)
        samples = samples_of(loaded, self.n, prompts, settings=settings, **options)
        name = f"{case.question} {case.name}".replace(" = ", " ").replace(",", "").replace(" ", "-")
        files = write_samples(self.folder / "samples" / name, samples)
        shown = torch.stack([SampleFiles(files, self.size)[i]["image"] for i in range(min(SHOWN, self.n))])
        grid = shown[: len(shown) // PER_ROW * PER_ROW].unflatten(0, (-1, PER_ROW))
        save_png(image_grid({"": grid}), self.folder / "pictures" / f"{name}.png")
        features = self.seen(PictureFiles(str(files[0].parent), None, self.size))
        figures: dict[str, Any] = self.compared(features)
        if prompts:
            figures |= self.judge.accuracy(features, samples.captions)
        return {"question": case.question, "case": case.name, **figures}

    def compared(self, features: Tensor) -> dict[str, Any]:
        """Returns Frechet distance, precision and recall of features against the held-out photographs."""
        both = precision_recall(spread(self.reference, self.n), features)
        distance = frechet_distance(Moments.of(self.reference), Moments.of(features))
        figures = {"frechet_distance": distance, "precision": both.precision, "recall": both.recall}
        return {**figures, "called": self.judge.kinds(features, self.group_of)}

    def real_pictures(self) -> dict[str, Any]:
        """Returns the figures of as many training pictures, and the judge's accuracy on held-out ones."""
        accuracy = self.judge.accuracy(self.reference, self.held.captions)
        return {"question": "real pictures", "case": "training photographs", **self.compared(self.real), **accuracy}


def spread(features: Tensor, n: int) -> Tensor:
    """Returns at most n rows of ``[N, D]``, spread evenly."""
    return features[evenly(len(features), min(n, len(features)))]


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Returns the figures as a table in Markdown."""
    groups = list(rows[0]["called"])
    lines = [["question", "case", "FD", "precision", "recall", "top-1", "top-5", *groups]]
    lines.append(["---"] * len(lines[0]))
    for row in rows:
        shares = [f"{row[name]:.1%}" if name in row else "" for name in ("top1", "top5")]
        figures = [f"{row['frechet_distance']:.0f}", f"{row['precision']:.2f}", f"{row['recall']:.2f}"]
        lines.append(
            [row["question"], row["case"], *figures, *shares, *(f"{row['called'][group]:.0%}" for group in groups)]
        )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def pair(text: str) -> tuple[str, str]:
    """Returns the two sides of ``NAME=PATH``.

    Raises:
        argparse.ArgumentTypeError: a side is missing.
    """
    name, _, path = text.partition("=")
    if not name or not path:
        raise argparse.ArgumentTypeError(f"got '{text}', expected NAME=PATH")
    return name, path


def measure_all(bench: Bench, questions: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Measures all cases, writes the figures after each, and returns them.

    Args:
        bench: measures them.
        questions: the questions that are asked; all if none is given.
    """
    about = {"models": bench.models, "n": bench.n, "options": bench.options, "reference": len(bench.reference)}
    about |= {"versions": versions(), "features": bench.network.about()}
    rows = [bench.real_pictures()]
    references = getattr(bench.model("model").model, "references", None) is not None
    for case in cases(references, tuple(bench.sources), tuple(bench.models)[1:]):
        if questions and case.question not in questions:
            continue
        rows.append(bench.measure(case))
        write_json(bench.folder / "results.json", {"rows": rows, "protocol": about})
    return rows


@command_line
def main() -> None:
    """Measures the models of the command line."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--ckpt", required=True, help="checkpoint or run folder of the model of photographs")
    p.add_argument("--also", type=pair, nargs="*", default=[], metavar="NAME=RUN", help="further models")
    p.add_argument("--data", default="data/photographs", help="folder of the Parquet files of photographs")
    p.add_argument("--drawings", default="data/emoji", help="pictures of another kind, for a database")
    p.add_argument("--folder", type=Path, default=Path("outputs/photographs"), help="output folder")
    p.add_argument("--questions", nargs="*", choices=QUESTIONS, help="the questions that are asked; all if not given")
    p.add_argument("--n", type=positive, default=256, help="images of each case, at least 8; default: 256")
    p.add_argument("--batch_size", type=positive, default=32, help="images that are sampled together; default: 32")
    p.add_argument("--features", default=EYES, help=f"the network of the features; default: {EYES}")
    p.add_argument("--precision", default="32", help="precision of the networks, 32 or bf16; default: 32")
    args = p.parse_args()
    models = {"model": args.ckpt, **dict(args.also)}
    options = {"batch_size": args.batch_size, "precision": args.precision}
    bench = Bench(args.folder, models, args.data, args.drawings, args.n, options, args.features)
    print(table(measure_all(bench, args.questions)))


if __name__ == "__main__":
    main()
