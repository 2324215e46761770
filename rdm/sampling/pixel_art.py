"""Pictures of a style that the shipped model was not trained on: pixel art, made of drawings."""

from __future__ import annotations

import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from ldm.files import atomic_path

SIDE, LARGE, COLOURS = 16, 8, 12  # of pixel art: large pixels of a side, small ones of a large one, and colours


def pixel_art(drawings: Path, target: Path) -> Path:
    """Writes drawings as pixel art of 16 x 16 large pixels, a style that the shipped model was not trained on.

    Args:
        drawings: a Parquet file with a column ``image``.
        target: the Parquet file to write, with the other columns unchanged.
    """
    table = pq.read_table(drawings)
    cells = [{"bytes": _pixelated(cell["bytes"]), "path": None} for cell in table["image"].to_pylist()]
    for name, values in (("image", cells), ("style", ["pixel art"] * len(table))):
        if name in table.column_names:
            place = table.column_names.index(name)
            table = table.set_column(place, name, pa.array(values, table.schema.field(name).type))
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(target) as temporary:
        pq.write_table(table, temporary)
    return target


def _pixelated(data: bytes) -> bytes:
    """Returns an encoded picture with large pixels of few colours."""
    picture = Image.open(io.BytesIO(data)).convert("RGB").resize((SIDE, SIDE), Image.Resampling.BOX)
    few = picture.quantize(COLOURS, dither=Image.Dither.NONE).convert("RGB")
    buffer = io.BytesIO()
    few.resize((LARGE * SIDE, LARGE * SIDE), Image.Resampling.NEAREST).save(buffer, format="png")
    return buffer.getvalue()
