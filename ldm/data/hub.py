"""Data sets of the Hugging Face hub, or local folders of the same forms, through the package ``datasets``.

:class:`HubImages` has all rows on the disk and reads any of them; :class:`HubStream` downloads rows as it reads them.
Code of a data set is never run.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from ldm.config import check_keys
from ldm.data.classes import Classes, numbered_classes, sorted_classes
from ldm.data.decode import Size
from ldm.data.images import METADATA, ImageDataset, complete
from ldm.data.parquet import COLUMNS
from ldm.files import located
from ldm.util import to_install

IMAGE = "image"
ENTRIES = (IMAGE, *METADATA)
_READ_AT_ONCE = 32


class Place(NamedTuple):
    """A row that a sampler requests of a stream.

    Attributes:
        position: its place in the order of the epoch.
        epoch: number of the epoch.
        seed: of the order, together with the epoch; None for the order of the stream.
    """

    position: int
    epoch: int = 0
    seed: int | None = None


class HubImages(ImageDataset):
    """The rows of a split, in their order.

    The ``id`` is ``<name>/<split>/<row>`` unless a column has ids. Classes of the type ``ClassLabel`` have the numbers
    and names that it states, whole numbers are the numbers of classes, and other classes are numbered in the sorted
    order of their names.
    """

    streams = False

    def __init__(
        self,
        name: str,
        size: Size,
        split: str = "train",
        columns: Mapping[str, str] | None = None,
        subset: str | None = None,
        revision: str | None = None,
        max_broken: int = 10,
        **options: Any,
    ) -> None:
        """Opens the split.

        Args:
            name: ``owner/name`` on the hub, or a local folder in one of the forms that ``datasets`` reads.
            size: see :class:`ImageDataset`.
            split: name of the split, or a part of it such as ``train[:1000]``.
            columns: for ``image``, ``caption``, ``class_id``, ``id``, ``uri``, ``licence`` and ``attribution`` the
                columns that hold them. If not given, the image is the column ``image`` or the first one of pictures,
                and the others are found by their usual names, except ``id``.
            subset: name of a configuration of the data set.
            revision: branch, tag or commit on the hub. A commit makes sure that rows keep their numbers.
            max_broken: number of unreadable pictures to tolerate.
            options: ``keep``, ``class_list``, ``channels`` and ``value_range`` of :class:`ImageDataset`.

        Raises:
            FileNotFoundError: the data set cannot be found or reached.
            ValueError: ``datasets`` is not installed, or there is no such split, subset or column.
        """
        super().__init__(size, max_broken, **options)
        self.name, self.split = name, split
        self.rows: Any = _opened(name, split, subset, revision, streams=self.streams)
        self.columns = _found_columns(self.rows, columns or {}, f"data set {name}")
        self.rows = _without_decoding(self.rows, self.columns)

    def __len__(self) -> int:
        """Returns the number of rows."""
        return len(self.rows)

    def uri(self, index: int) -> str:
        """Returns the content of the column of URIs, or ``<name>#<split>/<row>``."""
        return f"{self.name}#{self.split}/{index}"

    def metadata(self, index: int) -> dict[str, str]:
        """Returns the texts of a row."""
        return self._described(self._texts[range(len(self))[index]], index)

    def read(self, index: int) -> bytes:
        """Returns the encoded picture of a row."""
        return _content(self.rows[range(len(self))[index]][self.columns[IMAGE]])

    def numbered(self) -> Classes:
        """Returns the classes with their numbers."""
        label = self._class_feature
        names = getattr(label, "names", None)
        if names is not None:
            return Classes(names)
        found = set(self.class_ids())
        whole = str(getattr(label, "dtype", "")).startswith(("int", "uint"))
        return numbered_classes(found) if whole else sorted_classes(found)

    def class_ids(self) -> Iterable[str]:
        """Returns the classes of all rows."""
        names = getattr(self._class_feature, "names", None)
        if names is not None or "class_id" not in self.columns:
            return names or []
        return {_text(value) for value in self._texts.unique(self.columns["class_id"])}

    @cached_property
    def _texts(self) -> Any:
        return self.rows.remove_columns(self.columns[IMAGE])

    @property
    def _class_feature(self) -> Any:
        return self.rows.features.get(self.columns.get("class_id"))

    def _described(self, row: Mapping[str, Any], number: int) -> dict[str, str]:
        """Returns the texts of a row."""
        known = {entry: _text(row[column]) for entry, column in self.columns.items() if entry != IMAGE}
        names = getattr(self._class_feature, "names", None)
        if names is not None and (value := row[self.columns["class_id"]]) is not None:
            known["class_id"] = names[value] if value >= 0 else ""
        known["uri"] = known.get("uri") or f"{self.name}#{self.split}/{number}"
        known["id"] = known.get("id") or f"{Path(self.name).name}/{self.split}/{number}"
        return complete(known)


