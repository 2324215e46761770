"""The demo picture: text, class-conditional and unconditional samples next to their neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from ldm.files import atomic_path
from ldm.pictures import image_grid, with_channels
from rdm.loading import Loaded
from rdm.retrieval.database.pictures import framed_pictures
from rdm.sampling.pipeline import Pipeline
from rdm.sampling.samples import Samples, sample
from rdm.sampling.settings import Settings
from rdm.sampling.ways import classes as of_classes
from rdm.sampling.ways import popular, texts

CAPTION, GAP = 14, 10  # height of a line of text and space between columns, in pixels


class Column(NamedTuple):
    """A column of the demo picture.

    Attributes:
        title: what it shows.
        checkpoint: file or folder, see ``rdm.loading.find_checkpoint``.
        database: another database than that of the model's config.
    """

    title: str
    checkpoint: str
    database: str | None = None


def paint(columns: Sequence[Column], prompts: Sequence[str], classes: Sequence[str], outdir: Path) -> Path:
    """Samples for each column and returns the path of one labelled picture.

    Args:
        columns: the columns, from left to right.
        prompts: texts.
        classes: names of classes of the database.
        outdir: the folder that ``demo.png`` is written to.
    """
    sheets = [sheet(Pipeline.load(each.checkpoint, each.database), each.title, prompts, classes) for each in columns]
    height = max(part.height for part in sheets)
    page = Image.new("RGB", (sum(part.width + GAP for part in sheets) - GAP, height), "white")
    left = 0
    for part in sheets:
        page.paste(part, (left, 0))
        left += part.width + GAP
    target = outdir / "demo.png"
    with atomic_path(target) as temporary:
        page.save(temporary, format="png")
    return target


def sheet(loaded: Loaded, title: str, prompts: Sequence[str], classes: Sequence[str]) -> Image.Image:
    """Returns a picture of the labelled samples of one model."""
    settings = Settings(batch_size=6)
    twice = [name for name in classes for _ in range(2)]
    parts = {"text: " + ", ".join(prompts): texts(loaded, prompts)}
    if twice:
        parts["class: " + ", ".join(classes)] = of_classes(loaded, twice)
    parts["unconditional, from popular rows"] = popular(loaded, 6)
    blocks = {label: side_by_side(sample(loaded, request, settings), loaded) for label, request in parts.items()}
    width = max(block.shape[2] for block in blocks.values())
    height = CAPTION + sum(CAPTION + block.shape[1] for block in blocks.values())
    page = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(page)
    draw.text((3, 1), f"{title}: each sample, then its {loaded.k} neighbours", fill="black")
    top = CAPTION
    for label, block in blocks.items():
        draw.text((3, top + 1), label, fill="black")
        page.paste(Image.fromarray(block.permute(1, 2, 0).numpy()), (0, top + CAPTION))
        top += CAPTION + block.shape[1]
    return page


def side_by_side(samples: Samples, loaded: Loaded) -> Tensor:
    """Returns a grid ``[3, H, W] uint8`` of samples and their neighbours, with two samples in a row."""
    rows, size = samples.request.retrieved.rows, samples.images.shape[2:]
    shown = framed_pictures(loaded.retriever.database, rows, *size)
    both = torch.cat([with_channels(samples.images, 3)[:, None], shown], dim=1)
    return image_grid({"left": both[0::2], "right": both[1::2]})
