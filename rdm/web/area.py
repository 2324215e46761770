"""The area of a tab that shows images: their progress, and each beside its neighbours, which are switches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import gradio as gr

from rdm.web import markup, uploads
from rdm.web.answers import SAMPLING, answering
from rdm.web.asking import checked_words
from rdm.web.drawing import Drawn, Job, Step
from rdm.web.pieces import pictures as clickable
from rdm.web.pieces import session_of
from rdm.web.rows import search
from rdm.web.studio import RULES, Studio
from rdm.web.switches import Board, Card, Slot, again, pinned

SEARCHED = 10  # pictures that a search for another neighbour shows


@dataclass(frozen=True, eq=False)
class Area:
    """The components of an area.

    Attributes:
        studio: what draws.
        state: the :class:`Board` of the session.
        said: the progress.
        shown: the images. The button ``edit`` of an image causes the event ``edit``.
        panel: the column that looks for another neighbour, with its title and the pictures that it found.
        html: returns the HTML of the images.
    """

    studio: Studio
    state: gr.State
    said: gr.HTML
    shown: gr.HTML
    panel: gr.Column
    title: gr.HTML
    found: gr.HTML
    html: Callable[[Board], str]

    @property
    def outputs(self) -> list[Any]:
        """What :meth:`draw` yields the values of."""
        return [self.state, self.said, self.shown]

    @property
    def changed(self) -> list[Any]:
        """What :meth:`board` returns the values of."""
        return [self.state, self.shown, self.panel, self.title, self.found]

    def board(self, board: Board) -> tuple[Any, ...]:
        """Returns the values of a changed board."""
        title = ""
        if board.opened is not None:
            title = f"In the place of {board.slot(*board.opened).caption}, neighbour {board.opened[1] + 1}:"
        opened = gr.update(visible=board.opened is not None)
        return board, self.html(board), opened, markup.words(title), markup.found(board.found)

    def draw(self, jobs: Callable[[], Sequence[Job]], board: Board, session: str) -> Iterator[Any]:
        """Yields the values of :attr:`outputs` while images are drawn, which take the places of those before.

        Args:
            jobs: returns what is drawn.
            board: what was drawn before; its pinned neighbours stay.
            session: who asks.
        """
        yield gr.skip(), markup.progress(Step(0.0), "looking for neighbours"), gr.skip()
        pins, cards, preview = board.pins(), [], None
        asked = [pinned(job, pins) for job in jobs()]
        order, count = [job.place for job in asked], sum(len(job.request.seeds) for job in asked)
        for event in self.studio.draw(asked, session):
            if isinstance(event, Drawn):
                cards.append(Card.of(event, pins))
                cards.sort(key=lambda card: (card.drawn.number, order.index(card.drawn.place)))
                shown = Board(tuple(cards))
                yield shown, gr.skip(), self.html(shown)
            else:
                preview = event.preview or preview
                words = f"image {min(count, len(cards) + 1)} of {count}"
                yield gr.skip(), markup.progress(event, words, preview), gr.skip()
        yield gr.skip(), said_at_the_end(len(cards), count), gr.skip()

    def draw_again(self, board: Board, number: Any, session: str) -> Iterator[Any]:
        """Yields the values of :attr:`outputs` while one image is drawn again, with the neighbours that are on."""
        card = board.card(number)
        yield gr.skip(), markup.progress(Step(0.0), f"{card.title}, again", card.drawn.png), gr.skip()
        preview, drawn = card.drawn.png, 0
        for event in self.studio.draw([again(self.studio.pipeline(card.drawn.place), card)], session):
            if isinstance(event, Drawn):
                drawn += 1
                board = board.with_card(number, card.redrawn(event))
                yield board, gr.skip(), self.html(board)
            else:
                preview = event.preview or preview
                yield gr.skip(), markup.progress(event, f"{card.title}, again", preview), gr.skip()
        yield gr.skip(), said_at_the_end(drawn, 1), gr.skip()


def said_at_the_end(drawn: int, count: int) -> str:
    """Returns the words below a finished drawing; none if nothing is missing."""
    return "" if drawn == count else markup.progress(None, f"stopped after {drawn} of {count} images")


def found_slots(studio: Studio, board: Board, text: str) -> list[Slot]:
    """Returns the rows nearest to a text, to take the place of the neighbour that is to be replaced.

    Raises:
        ValueError: there is no text, it is too long, or no neighbour is to be replaced.
    """
    words = checked_words(studio, [text or ""])
    if board.opened is None or not words:
        raise ValueError("got no text to search for, expected what the picture should show; write it")
    name = board.card(board.opened[0]).drawn.place.partition(RULES)[0]
    return [
        Slot(row.png, {**row.about, "similarity": row.similarity}, row.number, name)
        for row in search(studio.pipeline(name), words[0], k=SEARCHED)
        if row.png is not None
    ]


def area(studio: Studio, html: Callable[[Board], str] = markup.board) -> Area:
    """Builds an area within the open column.

    Args:
        studio: what draws.
        html: returns the HTML of the images.
    """
    state = gr.State(Board(), time_to_live=3600)
    said = gr.HTML(elem_classes="said")
    with gr.Column(visible=False) as panel, gr.Column(elem_classes="panel"):
        title = gr.HTML()
        with gr.Row():
            words = gr.Textbox("", label="Search the database", max_lines=1, scale=2, elem_classes="search")
            look = gr.Button("Search", min_width=80, scale=0)
            upload = gr.UploadButton("Upload", file_types=["image"], min_width=80, scale=0)
            close = gr.Button("Close", min_width=80, scale=0)
        found = clickable()
    shown = clickable(html(Board()))
    built = Area(studio, state, said, shown, panel, title, found, html)

    def click(board: Board, event: gr.EventData) -> tuple[Any, ...]:
        what, card, slot = (event._data.get(name) for name in ("what", "card", "slot"))
        changes = {"switch": board.switched, "pin": board.pinned, "swap": board.asked}
        return built.board(changes[what](card, slot))

    def take(board: Board, event: gr.EventData) -> tuple[Any, ...]:
        return built.board(board.taken(event._data.get("card")))

    def search(board: Board, text: str) -> tuple[Any, ...]:
        return built.board(replace(board, found=tuple(found_slots(studio, board, text))))

    def uploaded(board: Board, file: str) -> tuple[Any, ...]:
        picture = uploads.opened(file, studio.limits, studio.folder)
        return built.board(replace(board, found=(Slot.of_picture(picture),)).taken(0))

    def closed(board: Board) -> tuple[Any, ...]:
        return built.board(replace(board, opened=None, found=()))

    def redraw(board: Board, event: gr.EventData, request: gr.Request) -> Iterator[Any]:
        yield from built.draw_again(board, event._data.get("card"), session_of(request))

    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    for event, function in ((shown.select, click), (found.select, take), (close.click, closed)):
        event(answering(function), state, built.changed, queue=False, **quiet)
    gr.on([look.click, words.submit], answering(search), [state, words], built.changed, **quiet)
    upload.upload(answering(uploaded), [state, upload], built.changed, **quiet)
    shown.submit(answering(redraw), state, built.outputs, concurrency_id=SAMPLING, concurrency_limit=1, **quiet)
    return built


def drawing(
    built: Area, function: Callable[..., Iterator[Any]], when: Sequence[Any], fields: set[Any], stop: gr.Button
) -> None:
    """Binds a handler that draws into an area to the events that begin and end it.

    Args:
        built: the area.
        function: gets the filled fields and the state of the area, and the request; yields what :meth:`Area.draw` does.
        when: the events that begin.
        fields: the fields.
        stop: the button that ends it.
    """

    def end(request: gr.Request) -> str:
        built.studio.stop(session_of(request))
        return markup.progress(None, "stopped")

    event = gr.on(
        when,
        answering(function),
        {*fields, built.state},
        built.outputs,
        show_progress="minimal",
        show_progress_on=built.said,  # which also says the place in the queue
        concurrency_id=SAMPLING,
        concurrency_limit=1,
        api_visibility="private",
    )
    stop.click(end, None, built.said, cancels=event, show_progress="hidden", queue=False, api_visibility="private")