class HubStream(HubImages):
    """The rows of a split, downloaded as they are read. They can only be read in order.

    Each loader process reads the whole stream and decodes its own part of it.
    """

    streams = True

    def __init__(self, name: str, size: Size, length: int | None = None, buffer: int = 1000, **options: Any) -> None:
        """Opens the stream.

        Args:
            name: see :class:`HubImages`.
            size: see there.
            length: number of rows that are an epoch; if not given, the number that the data set states.
            buffer: number of rows among which the next one is drawn, in a random order.
            options: further arguments of :class:`HubImages`.

        Raises:
            ValueError: the data set does not state its length, and none is given; or see :class:`HubImages`.
        """
        super().__init__(name, size, **options)
        stated = (getattr(self.rows.info, "splits", None) or {}).get(self.split)
        found = getattr(stated, "num_examples", None) if length is None else length
        if found is None:
            raise ValueError(f"data set {name} does not state how many rows split '{self.split}' has; set length")
        if found < 1 or buffer < 1 or self._items is not None:
            raise ValueError(
                f"data set {name}: got length={found}, buffer={buffer}, keep={self._items is not None}; expected "
                "numbers of at least 1, and keep: false"
            )
        self.length, self.buffer = int(found), buffer
        self._order, self._next = Place(0), 0
        self._stream: Iterator[dict[str, Any]] | None = None
        self._row: dict[str, Any] = {}

    def __len__(self) -> int:
        """Returns the number of rows of an epoch."""
        return self.length

    def __getitem__(self, index: int | Place) -> dict[str, Any]:
        """Returns the item at a place, or the next one with a readable picture; those before it are skipped.

        Raises:
            IndexError: the place is out of range.
            ValueError: the stream has fewer rows than ``length``, or see :class:`ImageDataset`.
        """
        place = index if isinstance(index, Place) else Place(index)
        if place[1:] != self._order[1:]:
            self._broken, self._stream = {}, None
        self._order = place
        self._at(place.position)  # where a stream that has ended is an error, and no broken picture
        return super().__getitem__(place.position)

    def metadata(self, index: int) -> dict[str, str]:
        """Returns the texts of the row at a position of the present order."""
        return self._described(self._at(index), index)

    def read(self, index: int) -> bytes:
        """Returns the encoded picture at a position of the present order."""
        return _content(self._at(index)[self.columns[IMAGE]])

    def class_ids(self) -> Iterable[str]:
        """Returns the classes that the data set states.

        Raises:
            ValueError: it does not, and to search a stream for them would read all of it.
        """
        if "class_id" in self.columns and self._class_list is None and not hasattr(self._class_feature, "names"):
            raise ValueError(
                f"data set {self.name}: its column {self.columns['class_id']} does not state which classes there are; "
                "set class_list"
            )
        return super().class_ids() if hasattr(self._class_feature, "names") else []

    def __getstate__(self) -> dict[str, Any]:
        """Leaves the open stream behind; another process opens its own."""
        return {**vars(self), "_stream": None}

    def _at(self, index: int) -> dict[str, Any]:
        """Returns the row at a position; the stream is opened again for one before the last that was read."""
        position = range(len(self))[index]
        if self._stream is None or position < self._next - 1:
            self._stream, self._next = self._opened_at(position), position
        while self._next <= position:
            row = next(self._stream, None)
            if row is None:
                raise ValueError(
                    f"data set {self.name}: the stream ended after {self._next} rows, expected length={self.length}; "
                    "correct length"
                )
            self._row, self._next = row, self._next + 1
        return self._row

    def _opened_at(self, position: int) -> Iterator[dict[str, Any]]:
        """Yields the rows of the present order from a position on.

        What is before it is read here: ``skip`` of ``datasets`` may skip other rows if they are shuffled.
        """
        rows, (_, epoch, seed) = self.rows, self._order
        if seed is None:
            rows, position = (rows.skip(position) if position else rows), 0
        else:
            rows = rows.shuffle(seed=seed, buffer_size=self.buffer)
            rows.set_epoch(epoch)
        found = ((batch, cells) for batch in rows.iter(_READ_AT_ONCE) for cells in zip(*batch.values(), strict=True))
        for batch, cells in islice(found, position, None):
            yield dict(zip(batch, cells, strict=True))


