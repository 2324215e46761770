"""The demo picture: text, class-conditional and unconditional samples next to their neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from ldm.files import atomic_path
from ldm.pictures import image_grid
from rdm.loading import Loaded
from rdm.retrieval.database.pictures import pictures
from rdm.sampling.pipeline import Pipeline
from rdm.sampling.samples import Samples, sample
from rdm.sampling.settings import Settings
from rdm.sampling.ways import classes as of_classes
from rdm.sampling.ways import popular, texts

CAPTION = 14  # height of a line of text, in pixels


def paint(checkpoints: Sequence[str], prompts: Sequence[str], classes: Sequence[str], outdir: Path) -> Path:
    """Samples from each checkpoint and returns the path of one labelled picture.

    Args:
        checkpoints: files or folders, see ``rdm.loading.find_checkpoint``.
        prompts: texts.
        classes: names of classes of the database.
        outdir: the folder that ``demo.png`` is written to.
    """
    columns = [sheet(Pipeline.load(checkpoint), prompts, classes) for checkpoint in checkpoints]
    page = Image.new("RGB", (sum(c.width for c in columns) + 10 * (len(columns) - 1), columns[0].height), "white")
    left = 0
    for column in columns:
        page.paste(column, (left, 0))
        left += column.width + 10
    target = outdir / "demo.png"
    with atomic_path(target) as temporary:
        page.save(temporary, format="png")
    return target


def sheet(loaded: Loaded, prompts: Sequence[str], classes: Sequence[str]) -> Image.Image:
    """Returns a picture of the labelled samples of one model."""
    settings = Settings(batch_size=6)
    folder = loaded.path.parent if loaded.path.parent.name != "checkpoints" else loaded.path.parents[1]
    twice = [name for name in classes for _ in range(2)]
    parts = {
        "text: " + ", ".join(prompts): texts(loaded, prompts),
        "class: " + ", ".join(classes): of_classes(loaded, twice),
        "unconditional, from popular rows": popular(loaded, 6),
    }
    blocks = {label: side_by_side(sample(loaded, request, settings), loaded) for label, request in parts.items()}
    width = max(block.shape[2] for block in blocks.values())
    height = CAPTION + sum(CAPTION + block.shape[1] for block in blocks.values())
    page = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(page)
    draw.text((3, 1), f"{folder}: each sample, then the {loaded.k} neighbours that the model saw", fill="black")
    top = CAPTION
    for label, block in blocks.items():
        draw.text((3, top + 1), label, fill="black")
        page.paste(Image.fromarray(block.permute(1, 2, 0).numpy()), (0, top + CAPTION))
        top += CAPTION + block.shape[1]
    return page


def side_by_side(samples: Samples, loaded: Loaded) -> Tensor:
    """Returns a grid ``[3, H, W] uint8`` of samples and their neighbours, with two samples in a row."""
    shown = pictures(loaded.retriever.database, samples.request.retrieved.rows, samples.images.shape[-1])
    both = torch.cat([samples.images[:, None], shown], dim=1)
    return image_grid({"left": both[0::2], "right": both[1::2]})
