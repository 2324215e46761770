"""Measures a small CLIP on drawings: `python -m benchmarks.clip [MODEL] --files data/emoji` prints one line of JSON.

Pictures that the training config holds out measure retrieval: the name of a picture among all names, a picture by its
name, and the accuracy of style and colour. All pictures are searched with the prompts of `colour_prompts.txt`, each of
which names a colour and a thing. The figures are the shares of the four nearest pictures that match. A picture matches
the colour if it is dominant in its pixels, and the thing if its name or its keywords contain the word.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ldm.data import ParquetImages
from ldm.data.colours import dominant_colours
from ldm.data.split import is_held_out
from ldm.files import read_text
from ldm.modules.encoders.clip import OpenClipEmbedder
from rdm.models.captions import facts_of, with_article
from rdm.models.clip import places_of, ranks, retrieval_figures

PROMPTS = Path(__file__).with_name("colour_prompts.txt")
FIRST = 4
BATCH = 128


def read_prompts(file: Path = PROMPTS) -> list[tuple[str, str]]:
    """Returns the colour and the thing of each line."""
    pairs = [line.split(maxsplit=1) for line in read_text(file).splitlines()]
    return [(colour, thing) for colour, thing in pairs]


@torch.no_grad()
def text_vectors(embedder: OpenClipEmbedder, texts: Sequence[str]) -> Tensor:
    """Returns unit vectors ``[N, D]`` of texts; texts that are too long are cut, as in training."""
    return F.normalize(embedder.clip.encode_text(embedder.tokenizer(list(texts))).float(), dim=-1)


def embed(embedder: OpenClipEmbedder, images: ParquetImages) -> tuple[Tensor, list[dict[str, Any]]]:
    """Returns unit vectors ``[N, D]`` of all pictures, and their metadata with the dominant ``colours``."""
    vectors, items = [], []
    for start in range(0, len(images), BATCH):
        part = [images[i] for i in range(start, min(start + BATCH, len(images)))]
        pictures = torch.stack([item.pop("image") for item in part])
        vectors.append(F.normalize(embedder.images(pictures), dim=-1))
        items += [item | {"colours": named} for item, named in zip(part, dominant_colours(pictures), strict=True)]
    return torch.cat(vectors), items


def colour_and_thing(
    nearest: Sequence[Sequence[int]], items: Sequence[dict[str, Any]], prompts: Sequence[tuple[str, str]]
) -> dict[str, Any]:
    """Returns the shares of the retrieved pictures that have the colour, show the thing, and do both.

    Args:
        nearest: for each prompt, the numbers of its nearest pictures.
        items: metadata of the pictures, with ``colours``.
        prompts: colour and thing of each prompt.
    """
    hits = []
    for numbers, (colour, thing) in zip(nearest, prompts, strict=True):
        facts = [facts_of(items[number], items[number]["colours"]) for number in numbers]
        hits.append([(f"colour:{colour}" in known, f"word:{thing}" in known) for known in facts])
    table = torch.tensor(hits).float()  # [P, 4, 2]
    both = table.prod(-1)
    missed = [" ".join(pair) for pair, right in zip(prompts, both.sum(1).tolist(), strict=True) if not right]
    colour_share, thing_share = table.mean((0, 1)).tolist()
    return {"colour": colour_share, "thing": thing_share, "both": both.mean().item(), "never both": missed}


def measure(model: str, files: Sequence[str], every: int) -> dict[str, Any]:
    """Returns all figures of a model on drawings.

    Args:
        model: folder in open_clip's local-directory format.
        files: Parquet files, or folders of them.
        every: one in ``every`` pictures is held out, by the hash of its id.
    """
    embedder = OpenClipEmbedder(model)
    vectors, items = embed(embedder, ParquetImages(files=list(files), size=embedder.image_size))
    rows = [i for i, item in enumerate(items) if is_held_out(item["id"], every)]
    held_out, kept = vectors[rows], [items[i] for i in rows]
    names = sorted({item["caption"] for item in items})

    def encode(texts: Sequence[str]) -> Tensor:
        return text_vectors(embedder, texts)

    figures: dict[str, Any] = {"model": model, "pictures": len(items), "held out": len(rows), "names": len(names)}
    figures |= retrieval_figures(encode, held_out, kept, names)
    in_five = ranks(held_out @ encode(names).T, places_of([item["caption"] for item in kept], names)) < 5
    figures["recall@5 by style"] = {
        style: in_five[[i for i, item in enumerate(kept) if item["style"] == style]].float().mean().item()
        for style in sorted({item["style"] for item in kept})
    }
    prompts = read_prompts()
    queries = encode([with_article(f"{colour} {thing}") for colour, thing in prompts])
    nearest = (queries @ vectors.T).topk(FIRST).indices.tolist()
    return figures | {f"first {FIRST} of {len(prompts)} prompts": colour_and_thing(nearest, items, prompts)}


def rounded(value: Any) -> Any:
    """Returns figures rounded to three decimal places."""
    if isinstance(value, dict):
        return {key: rounded(part) for key, part in value.items()}
    return round(value, 3) if isinstance(value, float) else value


def main() -> None:
    """Measures the model of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument(
        "model", nargs="?", default="models/clip/emoji", help="CLIP model: folder in open_clip's format"
    )
    parser.add_argument("--files", nargs="+", default=["data/emoji"], help="Parquet files, or folders of them")
    parser.add_argument(
        "--every", type=int, default=10, help="one in EVERY pictures is held out, by the hash of its id"
    )
    options = parser.parse_args()
    print(json.dumps(rounded(measure(options.model, options.files, options.every))))


if __name__ == "__main__":
    main()
