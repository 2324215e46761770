"""Pictures in Parquet files, in Hugging Face's convention: a column `image` of {bytes, path}, and metadata columns."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ldm.data.classes import Classes, numbered_classes
from ldm.data.decode import Size
from ldm.data.images import ImageDataset, complete, expand_files

# For each entry of an item, the columns that can hold it, in order of preference.
COLUMNS = {
    "caption": ("name", "caption", "text"),
    "class_id": ("category", "label", "class"),
    "licence": ("license", "licence"),
    "attribution": ("attribution",),
}
CLASS_COLUMNS = (*COLUMNS["class_id"], "subcategory")
_EXTRAS = ("concept", "style", "split", "keywords", "category", "subcategory")


class ParquetImages(ImageDataset):
    """The rows of Parquet files, in the given order of the files.

    The encoded pictures stay in Arrow memory, which forked workers share; a picture is decoded when its item is read.
    The `id` is `<style>/<concept>` if those columns exist, otherwise `<file stem>/<row>`. The `uri` is
    `<file name>#<row>`.

    Classes are numbered in the sorted order of their names, or by a column of whole numbers. All rows that match
    `where` count, whatever their split, so that all splits number them alike.
    """

    def __init__(
        self,
        files: str | Iterable[str],
        size: Size,
        split: str | None = None,
        where: Mapping[str, Any] | None = None,
        without: Mapping[str, Any] | None = None,
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
            without: leaves out the rows in which a named column has the given value, or one of the given values.
            max_broken: number of unreadable pictures to tolerate.
            keep: keep every decoded item in memory.
            options: `class_list`, `channels` and `value_range` of :class:`ImageDataset`.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: a file is not a Parquet file, a column is missing, or no row matches.
        """
        super().__init__(size, max_broken, keep, **options)
        rules, exceptions = (
            {column: _values(value) for column, value in (given or {}).items()} for given in (where, without)
        )
        if split is not None:
            rules["split"] = [split]
        self.files = expand_files(files, ".parquet")
        self._rows: list[np.ndarray] = []
        self._columns: list[dict[str, pa.ChunkedArray]] = []
        self._class_ids: set[str] = set()
        self._class_names: list[str] | None = None
        for file in self.files:
            table, rows, classes = _read(file, rules, exceptions)
            self._class_ids |= classes
            self._class_names = _names_of_classes(table.schema) or self._class_names
            self._columns.append(dict(zip(table.column_names, table.columns, strict=True)))
            self._rows.append(rows)
        self._ends = np.cumsum([len(rows) for rows in self._rows]).tolist()
        if not self._ends[-1]:
            names = ", ".join(file.name for file in self.files)
            wanted = f"{rules}{f' and without {exceptions}' if exceptions else ''}"
            raise ValueError(f"got no row with {wanted} in {names}; correct `split`, `where` or `without`")
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
        for entry, columns in COLUMNS.items():
            known[entry] = next((text for name in columns if (text := self._text(number, row, name))), "")
        known["class_id"] = class_of([self._text(number, row, name) for name in CLASS_COLUMNS])
        known |= {name: self._text(number, row, name) for name in self._extras}
        if known.get("style") and known.get("concept"):
            return complete({**known, "id": f"{known['style']}/{known['concept']}"})
        return complete({**known, "id": f"{self.files[number].stem}/{self._rows[number][row]}"})

    def class_ids(self) -> Iterable[str]:
        """Returns the classes of all rows that match `where`, whatever their split."""
        return self._class_ids

    def numbered(self) -> Classes:
        """Returns the classes with their numbers; those in a column of whole numbers are the numbers themselves."""
        numbers = all(_class_type_is_whole(columns) for columns in self._columns)
        found = numbered_classes(self._class_ids) if numbers else super().numbered()
        if not found.are_numbers or self._class_names is None or len(self._class_names) < len(found.names):
            return found
        return replace(found, names=self._class_names)

    def human_label(self, class_id: str) -> str:
        """Returns the name that Hugging Face's `ClassLabel` gives to the number of a class, or the class."""
        named = class_id.isdecimal() and self.classes.are_numbers
        return self.classes.names[int(class_id)] if named else class_id

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
        if not path or not isinstance(path, str) or not (folder / path).resolve().is_relative_to(folder):
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
        return _as_text(self._columns[number][name][row].as_py())


