"""Compares samplers and numbers of steps: their speed, and the quality of the images of the shipped model.

    python -m benchmarks.samplers --n 256 --folder outputs/samplers

Each of n held-out pictures gives one image, from the neighbours of that picture, with the same seeds for every sampler.
Quality is measured by two figures. The Frechet distance compares the images with all held-out pictures, and the CLIP
score is the mean cosine similarity of an image and the name of its picture. Both use unit vectors of the embedder that
also searches the neighbours, so they can compare samplers, but no other models. `off_reference` is the mean cosine
distance between an image and the image of the same seed by the reference, 250 steps of DDIM. It is not given for
samplers with fresh noise, whose images differ anyway. CompVis' default, 100 steps of DDIM, is measured with three sets
of seeds; the range of its figures is the noise of the comparison. All samplers and steps take about two hours for 256
images on two cores, and with ``--precision bf16`` perhaps half of that.

The folder holds one line of JSON for each case in samplers.jsonl, and features and the first images of each case. The
same command continues an interrupted run.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ldm.files import write_array
from ldm.models.diffusion.condition import Hybrid
from ldm.pictures import image_grid, save_png
from ldm.util import evenly
from rdm.evaluate import Moments, frechet_distance
from rdm.loading import Loaded, load
from rdm.retrieval.retriever import Retrieved
from rdm.sampling.conditions import condition_of
from rdm.sampling.generate import generate
from rdm.sampling.settings import Settings
from rdm.sampling.values import PRECISIONS

SAMPLERS = ("ddim", "ddpm", "plms", "heun", "dpmpp_2m", "dpmpp_2m_sde", "unipc")
STEPS = (5, 10, 20, 50, 100, 250)
USUAL, REFERENCE = ("ddim", 100), ("ddim", 250)  # CompVis' default, and the reference with many steps
ROUNDS = 3  # sets of seeds of the usual case
BATCH = 32
FRESH = ("ddpm", "dpmpp_2m_sde")  # samplers that add fresh noise in each step
SHOWN = 16


class Pictures(NamedTuple):
    """Held-out pictures.

    Attributes:
        contexts: condition of the neighbours of n pictures.
        names: captions of these pictures.
        texts: unit vectors of the captions, ``[n, D]``.
        features: moments of the unit vectors of all held-out pictures.
    """

    contexts: Tensor | Hybrid
    names: list[str]
    texts: Tensor
    features: Moments


@torch.inference_mode()
def pictures(loaded: Loaded, n: int) -> Pictures:
    """Returns n held-out pictures, spread evenly over all, and the features of all of them."""
    loaded.data.setup("fit")
    dataset: Any = loaded.data.datasets["validation"]
    embedder, features = loaded.retriever.embedder, Moments()
    for start in range(0, len(dataset), BATCH):
        places = range(start, min(start + BATCH, len(dataset)))
        images = torch.stack([dataset[place]["image"] for place in places])
        features.add(F.normalize(embedder.images(images).float(), dim=1))
    chosen = evenly(len(dataset), min(n, len(dataset)))
    items = [dataset[place] for place in chosen]
    rows = torch.stack([item["neighbour_rows"] for item in items]).numpy()
    neighbours = Retrieved(torch.stack([item["neighbours"] for item in items]), rows, np.ones(rows.shape, np.float32))
    names = [dataset.metadata(place)["caption"] for place in chosen]
    return Pictures(
        condition_of(loaded, neighbours), names, F.normalize(embedder.texts(names).float(), dim=1), features
    )


def cases(samplers: list[str], steps: list[int]) -> Iterator[tuple[str, int, int]]:
    """Yields sampler, steps and set of seeds of each case, the reference first."""
    yield (*REFERENCE, 0)
    for number in range(ROUNDS):
        yield (*USUAL, number)
    for sampler in samplers:
        for count in steps:
            if (sampler, count) not in (REFERENCE, USUAL):
                yield sampler, count, 0


def measure(
    loaded: Loaded, held: Pictures, case: tuple[str, int, int], folder: Path, **options: Any
) -> dict[str, float | None]:
    """Returns the figures of one case, and writes its features and some of its images."""
    (sampler, steps, number), n = case, len(held.names)
    settings = Settings.of(**options, sampler=sampler, steps=steps, batch_size=BATCH).for_model(loaded.model)
    seeds, start = range(number * n, (number + 1) * n), time.perf_counter()
    images = generate(loaded.model, held.contexts, loaded.latent_shape_of(), list(seeds), settings)
    seconds = time.perf_counter() - start
    with torch.inference_mode():
        features = torch.cat([loaded.retriever.embedder.images(part) for part in images.split(BATCH)]).float()
    name = f"{sampler}-{steps}-{number}"
    write_array(folder / f"{name}.npy", features.numpy())
    save_png(image_grid({"": images[:: max(1, n // SHOWN)][:SHOWN][None]}), folder / f"{name}.png")
    moments, unit = Moments(), F.normalize(features, dim=1)
    moments.add(unit)
    reference = torch.from_numpy(np.load(folder / f"{REFERENCE[0]}-{REFERENCE[1]}-0.npy"))
    same = number == 0 and sampler not in FRESH
    return {
        "images_per_s": round(n / seconds, 3),
        "frechet": round(frechet_distance(moments, held.features), 4),
        "clip_score": round(float((unit * held.texts).sum(1).mean()), 4),
        "off_reference": round(float(1 - (unit * F.normalize(reference, dim=1)).sum(1).mean()), 4) if same else None,
    }


def table(measured: list[dict[str, Any]], *figures: str) -> str:
    """Returns a Markdown table of figures: a row for each sampler, a column for each number of steps."""
    steps = sorted({line["steps"] for line in measured})
    rows = [f"| {' / '.join(figures)} | {' | '.join(map(str, steps))} |", "|---" * (len(steps) + 1) + "|"]
    for sampler in dict.fromkeys(line["sampler"] for line in measured):
        cells = {line["steps"]: line for line in measured if line["sampler"] == sampler and line["seeds"] == 0}
        given = [[cells[s][name] for name in figures] if s in cells else [] for s in steps]
        shown = [" / ".join("-" if figure is None else f"{figure:.3g}" for figure in cell) for cell in given]
        rows.append(f"| {sampler} | {' | '.join(shown)} |")
    return "\n".join(rows)


def main() -> None:
    """Measures the samplers and steps of the command line."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--n", type=int, default=256, help="number of images in each case")
    p.add_argument(
        "--samplers",
        nargs="+",
        default=SAMPLERS,
        choices=SAMPLERS,
        metavar="NAME",
        help=f"samplers to compare: {', '.join(SAMPLERS)}; all if not given",
    )
    p.add_argument("--steps", nargs="+", type=int, default=STEPS, help="numbers of denoising steps to compare")
    p.add_argument(
        "--scale", type=float, default=2.0, help="scale of classifier-free guidance; 1 samples without guidance"
    )
    p.add_argument("--precision", choices=PRECISIONS, default="32", help="precision of the networks")
    p.add_argument("--ckpt", help="checkpoint or run folder; else the newest run, else the shipped model")
    p.add_argument("--folder", type=Path, default=Path("outputs/samplers"), help="output folder")
    args = p.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    loaded = load(args.ckpt)
    settings = {"n": args.n, "scale": args.scale, "precision": args.precision}
    file, held = args.folder / "samplers.jsonl", pictures(loaded, args.n)
    measured = [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []
    for case in cases(args.samplers, args.steps):
        what = dict(zip(("sampler", "steps", "seeds"), case, strict=True)) | settings
        if any(what.items() <= line.items() for line in measured):
            continue
        measured.append(what | measure(loaded, held, case, args.folder, scale=args.scale, precision=args.precision))
        print(json.dumps(measured[-1]), flush=True)
        with file.open("a") as appended:
            appended.write(json.dumps(measured[-1]) + "\n")
    lines = [line for line in measured if settings.items() <= line.items()]
    print(table(lines, "frechet", "clip_score", "off_reference"), table(lines, "images_per_s"), sep="\n\n")


if __name__ == "__main__":
    main()
