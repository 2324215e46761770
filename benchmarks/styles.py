"""Measures whether the style of samples follows the database, with five databases of one style each.

    python -m benchmarks.styles --folder outputs/styles

Prompts, model and seeds are the same for all databases; the sixth case is the rows of all five styles in the
model's own database. A classifier of styles (:mod:`benchmarks.style_classifier`) judges the samples. It is trained on
pictures of training concepts and on their reconstructions by the first stage, which also decodes the samples; the
report gives its accuracy on held-out concepts.
Content is measured by the embedder that also searches the neighbours. The CLIP score is the mean cosine similarity of
an image and its prompt, and the rank is that of its prompt among all prompts. Real pictures of the same concepts show
which values these figures can reach.

The prompts are those of the lists next to the model, and then names of held-out concepts, spread evenly over the data.
The folder keeps databases, reconstructions, classifier and samples, so that a second run computes only what is missing.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor, to_pil_image

from benchmarks.style_classifier import STYLES, cached, judge, predict, style_of
from ldm.command_line import command_line
from ldm.files import file_hash, read_text, write_json
from ldm.pictures import from_uint8, image_grid, save_png, to_uint8
from ldm.util import evenly, instantiate_from_config
from rdm.loading import Loaded, load
from rdm.retrieval.builder.build import prepare_database
from rdm.sampling import ways
from rdm.sampling.samples import sample as sample_request
from rdm.sampling.settings import Settings

WHOLE = "all five"
SHIPPED = "models/rdm/emoji"
LISTS = (f"{SHIPPED}/prompts-train.txt", f"{SHIPPED}/prompts-val.txt")
BATCH = 32
SHOWN = 8  # prompts in the picture, spread evenly over the lists
GAP, LEFT, TOP, ZOOM, FONT = 4, 120, 28, 2, 16


def choose_prompts(listed: Sequence[str], names: Sequence[str], total: int) -> list[str]:
    """Returns the listed prompts, filled up to a total with names that are not listed, spread evenly."""
    further = [name for name in dict.fromkeys(names) if name not in map(thing, listed)]
    return [*listed, *(further[n] for n in evenly(len(further), min(len(further), max(0, total - len(listed)))))]


def thing(prompt: str) -> str:
    """Returns a prompt without its article."""
    return prompt.removeprefix("a ").removeprefix("an ")


def of_style(source: Mapping[str, Any], style: str) -> dict[str, Any]:
    """Returns the config of the pictures of one style in a source."""
    params = source["params"]
    return {**source, "params": {**params, "where": {**params.get("where", {}), "style": style}}}


def real_pictures(source: Mapping[str, Any], prompts: Sequence[str], styles: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Returns the pictures that the prompts name, ``[M, 3, H, W] uint8``, and the number of their prompt, ``[M]``."""
    dataset, places = instantiate_from_config(source), {thing(prompt): n for n, prompt in enumerate(prompts)}
    rows = [(n, dataset.metadata(n)) for n in range(len(dataset))]
    named = [(n, places[row["caption"]]) for n, row in rows if row["caption"] in places and style_of(row) in styles]
    return torch.stack([to_uint8(dataset[n]["image"]) for n, _ in named]), torch.tensor([place for _, place in named])


@torch.inference_mode()
def content(loaded: Loaded, pictures: Tensor, places: Tensor, texts: Tensor) -> dict[str, float]:
    """Returns the CLIP score, and how often the right prompt is the nearest one, and among the five nearest.

    Args:
        loaded: holds the embedder.
        pictures: ``[N, 3, H, W] uint8``.
        places: number of the prompt of each picture, ``[N]``.
        texts: unit vectors of all prompts, ``[P, D]``.
    """
    parts = [from_uint8(part).to(texts.device) for part in pictures.split(BATCH)]
    features = F.normalize(torch.cat([loaded.retriever.embedder.images(part) for part in parts]).float(), dim=1)
    return {"n": len(pictures), **ranks(features, places, texts)}


def ranks(features: Tensor, places: Tensor, texts: Tensor) -> dict[str, float]:
    """Returns the figures of :func:`content` for unit vectors ``[N, D]`` of pictures."""
    cosines = (features @ texts.T).cpu()
    right = cosines.gather(1, places[:, None])
    before = (cosines > right).sum(1)
    figures = {"clip_score": right, "first": (before == 0).float(), "in_five": (before < 5).float()}
    return {name: round(float(values.mean()), 4) for name, values in figures.items()}


