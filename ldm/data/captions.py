"""Where the captions of a folder of pictures come from: text files, tables, file names and folders."""

from __future__ import annotations

import csv
import io
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from ldm.files import located, read_text
from ldm.util import nearest

LOG = logging.getLogger(__name__)
SOURCES = ("txt", "csv", "name", "folder")  # in the usual order of preference
FILE_COLUMNS = ("file", "file_name", "filename", "image", "path")
CAPTION_COLUMNS = ("caption", "text", "name", "title", "description")
# Words that cameras and programs give to files, which say nothing about the picture.
_NOTHING = (
    *("img", "dsc", "dscn", "dscf", "pxl", "mvi", "image", "photo", "picture", "pic"),
    *("screenshot", "scan", "frame", "untitled", "download", "copy"),
)


class Captions:
    """The captions of the pictures below a folder.

    Args:
        root: the folder.
        names: paths of the pictures below it, with ``/``.
        sources: where captions come from, in order of preference; the first one that has one for a picture counts.

            * ``txt``: the content of ``cat.txt`` beside ``cat.jpg``.
            * ``csv``: a line of a table, which has a column of :data:`FILE_COLUMNS` with the path below the root, and
              one of :data:`CAPTION_COLUMNS`.
            * ``name``: the words of the file name, see :func:`words_of`.
            * ``folder``: the words of the name of the nearest folder below the root that has some.
        table: the file of the table; by default the only ``.csv`` file directly in the root, if there is one.

    Raises:
        FileNotFoundError: there is no such table.
        ValueError: a source is unknown, or a table has no such columns, no line of a picture, or is one of several.
    """

    def __init__(
        self, root: Path, names: Sequence[str], sources: Sequence[str] = ("txt",), table: str | None = None
    ) -> None:
        for source in sources:
            if source not in SOURCES:
                known = f"{nearest(source, SOURCES)}, expected some of {', '.join(SOURCES)}"
                raise ValueError(f"captions: got the source '{source}'{known}")
        if table is not None and "csv" not in sources:
            raise ValueError(f"captions: got a table {table} with the sources {', '.join(sources)}, expected csv too")
        self.root, self.sources = root, tuple(sources)
        self._table = _table(root, set(names), table) if "csv" in sources else {}

    def of(self, name: str) -> tuple[str, str]:
        """Returns the caption of a picture and the source that it is from; both are empty without a caption."""
        for source in self.sources:
            if caption := getattr(self, f"_of_{source}")(name):
                return caption, source
        return "", ""

    def _of_txt(self, name: str) -> str:
        file = self.root / Path(name).with_suffix(".txt")
        return read_text(file).strip() if file.is_file() else ""

    def _of_csv(self, name: str) -> str:
        return self._table.get(name, "")

    def _of_name(self, name: str) -> str:
        return words_of(Path(name).stem)

    def _of_folder(self, name: str) -> str:
        return next((words for folder in Path(name).parents if (words := words_of(folder.name))), "")


def words_of(name: str) -> str:
    """Returns the words of a file name without its ending: ``red guitar`` of ``red_guitar-2``.

    Words are separated by anything but letters, digits and apostrophes. Those with digits are left out, and nothing is
    left of names that only a camera or a program has given, such as ``IMG_0042`` or ``6dd915_n``.
    """
    words = [word for word in re.split(r"[^\w']+|_+", name) if word and not any(map(str.isdigit, word))]
    says = any(len(word) > 1 and word.lower() not in _NOTHING for word in words)
    return " ".join(words) if says else ""


def _table(root: Path, names: set[str], given: str | None) -> Mapping[str, str]:
    """Returns the captions in a table, by the path of the picture below the root."""
    found = sorted(root.glob("*.csv")) if given is None else [located(given)]
    if not found:
        return {}
    if len(found) > 1:
        listed = ", ".join(file.name for file in found)
        raise ValueError(f"captions: got several tables in {root}: {listed}; name the one with the captions")
    (file,) = found
    if not file.is_file():
        raise FileNotFoundError(f"captions: no table at {file}; correct the path")
    text = read_text(file)
    separator = max(",;\t", key=text.partition("\n")[0].count)
    header, *lines = csv.reader(io.StringIO(text, newline=""), delimiter=separator) if text else [[]]
    columns = [column.strip().lower() for column in header]
    places = [next((name for name in known if name in columns), None) for known in (FILE_COLUMNS, CAPTION_COLUMNS)]
    if None in places:
        raise ValueError(
            f"{file} has the columns {', '.join(columns) or 'none'}; expected one of {', '.join(FILE_COLUMNS)} and one "
            f"of {', '.join(CAPTION_COLUMNS)} in its first line; rename them, or leave out csv as a source of captions"
        )
    first, second = (columns.index(str(place)) for place in places)
    captions = {
        line[first].strip().replace("\\", "/").removeprefix("./"): line[second].strip()
        for line in lines
        if len(line) > max(first, second)
    }
    if lost := sorted(set(captions) - names):
        if len(lost) == len(captions):
            raise ValueError(
                f"{file}: no line names a picture below {root}, such as '{sorted(names)[0]}'; got '{lost[0]}', "
                "expected paths below this folder"
            )
        LOG.warning("%s: lines that name no picture below %s: %d, such as '%s'", file, root, len(lost), lost[0])
    return captions
