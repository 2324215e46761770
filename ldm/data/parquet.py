"""Pictures in Parquet files, in Hugging Face's convention: a column `image` of {bytes, path}, and metadata columns."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ldm.data.decode import Size
from ldm.data.images import ImageDataset, complete, expand_files

# For each entry of an item, the columns that can hold it, in order of preference.
_COLUMNS = {
    "caption": ("name", "caption", "text"),
    "class_id": ("category", "label", "class"),
    "licence": ("license", "licence"),
    "attribution": ("attribution",),
}
_EXTRAS = ("concept", "style", "split", "keywords", "category", "subcategory")


class ParquetImages(ImageDataset):
    """The rows of Parquet files, in the given order of the files.

    The encoded pictures stay in Arrow memory, which forked workers share; a picture is decoded when its item is read.
    The `id` is `<style>/<concept>` if those columns exist, otherwise `<file stem>/<row>`. The `uri` is
    `<file name>#<row>`.
    """

    def __init__(
        self,
        files: str | Iterable[str],
        size: Size,
        split: str | None = None,
        where: Mapping[str, Any] | None = None,
        max_broken: int = 10,
        keep: bool = False,
        **options: Any,
    ) -> None:
        """Reads the rows that match.

        Args:
            files: a Parquet file, a folder of them, a glob pattern, or a list of these.
            size: see :class:`ImageDataset`.
            split: short form of `where: {split: ...}`.
            where: keeps the rows in which each named column has the given value, or one of the given values.
            max_broken: number of unreadable pictures to tolerate.
            keep: keep every decoded item in memory.
            options: `channels` and `value_range` of :class:`ImageDataset`.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: a file is not a Parquet file, a column is missing, or no row matches.
        """
        super().__init__(size, max_broken, keep, **options)
        rules = {column: _values(value) for column, value in (where or {}).items()}
        if split is not None:
            rules["split"] = [split]
        self.files = expand_files(files, ".parquet")
        self._rows: list[np.ndarray] = []
        self._columns: list[dict[str, pa.ChunkedArray]] = []
        for file in self.files:
            table, rows = _read(file, rules)
            self._columns.append(dict(zip(table.column_names, table.columns, strict=True)))
            self._rows.append(rows)
        self._ends = np.cumsum([len(rows) for rows in self._rows]).tolist()
        if not self._ends[-1]:
            names = ", ".join(file.name for file in self.files)
            raise ValueError(f"got no row with {rules} in {names}; correct `split` or `where` in the data config")
        self._extras = [name for name in _EXTRAS if any(name in columns for columns in self._columns)]

    def __len__(self) -> int:
        """Returns the number of matching rows."""
        return self._ends[-1]

    def uri(self, index: int) -> str:
        """Returns `<file name>#<row in the file>`."""
        number, row = self._locate(index)
        return f"{self.files[number].name}#{self._rows[number][row]}"

    def metadata(self, index: int) -> dict[str, str]:
        """Returns the row's text columns under the names of this project."""
        number, row = self._locate(index)
        known = {"uri": self.uri(index)}
        for entry, columns in _COLUMNS.items():
            known[entry] = next((text for name in columns if (text := self._text(number, row, name))), "")
        if known["class_id"] and (part := self._text(number, row, "subcategory")):
            known["class_id"] += f"/{part}"
        known |= {name: self._text(number, row, name) for name in self._extras}
        if known.get("style") and known.get("concept"):
            return complete({**known, "id": f"{known['style']}/{known['concept']}"})
        return complete({**known, "id": f"{self.files[number].stem}/{self._rows[number][row]}"})

    def read(self, index: int) -> bytes:
        """Returns the encoded picture, from the column or from a file that it names below the Parquet file's folder.

        Raises:
            ValueError: the row has neither bytes nor such a path.
        """
        number, row = self._locate(index)
        value = self._columns[number]["image"][row].as_py()
        data = value.get("bytes") if isinstance(value, dict) else value
        if data is not None:
            return data
        folder = self.files[number].parent.resolve()
        path = value.get("path") if isinstance(value, dict) else None
        if not path or not (folder / path).resolve().is_relative_to(folder):
            raise ValueError(f"got neither bytes nor a path below {folder}")
        return (folder / path).read_bytes()

    def _locate(self, index: int) -> tuple[int, int]:
        """Returns the number of the file, and the number of the row among its matching rows."""
        index = range(len(self))[index]
        number = bisect_right(self._ends, index)
        return number, index - (self._ends[number - 1] if number else 0)

    def _text(self, number: int, row: int, name: str) -> str:
        """Returns a cell as text; the text is empty if the column is missing or the cell is null."""
        if name not in self._columns[number]:
            return ""
        value = self._columns[number][name][row].as_py()
        if isinstance(value, list):
            return ", ".join(str(part) for part in value)
        return "" if value is None else str(value)


def _read(file: Path, rules: Mapping[str, list[Any]]) -> tuple[pa.Table, np.ndarray]:
    """Returns the matching rows of a file, with only the columns that are needed, and their row numbers."""
    try:
        schema = pq.read_schema(file)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{file} is not a Parquet file: {error}") from error
    missing = [name for name in ("image", *rules) if name not in schema.names]
    if missing:
        raise ValueError(f"{file} has no column {', '.join(missing)}; it has {', '.join(schema.names)}")
    wanted = {"image", *rules, *_EXTRAS, *(name for names in _COLUMNS.values() for name in names)}
    table = pq.read_table(file, columns=[name for name in schema.names if name in wanted])
    keep = np.ones(len(table), dtype=bool)
    for name, values in rules.items():
        column = table.column(name)
        try:
            wanted_values = pa.array(values, type=column.type)
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise ValueError(f"{file}: column {name} is {column.type}, `where` asks for {values}") from error
        keep &= pc.is_in(column, value_set=wanted_values).to_numpy(zero_copy_only=False)
    return (table if keep.all() else table.filter(pa.array(keep))), np.flatnonzero(keep)


def _values(value: Any) -> list[Any]:
    """Returns one value, or several values, as a list."""
    return [value] if isinstance(value, str | int | float) else list(value)