def measure(
    ckpt: str,
    folder: Path,
    lists: Sequence[str],
    total: int,
    rounds: int,
    epochs: int,
    k: int | None = None,
    styles: Sequence[str] = STYLES,
    **options: Any,
) -> dict[str, Any]:
    """Returns the figures of all databases with their protocol, and writes them and the picture into the folder.

    Args:
        ckpt: checkpoint or run folder of a diffusion model.
        folder: keeps all results.
        lists: files of prompts.
        total: number of prompts; the lists are filled up to it.
        rounds: number of images of each prompt.
        epochs: training epochs of the classifier.
        k: number of neighbours; None takes as many as in training.
        styles: the styles.
        options: options of sampling.
    """
    loaded = load(ckpt)
    embedder, source = loaded.retriever.embedder, loaded.data.database_config["source"]
    listed = [line.strip() for file in lists for line in read_text(file).splitlines() if line.strip()]
    held = instantiate_from_config(loaded.data.dataset_configs["validation"])
    prompts = choose_prompts(listed, [held.metadata(n)["caption"] for n in range(len(held))], total)
    with torch.inference_mode():
        texts = F.normalize(embedder.texts(prompts).float(), dim=1)
    settings = Settings.of(**options, batch_size=BATCH, copy_threshold=None)
    options |= {"k": k or loaded.k, "seed": 0}
    classifier, figures = judge(loaded, folder, epochs, names=styles)
    protocol = {"model": str(loaded.path), "sha256": file_hash(loaded.path), "prompts": prompts, "rounds": rounds}
    protocol |= {"options": options, "embedder": embedder.name, "torch": torch.__version__}
    chance = {"style": 1 / len(styles), "first": 1 / len(prompts), "in_five": min(1, 5 / len(prompts))}
    results: dict[str, Any] = {"protocol": protocol, "styles": list(styles), "classifier": figures, "chance": chance}
    results["databases"], places, shown = {}, torch.arange(len(prompts)).repeat(rounds), {}
    for name in (*styles, WHOLE):
        pictures_of, database = source, loaded.retriever.database
        if name != WHOLE:
            pictures_of = of_style(source, name)
            database = prepare_database(folder / "databases" / name, pictures_of, embedder, progress=False)

        def sample(path: str = str(database.path), name: str = name) -> dict[str, Tensor]:
            other = load(ckpt, path, [f"style={each}" for each in styles] if name == WHOLE else ())
            request = ways.texts(other, prompts * rounds, k=options["k"], seed=options["seed"])
            return {"images": to_uint8(sample_request(other, request, settings).images)}

        key = {**protocol, "database": database.fingerprint}
        images = cached(folder / "samples" / f"{name}.safetensors", key, sample)["images"]
        counts = torch.bincount(predict(classifier, images), minlength=len(styles))
        results["databases"][name] = {
            "called": counts.tolist(),
            "samples": content(loaded, images, places, texts),
            "real": content(loaded, *real_pictures(pictures_of, prompts, styles), texts),
        }
        shown[name] = from_uint8(images[evenly(len(listed), SHOWN)])
    write_json(folder / "results.json", results)
    del shown[WHOLE]
    save_png(picture(shown, [listed[n] for n in evenly(len(listed), SHOWN)]), folder / "styles.png")
    return results


def picture(columns: Mapping[str, Tensor], rows: Sequence[str]) -> Tensor:
    """Returns a grid of images ``[N, 3, H, W]`` in [-1, 1] with the names of its columns and rows."""
    grid = to_pil_image(
        image_grid({name: F.interpolate(images, scale_factor=ZOOM) for name, images in columns.items()}, GAP)
    )
    page = Image.new("RGB", (LEFT + grid.width, TOP + grid.height), "white")
    page.paste(grid, (LEFT, TOP))
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(FONT)
    for n, name in enumerate(columns):
        draw.text((LEFT + (n + 0.5) * grid.width / len(columns), TOP / 2), name, "black", font, "mm")
    for n, name in enumerate(rows):
        draw.text((LEFT - GAP, TOP + (n + 0.5) * grid.height / len(rows)), name, "black", font, "rm")
    return pil_to_tensor(page)


def tables(results: Mapping[str, Any]) -> str:
    """Returns the figures in Markdown: a table of the databases, and a table of the classifier's accuracy."""
    styles, chance = list(results["styles"]), results["chance"]
    head = ["database / called", *styles, "CLIP score", "right prompt first", "in five"]
    rows = [head, ["---"] * len(head)]
    for name, figures in results["databases"].items():
        shares = [f"{count / figures['samples']['n']:.0%}" for count in figures["called"]]
        shares = [f"**{share}**" if style == name else share for style, share in zip(styles, shares, strict=True)]
        sampled, real = figures["samples"], figures["real"]
        scores = [f"{sampled['clip_score']:.3f} ({real['clip_score']:.3f})"]
        scores += [f"{sampled[key]:.0%} ({real[key]:.0%})" for key in ("first", "in_five")]
        rows.append([name, *shares, *scores])
    shares = [f"{chance['style']:.0%}"] * len(styles)
    rows.append(["chance", *shares, "", f"{chance['first']:.1%}", f"{chance['in_five']:.1%}"])
    accuracy = [["held out / called", *styles], ["---"] * (len(styles) + 1)]
    both = [results["classifier"][name]["confusion"] for name in ("pictures", "reconstructions")]
    for style, first, second in zip(styles, *both, strict=True):
        accuracy.append([style, *(f"{one} / {two}" for one, two in zip(first, second, strict=True))])
    return "\n\n".join("\n".join(f"| {' | '.join(row)} |" for row in lines) for lines in (rows, accuracy))


@command_line
def main() -> None:
    """Measures the model of the command line."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--ckpt", default=SHIPPED, help="checkpoint or run folder of a diffusion model")
    p.add_argument("--folder", type=Path, default=Path("outputs/styles"), help="output folder")
    p.add_argument(
        "--prompts", nargs="+", default=LISTS, metavar="FILE", help="text files with one prompt in each line"
    )
    p.add_argument(
        "--n", type=int, default=64, help="total number of prompts; names of held-out pictures are added to the files"
    )
    p.add_argument("--rounds", type=int, default=1, help="number of images of each prompt")
    p.add_argument("--epochs", type=int, default=12, help="training epochs of the classifier")
    p.add_argument("--knn", type=int, help="number of neighbours; if not given, as many as in training")
    p.add_argument("--sampler", default="dpmpp_2m", help="sampler")
    p.add_argument("--steps", type=int, default=20, help="number of denoising steps")
    p.add_argument(
        "--scale", type=float, default=2.0, help="scale of classifier-free guidance; 1 samples without guidance"
    )
    args = p.parse_args()
    options = {name: getattr(args, name) for name in ("sampler", "steps", "scale")}
    results = measure(args.ckpt, args.folder, args.prompts, args.n, args.rounds, args.epochs, args.knn, **options)
    print(tables(results))


if __name__ == "__main__":
    main()
