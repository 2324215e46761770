"""One picture of everything a model can do: text, class and unconditional samples beside their neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from ldm.files import atomic_path
from ldm.pictures import image_grid
from rdm.loading import Loaded, load
from rdm.retrieval.database.pictures import pictures
from rdm.sampling.samples import Samples, sample_classes, sample_popular, sample_texts

CAPTION = 14  # height of a line of text, in pixels


def paint(checkpoints: Sequence[str], prompts: Sequence[str], classes: Sequence[str], outdir: Path) -> Path:
    """Samples from each checkpoint and returns the path of one labelled picture.

    Args:
        checkpoints: files or folders, see ``rdm.loading.find_checkpoint``.
        prompts: texts.
        classes: class names of the database.
        outdir: where ``demo.png`` goes.
    """
    columns = [sheet(load(checkpoint), prompts, classes) for checkpoint in checkpoints]
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
    """Returns the labelled samples of one model."""
    k = loaded.model.conditioner.k
    common: dict[str, Any] = {"k": k, "seed": 0, "scale": 2.0, "steps": 50, "batch_size": 6}
    folder = loaded.path.parent if loaded.path.parent.name != "checkpoints" else loaded.path.parents[1]
    twice = [name for name in classes for _ in range(2)]
    parts = {
        "text: " + ", ".join(prompts): sample_texts(loaded, prompts, **common),
        "class: " + ", ".join(classes): sample_classes(loaded, twice, pool=20, **common),
        "unconditional, from popular rows": sample_popular(loaded, 6, top_m=0.2, weighted=False, **common),
    }
    blocks = {label: side_by_side(samples, loaded) for label, samples in parts.items()}
    width = max(block.shape[2] for block in blocks.values())
    height = CAPTION + sum(CAPTION + block.shape[1] for block in blocks.values())
    page = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(page)
    draw.text((3, 1), f"{folder}: each sample, then the {k} neighbours it looked at", fill="black")
    top = CAPTION
    for label, block in blocks.items():
        draw.text((3, top + 1), label, fill="black")
        page.paste(Image.fromarray(block.permute(1, 2, 0).numpy()), (0, top + CAPTION))
        top += CAPTION + block.shape[1]
    return page


def side_by_side(samples: Samples, loaded: Loaded) -> Tensor:
    """Returns a grid ``[3, H, W] uint8`` of samples and neighbours, two samples a row."""
    shown = pictures(loaded.retriever.database, samples.retrieved.rows, samples.images.shape[-1])
    both = torch.cat([samples.images[:, None], shown], dim=1)
    return image_grid({"left": both[0::2], "right": both[1::2]})
