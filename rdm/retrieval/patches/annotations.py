"""Annotated boxes from the files of OpenImages and COCO or from a plain table."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pc
import pyarrow.parquet as pq

from ldm.files import located

# Columns of the picture, the four sides and the class: ours in pixels, OpenImages' as fractions of the picture's sides.
_PIXELS = ("image_id", "x0", "y0", "x1", "y1", "class_id")
_PARTS = ("ImageID", "XMin", "YMin", "XMax", "YMax", "LabelName")


class Annotations:
    """The annotated boxes of each picture.

    Args:
        file: CSV or Parquet with columns ``image_id x0 y0 x1 y1`` in pixels and optionally ``class_id``; OpenImages'
            CSV of boxes; or COCO's JSON of instances.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file has none of these forms.
    """

    def __init__(self, file: str | Path) -> None:
        path = located(file)
        if not path.is_file():
            raise FileNotFoundError(f"no annotations at {path}; correct 'file' of the patches")
        ids, sides, classes, self._parts = _read(path)
        order = np.argsort(ids, kind="stable")  # boxes of one picture keep their order
        self._ids, self._sides = ids[order], sides[order]
        self._class_names, self._class_numbers = np.unique(classes[order], return_inverse=True)

    def __len__(self) -> int:
        """Returns the number of boxes."""
        return len(self._ids)

    def of(self, image_id: str, width: int, height: int) -> list[tuple[float, float, float, float, str]]:
        """Returns the boxes of a picture in pixels and their classes, in the order of the file.

        Args:
            image_id: the id of the picture, or a path whose file name without ending is the id.
            width: width of the picture in pixels.
            height: its height in pixels.
        """
        scale = np.array([width, height, width, height]) if self._parts else 1.0
        for name in (image_id, Path(image_id).name, Path(image_id).stem):
            first, end = (int(np.searchsorted(self._ids, name.encode(), side)) for side in ("left", "right"))
            if end > first:
                sides = (self._sides[first:end] * scale).tolist()
                names = self._class_names[self._class_numbers[first:end]]
                return [(*box, name.decode()) for box, name in zip(sides, names, strict=True)]
        return []


def _read(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, bool]:
    """Returns ids ``[n] bytes``, sides ``[n, 4] float32``, classes ``[n] bytes``, and whether sides are fractions."""
    try:
        if path.suffix == ".json":
            return (*_read_coco(path), False)
        table = pq.read_table(path) if path.suffix == ".parquet" else _read_csv(path)
        for columns in (_PIXELS, _PARTS):
            if set(columns[:5]) <= set(table.column_names):
                ids, classes = (_bytes(table, name) for name in (columns[0], columns[5]))
                sides = [table[name].to_numpy().astype(np.float32) for name in columns[1:5]]
                return ids, np.stack(sides, axis=1), classes, columns is _PARTS
    except (pa.ArrowInvalid, KeyError, TypeError, UnicodeError, json.JSONDecodeError) as error:
        raise ValueError(
            f"annotations {path} cannot be read ({error}); expected CSV, Parquet or COCO's JSON"
        ) from error
    raise ValueError(
        f"annotations {path} have columns {', '.join(table.column_names)}; expected {', '.join(_PIXELS[:5])} in "
        f"pixels, or OpenImages' {', '.join(_PARTS[:5])}"
    )


def _read_csv(path: Path) -> pa.Table:
    """Returns the columns that are used; texts stay texts even if they look like numbers."""
    with path.open(encoding="utf-8-sig") as file:
        header = file.readline().strip().split(",")
    texts = {name: pa.string() for name in (_PIXELS[0], _PIXELS[5], _PARTS[0], _PARTS[5])}
    wanted: Sequence[str] = [name for name in header if name in (*_PIXELS, *_PARTS)]
    options = pc.ConvertOptions(column_types=texts, include_columns=wanted or header)
    return pc.read_csv(path, convert_options=options)


def _bytes(table: pa.Table, name: str) -> np.ndarray:
    if name not in table.column_names:
        return np.full(len(table), b"", dtype="S1")
    return table[name].cast(pa.string()).fill_null("").cast(pa.binary()).to_numpy().astype(np.bytes_)


def _read_coco(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    content = json.loads(path.read_bytes())
    files = {image["id"]: str(image["file_name"]).encode() for image in content["images"]}
    names = {entry["id"]: str(entry["name"]).encode() for entry in content.get("categories", [])}
    boxes = content["annotations"]
    corners = [(x, y, x + w, y + h) for x, y, w, h in (entry["bbox"] for entry in boxes)]
    return (
        np.array([files[entry["image_id"]] for entry in boxes], dtype=np.bytes_),
        np.array(corners, dtype=np.float32).reshape(-1, 4),
        np.array([names.get(entry.get("category_id"), b"") for entry in boxes], dtype=np.bytes_),
    )
