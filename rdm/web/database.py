"""The tab Database: rows are searched, added and removed, and the page says what a database is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from rdm.web import row_markup, uploads
from rdm.web.answers import answering
from rdm.web.changes import add, fresh, removal, remove
from rdm.web.pieces import pictures, whole
from rdm.web.rows import ROWS, Row, row_numbers, rows_in_words, search, shown_rows, summary_of
from rdm.web.studio import Studio, parts

HINT = "Search by a text, by a picture or by both. Without either, the first rows are listed."
# On a narrow screen, the rows are below the fields.
SCROLL = "() => matchMedia('(max-width: 640px)').matches && document.querySelector('.shelf').scrollIntoView()"
QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}


@dataclass(frozen=True, eq=False)
class Shelf:
    """The part of the tab that shows a database.

    Attributes:
        studio: the studio.
        name: the field of the database.
        only: the field of the rules.
        rows: the state with the rows that are shown.
        facts: what the database is.
        message: what was done.
        shown: the rows.
        marked: the field of the rows that are marked for removal.
        sources: the field of the sources that are to be removed.
    """

    studio: Studio
    name: gr.Dropdown
    only: gr.Dropdown
    rows: gr.State
    facts: gr.HTML
    message: gr.HTML
    shown: gr.HTML
    marked: gr.Textbox
    sources: gr.Dropdown

    @property
    def outputs(self) -> list[Any]:
        """What :meth:`show` returns the values of."""
        return [self.rows, self.shown, self.message, self.facts, self.marked]

    def show(self, name: str, rows: Sequence[Row], message: str = "", marked: str = "") -> tuple[Any, ...]:
        """Returns the values for other rows."""
        return tuple(rows), self.tiles(name, rows, marked), row_markup.said(message), self.about(name), marked

    def tiles(self, name: str, rows: Sequence[Row], marked: str) -> str:
        """Returns the HTML of rows, which can be marked if the page may remove them."""
        if not rows:
            return f'<p class="hint">{HINT}</p>'
        database = self.studio.pipeline(name).retriever.database
        marks = set(row_numbers(marked, database).tolist()) if self.studio.allow_changes else None
        return row_markup.tiles(rows, "rows of the database", marks)

    def about(self, name: str) -> str:
        """Returns the HTML that says what a database is."""
        return row_markup.facts(summary_of(fresh(self.studio, name).retriever.database))

    def choices(self, name: str) -> Any:
        """Returns the sources of a database, each with its number of rows, for the field of sources."""
        counts = summary_of(self.studio.pipeline(name).retriever.database).sources
        named = [(f"{source.removesuffix('#')} ({count:,})", source) for source, count in counts.items() if source]
        return gr.update(choices=named if self.studio.allow_changes else [], value=[])

    def rules(self, name: str) -> Any:
        """Returns the rules that are offered for the rows of a database, for the field of rules."""
        known = parts(self.studio.pipeline(name).retriever.database)
        return gr.update(
            choices=[f"{column}={value}" for column, values in known.items() for value in values], value=[]
        )


def tab(studio: Studio) -> list[Any]:
    """Builds the tab within the open ``gr.Tab``, and returns the events that change the rows of a database."""
    first, limits = studio.names[0], studio.limits
    with gr.Row(elem_classes="bench"):
        with gr.Column(scale=0, min_width=330, elem_classes="ask"):
            name = gr.Dropdown(studio.names, value=first, label="Database")
            text = gr.Textbox("", label="Text", placeholder="a red guitar", max_lines=1)
            picture = gr.Image(type="filepath", image_mode=None, label="Picture", height=120, sources=["upload"])
            info = "COLUMN=VALUE; two values of one column allow both."
            only = gr.Dropdown([], multiselect=True, allow_custom_value=True, label="Only rows with", info=info)
            with gr.Row(elem_classes="go"):
                look = gr.Button("Search", variant="primary", min_width=100)
                k = whole("Rows", ROWS, limits.rows)
            with gr.Column(visible=studio.allow_changes):
                adding, removing = adder(limits.additions), remover()
        with gr.Column(scale=1, min_width=320, elem_classes="shelf"):
            facts = gr.HTML()
            message = gr.HTML()
            shown = pictures(f'<p class="hint">{HINT}</p>')
    rows = gr.State((), time_to_live=3600)
    shelf = Shelf(studio, name, only, rows, facts, message, shown, removing.marked, removing.sources)

    def looked(
        name: str, text: str, file: str | None, only: list[str] | None, k: int | None, marked: str
    ) -> tuple[Any, ...]:
        limits.check(prompt_characters=len(text), rows=k)
        opened = None if file is None else uploads.opened(file, limits, studio.folder)
        return shelf.show(name, search(fresh(studio, name), text, opened, only or (), k or ROWS), "", marked)

    def chosen(name: str) -> tuple[Any, ...]:
        return *shelf.show(name, ()), shelf.rules(name), shelf.choices(name)

    def opened() -> tuple[Any, ...]:
        return shelf.about(first), shelf.rules(first), shelf.choices(first)

    others = [*shelf.outputs, only, removing.sources]
    asked = [name, text, picture, only, k, removing.marked]
    looks = gr.on([look.click, text.submit], answering(looked), asked, shelf.outputs, **QUIET)
    looks.success(None, js=SCROLL, api_visibility="private")
    name.change(answering(chosen), name, others, **QUIET)
    gr.on(None, answering(opened), None, [facts, only, removing.sources], **QUIET)  # when the page is loaded
    return [bind_adding(shelf, adding), bind_removing(shelf, removing)]


@dataclass(frozen=True, eq=False)
class Adder:
    """The fields of an addition."""

    files: gr.File
    licence: gr.Textbox
    attribution: gr.Textbox
    captions: gr.Textbox
    button: gr.Button


def adder(most: int) -> Adder:
    """Builds the fields of an addition, of so many pictures at most."""
    with gr.Accordion("Add pictures", open=False):
        return Adder(
            gr.File(file_count="multiple", file_types=["image"], label=f"Pictures, up to {most}", height=110),
            gr.Textbox("", label="Licence", placeholder="CC-BY-4.0", max_lines=1),
            gr.Textbox("", label="Attribution", placeholder="who made them", max_lines=1),
            gr.Textbox("", label="Captions", info="One line for each picture; may stay empty.", lines=2),
            gr.Button("Add", variant="primary"),
        )


def bind_adding(shelf: Shelf, given: Adder) -> Any:
    """Binds the button that adds pictures, and returns the event."""
    studio, limits = shelf.studio, shelf.studio.limits

    def added(name: str, files: list[str] | None, licence: str, attribution: str, captions: str) -> tuple[Any, ...]:
        limits.check(additions=len(files or ()))
        for line in (licence, attribution, *captions.splitlines()):
            limits.check(prompt_characters=len(line))
        opened = [uploads.opened(file, limits, studio.folder) for file in files or ()]
        numbers = add(studio, name, opened, licence, attribution, captions.splitlines())
        for file in files or ():
            Path(file).unlink(missing_ok=True)
        database = studio.pipeline(name).retriever.database
        rows = shown_rows(database, numbers)
        note = studio.popular.note(studio.pipeline(name))
        message = f"Added {rows_in_words(len(rows))}, which every search finds from now on. {note}"
        return *shelf.show(name, rows, message), None, "", shelf.choices(name)

    return given.button.click(
        answering(added),
        [shelf.name, given.files, given.licence, given.attribution, given.captions],
        [*shelf.outputs, given.files, given.captions, shelf.sources],
        show_progress="minimal",
        api_visibility="private",
    )


@dataclass(frozen=True, eq=False)
class Remover:
    """The fields of a removal."""

    marked: gr.Textbox
    sources: gr.Dropdown
    count: gr.Button
    confirm: gr.Button
    number: gr.State


def remover() -> Remover:
    """Builds the fields of a removal."""
    with gr.Accordion("Remove rows", open=False):
        info = "Or click rows to mark them."
        marked = gr.Textbox("", label="Rows to remove", placeholder="3, 17, 20-25", info=info, max_lines=1)
        sources = gr.Dropdown([], multiselect=True, label="All rows of a source")
        with gr.Row(elem_classes="go"):
            count = gr.Button("Count", min_width=80, scale=0)
            confirm = gr.Button("Remove", variant="stop", min_width=100, visible=False, elem_classes="danger")
    return Remover(marked, sources, count, confirm, gr.State(0))


def bind_removing(shelf: Shelf, given: Remover) -> Any:
    """Binds marks, the count and the confirmation of a removal, and returns the event of the last."""
    studio = shelf.studio

    def unconfirmed() -> tuple[Any, ...]:
        return 0, gr.update(visible=False)

    def mark(name: str, rows: Sequence[Row], marked: str, event: gr.EventData) -> tuple[Any, ...]:
        database, number = studio.pipeline(name).retriever.database, int(event._data.get("card") or 0)
        marks = row_numbers(marked, database).tolist()
        marks = [row for row in marks if row != number] if number in marks else [*marks, number]
        text = ", ".join(map(str, marks))
        return text, shelf.tiles(name, rows, text), *unconfirmed()

    def counted(name: str, marked: str, sources: list[str] | None) -> tuple[Any, ...]:
        what = removal(studio, name, marked, sources or ())
        button = gr.update(visible=len(what.rows) > 0, value=f"Remove {rows_in_words(len(what.rows))}")
        return row_markup.said(f"{what.words()}."), len(what.rows), button

    def removed(name: str, marked: str, sources: list[str] | None, count: int, rows: Sequence[Row]) -> tuple[Any, ...]:
        number = remove(studio, name, marked, sources or (), count)
        database = studio.pipeline(name).retriever.database
        left = [row for row in rows if database.is_alive(row.number)]
        message = (
            f"Removed {rows_in_words(number)}, which no search finds any more; {database.living_count:,} are left."
        )
        return *shelf.show(name, left, message), shelf.choices(name), *unconfirmed()

    buttons = [given.number, given.confirm]
    asked = [shelf.name, given.marked, given.sources]
    shelf.shown.select(
        answering(mark), [shelf.name, shelf.rows, given.marked], [given.marked, shelf.shown, *buttons], **QUIET
    )
    gr.on([given.marked.input, given.sources.input, shelf.name.change], unconfirmed, None, buttons, **QUIET)
    given.count.click(answering(counted), asked, [shelf.message, *buttons], **QUIET)
    return given.confirm.click(
        answering(removed), [*asked, given.number, shelf.rows], [*shelf.outputs, given.sources, *buttons], **QUIET
    )