def check_random_access(images: Any, what: str) -> None:
    """Checks that a data set can read any of its pictures.

    Args:
        images: the data set.
        what: what reads it, for the error.

    Raises:
        ValueError: it is a stream.
    """
    if getattr(images, "streams", False):
        raise ValueError(f"{what}: got a stream of {images.name}, expected pictures in any order; use HubImages")


@contextmanager
def _in_one_line(name: str, split: str) -> Iterator[None]:
    """Turns what ``datasets`` raises when it opens a data set into one line."""
    try:
        yield
    except ImportError as error:
        raise ValueError(f"data set {name} needs {error.name}: {to_install('datasets')}") from error
    except ConnectionError as error:
        raise FileNotFoundError(
            f"data set {name}: the hub cannot be reached; this would have read its split '{split}'; give a local folder"
        ) from error
    except FileNotFoundError as error:
        raise FileNotFoundError(f"data set {name}: {_first_line(error)}; correct name or revision") from error
    except (ValueError, KeyError, OSError, RuntimeError) as error:
        raise ValueError(f"data set {name}, split '{split}': {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def _opened(name: str, split: str, subset: str | None, revision: str | None, streams: bool) -> Any:
    """Returns the rows of a split: a ``Dataset``, or with ``streams`` an ``IterableDataset``."""
    folder = located(name)
    with _in_one_line(name, split):
        import datasets

        saved = folder / "dataset_dict.json" if (folder / "dataset_dict.json").is_file() else folder / "state.json"
        if not saved.is_file():
            where = str(folder) if folder.is_dir() else name
            return datasets.load_dataset(where, subset, split=split, revision=revision, streaming=streams)
        found = datasets.load_from_disk(str(folder))
        rows = found if saved.name == "state.json" else found.get(split)
        if rows is None:
            raise ValueError(f"it has the splits {', '.join(found)}")
        return rows.to_iterable_dataset() if streams else rows


def _found_columns(rows: Any, given: Mapping[str, str], where: str) -> dict[str, str]:
    """Returns the columns of the entries of an item.

    Raises:
        ValueError: an entry or a column is unknown, or there is no column of pictures.
    """
    check_keys(dict(given), ENTRIES, f"{where}: columns")
    features = rows.features
    if features is None:
        raise ValueError(f"{where} does not state its columns; use HubImages, which reads all of it first")
    known = ", ".join(features)
    if missing := [column for column in given.values() if column not in features]:
        raise ValueError(f"{where} has no column '{missing[0]}', it has {known}; correct columns")
    found = dict(given)
    pictures = [name for name, kind in features.items() if type(kind).__name__ == "Image"]
    if IMAGE not in found:
        if not pictures:
            raise ValueError(f"{where} has no column of pictures, it has {known}; name it in columns")
        found[IMAGE] = IMAGE if IMAGE in pictures else pictures[0]
    elif found[IMAGE] not in pictures:
        raise ValueError(f"{where}: column '{found[IMAGE]}' holds no pictures, expected {', '.join(pictures) or known}")
    for entry, names in COLUMNS.items():
        usual = next((name for name in names if name in features), None)
        if entry not in found and usual is not None:
            found[entry] = usual
    return found


def _without_decoding(rows: Any, columns: Mapping[str, str]) -> Any:
    import datasets

    kept: Sequence[str] = list(dict.fromkeys(columns.values()))
    return rows.select_columns(kept).cast_column(columns[IMAGE], datasets.Image(decode=False))


def _content(cell: Any) -> bytes:
    """Returns the bytes of an encoded picture, which is in the cell or at its path."""
    if cell is None:
        raise ValueError("got a row without a picture")
    if cell.get("bytes") is not None:
        return cell["bytes"]
    if Path(cell["path"]).is_file():
        return Path(cell["path"]).read_bytes()
    import fsspec

    with fsspec.open(cell["path"], "rb") as stream:
        return stream.read()


def _text(value: Any) -> str:
    """Returns a cell as text; it is empty for a null."""
    if isinstance(value, list):
        return ", ".join(str(part) for part in value)
    return "" if value is None else str(value)
