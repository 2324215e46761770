"""Makes Parquet files of freely licensed photographs from clones of public repositories.

    python -m benchmarks.photographs grocery CLONE --output data/photographs/grocery.parquet [--size 64]

============ ====================================== =================================================================
kind         clone or copy of                       what a row needs
============ ====================================== =================================================================
``grocery``  marcusklasson/GroceryStoreDataset      MIT in the repository's licence
``clothing`` alexeygrigorev/clothing-dataset        CC0 in its licence or README, and a class in images.csv
``flowers``  TensorFlow's flower_photos             its photographer and licence in LICENSE.txt
``trashnet`` garythung/trashnet (dataset-resized)   MIT in the repository's licence
============ ====================================== =================================================================

Rows without a licence are left out, and counted. Pictures are centre-cropped squares. The captions are sentences that
are made from the class. A picture belongs to the split ``val`` if the SHA-256 of its path is divisible by 10.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageOps, UnidentifiedImageError
from tqdm import tqdm

from ldm.command_line import command_line, positive
from ldm.files import atomic_path

SUFFIXES = (".jpg", ".jpeg", ".png")
BATCH = 512  # pictures that are written at once
QUALITY = 90  # of WebP
UNSURE = ("not sure", "other", "skip")  # classes of the clothes that say nothing
# A line of the flowers' LICENSE.txt: the picture, its licence, and its photographer with the address.
LICENCE_LINE = re.compile(r"^(\w+/\S+\.jpg) (CC-BY(?:-SA)?) by (.+)$")
FLOWERS = {"roses": "rose", "sunflowers": "sunflower", "tulips": "tulip"}  # folders whose class has another name


class Row(NamedTuple):
    """What is known of a photograph; without a licence, it is left out."""

    path: str
    name: str
    caption: str
    licence: str | None
    attribution: str


def grocery(clone: Path) -> Iterator[Row]:
    """Yields the rows of the grocery store."""
    licence = stated(clone, "MIT", r"MIT License|Permission is hereby granted, free of charge")
    for path in pictures(clone, "dataset"):
        category, *groups, kind = path.parts[2:-1]
        name = kind.replace("-", " ").lower()
        for group in groups:  # a Granny-Smith in the folder Apple is a granny smith apple
            word = group.replace("-", " ").lower()
            name = name if word in name else f"{name} {word}"
        caption = f"a photo of {name} in a grocery store ({category.lower()})"
        yield Row(path.as_posix(), name, caption, licence, "Marcus Klasson, GroceryStoreDataset (2019)")


def clothing(clone: Path) -> Iterator[Row]:
    """Yields the rows of the clothes, in the order of images.csv."""
    licence = stated(clone, "CC0-1.0", r"CC0|public domain")
    table = clone / "images.csv"
    if not table.is_file():
        raise FileNotFoundError(f"no images.csv in {clone}; give a clone of alexeygrigorev/clothing-dataset")
    with table.open(newline="", encoding="utf-8") as file:
        for line in csv.DictReader(file):
            name, path = line["label"].lower(), f"images/{line['image']}.jpg"
            if name in UNSURE or not (clone / path).is_file():
                continue
            child = "child " if line.get("kids", "").lower() == "true" else ""
            caption = f"a photo of a {child}{name} laid out"
            yield Row(path, name, caption, licence, "Alexey Grigorev and contributors, clothing-dataset")


def flowers(clone: Path) -> Iterator[Row]:
    """Yields the rows of the flowers; each picture has its own licence and photographer."""
    file = clone / "LICENSE.txt"
    if not file.is_file():
        raise FileNotFoundError(f"no LICENSE.txt in {clone}, which names the photographers; give TensorFlow's archive")
    found = map(LICENCE_LINE.match, file.read_text(encoding="utf-8").splitlines())
    known = {match[1]: (f"{match[2]}-2.0", match[3]) for match in found if match}
    for path in pictures(clone, ""):
        licence, attribution = known.get(path.as_posix(), (None, ""))
        folder = path.parts[0]
        yield Row(path.as_posix(), FLOWERS.get(folder, folder), f"a photo of {folder}", licence, attribution)


def trashnet(clone: Path) -> Iterator[Row]:
    """Yields the rows of the waste."""
    licence = stated(clone, "MIT", r"MIT License|Permission is hereby granted, free of charge")
    for path in pictures(clone, "dataset-resized"):
        name = path.parts[1]
        attribution = "Gary Thung and Mindy Yang, TrashNet (2016)"
        yield Row(path.as_posix(), name, f"a photo of discarded {name}", licence, attribution)


KINDS: dict[str, Callable[[Path], Iterator[Row]]] = {
    "grocery": grocery, "clothing": clothing, "flowers": flowers, "trashnet": trashnet,
}  # fmt: skip


def stated(clone: Path, licence: str, words: str) -> str | None:
    """Returns a licence if a file of the clone that is named after it, or its README, says these words; else None."""
    texts = [file.read_text(errors="replace") for name in ("LICEN*", "README*") for file in sorted(clone.glob(name))]
    return licence if any(re.search(words, text, re.IGNORECASE) for text in texts) else None


def pictures(clone: Path, folder: str) -> list[Path]:
    """Returns the paths of the pictures in a folder of a clone, from the clone on and sorted.

    Raises:
        FileNotFoundError: there is none.
    """
    files = (clone / folder).rglob("*")
    found = sorted(file.relative_to(clone) for file in files if file.suffix.lower() in SUFFIXES)
    if not found:
        raise FileNotFoundError(f"no picture in {clone / folder}; give the folder of the clone")
    return found


def split_of(path: str) -> str:
    """Returns ``val`` for a tenth of all paths, and ``train`` for the others."""
    return "train" if int(hashlib.sha256(path.encode()).hexdigest(), 16) % 10 else "val"


def cropped(file: Path, size: int) -> bytes:
    """Returns the centre of a picture as a WebP file of ``size`` x ``size`` pixels."""
    with Image.open(file) as opened:
        square = ImageOps.fit(opened.convert("RGB"), (size, size), Image.Resampling.LANCZOS)
    data = io.BytesIO()
    square.save(data, format="webp", quality=QUALITY)
    return data.getvalue()


def write(kind: str, clone: Path, output: Path, size: int) -> dict[str, int]:
    """Writes the Parquet file of a kind; returns how many rows it has and how many were left out, and why."""
    counts = {"written": 0, "without a licence": 0, "unreadable": 0}
    columns = ("name", "caption", "style", "split", "license", "attribution", "source")
    picture = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema([("image", picture), *((name, pa.string()) for name in columns)])
    output.parent.mkdir(parents=True, exist_ok=True)
    waiting: list[dict[str, object]] = []
    with atomic_path(output) as temporary, pq.ParquetWriter(temporary, schema) as writer:
        for row in tqdm(list(KINDS[kind](clone)), kind, unit="img"):
            if row.licence is None:
                counts["without a licence"] += 1
                continue
            try:
                data = cropped(clone / row.path, size)
            except (UnidentifiedImageError, OSError):
                counts["unreadable"] += 1
                continue
            counts["written"] += 1
            values = (row.name, row.caption, "photo", split_of(row.path), row.licence, row.attribution, kind)
            waiting.append({"image": {"bytes": data, "path": row.path}, **dict(zip(columns, values, strict=True))})
            if len(waiting) == BATCH:
                writer.write_table(pa.Table.from_pylist(waiting, schema))
                waiting = []
        if not counts["written"]:
            raise ValueError(
                f"no photograph of {clone} has a licence: got none of {kind}, expected the repository's own"
            )
        writer.write_table(pa.Table.from_pylist(waiting, schema))
    return counts


@command_line
def main() -> None:
    """Writes the Parquet file of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=KINDS, help="which photographs")
    parser.add_argument("clone", type=Path, help="folder of the clone")
    parser.add_argument("--output", type=Path, required=True, help="the Parquet file")
    parser.add_argument("--size", type=positive, default=64, help="side in pixels; default: 64")
    args = parser.parse_args()
    counts = write(args.kind, args.clone, args.output, args.size)
    print(f"{args.output}: {', '.join(f'{number} {what}' for what, number in counts.items())}")


if __name__ == "__main__":
    main()