def class_of(texts: Sequence[str]) -> str:
    """Returns the class of a row, given its texts in :data:`CLASS_COLUMNS`: `<class>` or `<class>/<subcategory>`."""
    *texts, part = texts
    found = next((text for text in texts if text), "")
    return f"{found}/{part}" if found and part else found


def _as_text(value: Any) -> str:
    """Returns a cell as text; it is empty for a null."""
    if isinstance(value, list):
        return ", ".join(str(part) for part in value)
    return "" if value is None else str(value)


def _classes_of(table: pa.Table) -> set[str]:
    """Returns the classes of all rows of a table."""
    names = [name for name in CLASS_COLUMNS if name in table.column_names]
    if not names:
        return set()
    distinct = table.select(names)
    if not any(pa.types.is_nested(column.type) for column in distinct.columns):
        distinct = distinct.group_by(names).aggregate([])  # in Arrow, which is fast for millions of rows
    cells = [[_as_text(value) for value in distinct[name].to_pylist()] for name in names]
    found = set()
    for values in set(zip(*cells, strict=True)):
        texts = dict(zip(names, values, strict=True))
        found.add(class_of([texts.get(name, "") for name in CLASS_COLUMNS]))
    return found


def _class_type_is_whole(columns: Mapping[str, pa.ChunkedArray]) -> bool:
    """Whether the classes of a file are whole numbers rather than names."""
    first = next((name for name in CLASS_COLUMNS if name in columns), None)
    return first is not None and pa.types.is_integer(columns[first].type)


def _names_of_classes(schema: pa.Schema) -> list[str] | None:
    """Returns the names of classes by number that Hugging Face's `datasets` writes into a file, if there are any."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return next(
            [str(each) for each in feature["names"]]
            for name in CLASS_COLUMNS
            if isinstance(feature := features.get(name), dict) and feature.get("_type") == "ClassLabel"
        )
    except (KeyError, ValueError, TypeError, StopIteration):
        return None


def _read(
    file: Path, rules: Mapping[str, list[Any]], exceptions: Mapping[str, list[Any]]
) -> tuple[pa.Table, np.ndarray, set[str]]:
    """Returns the matching rows of a file, with only the columns that are needed, their row numbers, and classes.

    The classes are those of all rows that match the rules for other columns than `split`.
    """
    try:
        schema = pq.read_schema(file)
        names = schema.names
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise _incomplete(file, error) from error
    missing = [name for name in ("image", *rules, *exceptions) if name not in names]
    if missing:
        raise ValueError(f"{file} has no column {', '.join(missing)}; it has {', '.join(names)}")
    wanted = {"image", *rules, *exceptions, *_EXTRAS, *(name for names in COLUMNS.values() for name in names)}
    try:
        table = pq.read_table(file, columns=[name for name in names if name in wanted])
    except (pa.ArrowException, OSError) as error:
        raise _incomplete(file, error) from error
    keep, in_any_split = np.ones((2, len(table)), dtype=bool)
    for name, values in rules.items():
        fits = _has_one_of(file, table, name, values)
        keep &= fits
        in_any_split &= fits if name != "split" else True
    for name, values in exceptions.items():
        others = ~_has_one_of(file, table, name, values)
        keep &= others
        in_any_split &= others
    classes = _classes_of(table.filter(pa.array(in_any_split)))
    return (table if keep.all() else table.filter(pa.array(keep))), np.flatnonzero(keep), classes


def _has_one_of(file: Path, table: pa.Table, name: str, values: list[Any]) -> np.ndarray:
    """Returns for each row whether a column has one of some values, ``[N] bool``.

    Raises:
        ValueError: the values are of another type than the column.
    """
    column = table.column(name)
    try:
        return pc.is_in(column, value_set=pa.array(values, type=column.type)).to_numpy(zero_copy_only=False)
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError) as error:
        expected = f"expected values of that type; correct `{'split' if name == 'split' else 'where'}` or `without`"
        raise ValueError(f"{file}: column {name} is {column.type}, got {values}, {expected}") from error


def _incomplete(file: Path, error: Exception) -> ValueError:
    """Returns the error of a file that pyarrow cannot read."""
    reason = "".join(filter(str.isprintable, str(error).partition("\n")[0].partition(". ")[0])).rstrip(".: ")
    return ValueError(f"{file} is not a complete Parquet file ({reason}); fetch it again, or name another file")


def _values(value: Any) -> list[Any]:
    """Returns one value, or several values, as a list."""
    return [value] if isinstance(value, str | int | float) else list(value)
