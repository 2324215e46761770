"""The named endpoints of the tabs Database and Inspect. Pictures that they return are PNG files in Base64."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from typing import Any

from rdm.web.changes import add, fresh, removal, remove
from rdm.web.drawing import Drawn
from rdm.web.inspection import again, compared, copy_words, inspected, nearest_rows, record_rows
from rdm.web.rows import ROWS, Row, decoded_png, search, summary_of
from rdm.web.studio import Studio
from rdm.web.uploads import decoded, sent


def looking(studio: Studio) -> list[Callable[..., Any]]:
    """Returns the endpoints of the tab Database."""
    limits = studio.limits

    def search_rows(
        text: str = "",
        picture: Any = None,
        only: list[str] | None = None,
        k: int = ROWS,
        database: str | None = None,
    ) -> dict[str, Any]:
        """Returns the k rows nearest to a text, a picture or both; without either, the first that fit the rules."""
        limits.check(prompt_characters=len(text), rows=k)
        opened = None if picture is None else decoded(sent(picture, limits, studio.folder), limits)
        return {"rows": _listed(search(fresh(studio, database), text, opened, only or (), k))}

    def describe(database: str | None = None) -> dict[str, Any]:
        """Returns what a database is: its rows, licences, sources, styles, index, recall, memory and disk."""
        found = summary_of(fresh(studio, database).retriever.database)
        return {name: value for name, value in vars(found).items() if name != "path"}  # which Gradio takes for a file

    def count_removal(rows: str = "", sources: list[str] | None = None, database: str | None = None) -> dict[str, Any]:
        """Counts what would be removed: rows such as "3, 17, 20-25", and all rows whose URIs begin with a source."""
        found = removal(studio, database or studio.names[0], rows, sources or ())
        return {"count": len(found.rows), "before": found.before, "words": found.words()}

    def remove_rows(
        count: int, rows: str = "", sources: list[str] | None = None, database: str | None = None
    ) -> dict[str, Any]:
        """Removes rows, if their number is the count that count_removal has stated. No search finds them any more."""
        name = database or studio.names[0]
        number = remove(studio, name, rows, sources or (), count)
        return {"removed": number, "left": studio.pipeline(name).retriever.database.living_count}

    def add_rows(
        pictures: list[Any],
        licence: str,
        attribution: str,
        captions: list[str] | None = None,
        database: str | None = None,
    ) -> dict[str, Any]:
        """Adds pictures to a database, each a file (handle_file) or one in Base64. Searches find them from then on."""
        limits.check(additions=len(pictures))
        for text in (licence, attribution, *(captions or ())):
            limits.check(prompt_characters=len(text))
        opened = [decoded(sent(each, limits, studio.folder), limits) for each in pictures]
        name = database or studio.names[0]
        rows = add(studio, name, opened, licence, attribution, captions or ())
        return {"rows": rows.tolist(), "note": studio.popular.note(studio.pipeline(name))}

    return [search_rows, describe, count_removal, remove_rows, add_rows]


def inspecting(studio: Studio) -> list[Callable[..., Any]]:
    """Returns the endpoint of the tab Inspect that does not sample."""

    def inspect_picture(picture: Any, k: int = 8, database: str | None = None) -> dict[str, Any]:
        """Returns the record of a picture, what its signature proves, its neighbours, and whether it is a copy."""
        studio.limits.check(rows=k)
        found = inspected(studio, sent(picture, studio.limits, studio.folder))
        nearest = nearest_rows(studio, found, database, k)
        return {
            "record": found.record,
            "note": found.note or found.obstacle,
            "database": found.place,
            "neighbours": _listed(record_rows(studio, found)),
            "nearest": _listed(nearest),
            "copy": copy_words(found, nearest),
            "signature": None if found.signature is None else found.signature.words(),
        }

    return [inspect_picture]


def remaking(studio: Studio) -> list[Callable[..., Any]]:
    """Returns the endpoint of the tab Inspect that samples."""

    def make_again(picture: Any, pictures: list[Any] | None = None) -> dict[str, Any]:
        """Makes an image again from its record, and says whether all pixels are equal.

        An image that was made from pictures needs these, too. No path in the record is opened.
        """
        studio.limits.check(additions=len(pictures or ()))
        data, *given = (sent(each, studio.limits, studio.folder) for each in (picture, *(pictures or ())))
        found = inspected(studio, data)
        (event,) = [each for each in studio.draw([again(studio, found, given)]) if isinstance(each, Drawn)]
        result = compared(found.picture, decoded_png(event.png))
        return {**vars(result), "words": result.words(), "png": base64.b64encode(event.png).decode()}

    return [make_again]


def _listed(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Returns rows as JSON, with their pictures."""
    return [{**row.facts(), "png": None if row.png is None else base64.b64encode(row.png).decode()} for row in rows]
