"""Neighbours as switches: what the page shows of each image, and what the user changed in it. Nothing here draws."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from PIL import Image

from rdm.sampling.given import IN_MEMORY
from rdm.sampling.neighbours import with_neighbours
from rdm.sampling.pipeline import Pipeline
from rdm.sampling.request import ALONE, together
from rdm.web.drawing import Drawn, Job, png_file
from rdm.web.studio import RULES

SIDE = 128  # longest side in pixels of an uploaded picture as it is shown


@dataclass(frozen=True, eq=False)
class Slot:
    """A neighbour of an image.

    Attributes:
        png: its picture, a PNG file.
        about: what is shown of it: ``similarity`` (None if it was not looked up), ``caption``, ``licence``,
            ``attribution``.
        source: its row in the database, or the picture that a user uploaded in its place.
        database: the name of the database that the row is in.
        on: whether the model sees it.
        pinned: whether it also stays for the images that are drawn next.
        new: whether it was put in the place of another one.
    """

    png: bytes
    about: Mapping[str, Any]
    source: int | Image.Image
    database: str
    on: bool = True
    pinned: bool = False
    new: bool = False

    @property
    def caption(self) -> str:
        """What it shows, as far as is known."""
        return str(self.about.get("caption") or "a picture without a caption")

    @classmethod
    def of_picture(cls, picture: Image.Image) -> Slot:
        """Returns a picture that a user uploaded."""
        small = picture.copy()
        small.thumbnail((SIDE, SIDE))
        about = {"caption": "your picture", "licence": "yours", "attribution": "You uploaded it."}
        return cls(png_file(small), about, picture, "")

    def for_database(self, name: str) -> int | Image.Image:
        """Returns its row, or its picture if it is none or the row is of another database."""
        if isinstance(self.source, Image.Image) or self.database == name:
            return self.source
        return Image.open(io.BytesIO(self.png)).convert("RGB")


@dataclass(frozen=True, eq=False)
class Card:
    """One image with its neighbours.

    Attributes:
        drawn: the image as it was drawn last.
        slots: its neighbours, also those that are switched off.
        seen: the neighbours that it was drawn with.
        first: the image as it was drawn first, with the neighbours that were found.
    """

    drawn: Drawn
    slots: tuple[Slot, ...]
    seen: tuple[int | Image.Image, ...]
    first: Drawn

    @classmethod
    def of(cls, drawn: Drawn, pins: Sequence[Slot] = ()) -> Card:
        """Returns the card of an image as it was drawn, see :func:`slots_of`."""
        slots = slots_of(drawn, pins)
        return cls(drawn, slots, tuple(slot.source for slot in slots if slot.on), drawn)

    @property
    def is_changed(self) -> bool:
        """Whether the model is to see other neighbours than it saw."""
        chosen = self.chosen
        same = [now is then or now == then for now, then in zip(chosen, self.seen, strict=False)]
        return len(chosen) != len(self.seen) or not all(same)

    @property
    def chosen(self) -> list[int | Image.Image]:
        """The neighbours that the model is to see."""
        return [slot.source for slot in self.slots if slot.on]

    @property
    def title(self) -> str:
        """What was asked for."""
        query = str(self.drawn.record["query"])
        return "your picture" if query == IN_MEMORY else query

    def redrawn(self, drawn: Drawn) -> Card:
        """Returns the card with the image as it was drawn with the chosen neighbours."""
        scores = iter(neighbour["similarity"] for neighbour in drawn.record["neighbours"])
        slots = [
            replace(slot, about={**slot.about, "similarity": next(scores)}) if slot.on else slot for slot in self.slots
        ]
        return replace(self, drawn=drawn, slots=tuple(slots), seen=tuple(self.chosen))


@dataclass(frozen=True, eq=False)
class Board:
    """All images that the page shows to one user, in order. A change returns another board.

    Attributes:
        cards: the images.
        opened: the numbers of a card and of its slot for which another neighbour is looked for; None if there is none.
        found: what was found for it.
    """

    cards: tuple[Card, ...] = ()
    opened: tuple[int, int] | None = None
    found: tuple[Slot, ...] = field(default=())

    def card(self, number: Any) -> Card:
        """Returns a card by its number.

        Raises:
            ValueError: there is none of this number.
        """
        return self.cards[_place(number, self.cards, "image")]

    def slot(self, card: Any, slot: Any) -> Slot:
        """Returns a neighbour by the numbers of its card and of itself.

        Raises:
            ValueError: there is none of these numbers.
        """
        slots = self.card(card).slots
        return slots[_place(slot, slots, "neighbour")]

    def switched(self, card: Any, slot: Any) -> Board:
        """Returns the board with a neighbour switched off, or on again."""
        return self.put(card, slot, replace(self.slot(card, slot), on=not self.slot(card, slot).on))

    def pinned(self, card: Any, slot: Any) -> Board:
        """Returns the board with a neighbour pinned, which also switches it on, or not pinned any more."""
        before = self.slot(card, slot)
        return self.put(card, slot, replace(before, pinned=not before.pinned, on=True))

    def asked(self, card: Any, slot: Any) -> Board:
        """Returns the board with a neighbour for which another one is looked for."""
        self.slot(card, slot)
        return replace(self, opened=(card, slot), found=())

    def taken(self, number: Any) -> Board:
        """Returns the board with one of the found neighbours in the place of the one it was looked for."""
        if self.opened is None:
            raise ValueError("no neighbour is to be replaced; choose one first")
        found = self.found[_place(number, self.found, "found picture")]
        return replace(self.put(*self.opened, replace(found, new=True)), opened=None, found=())

    def put(self, card: Any, slot: Any, new: Slot) -> Board:
        """Returns the board with a neighbour replaced."""
        self.slot(card, slot)
        slots = (*self.cards[card].slots[:slot], new, *self.cards[card].slots[slot + 1 :])
        return self.with_card(card, replace(self.cards[card], slots=slots))

    def with_card(self, number: int, card: Card) -> Board:
        """Returns the board with another card in the place of one."""
        return replace(self, cards=(*self.cards[:number], card, *self.cards[number + 1 :]))

    def pins(self) -> list[Slot]:
        """Returns the pinned neighbours of all cards, each once."""
        found: dict[Any, Slot] = {}
        for slot in (slot for card in self.cards for slot in card.slots if slot.pinned):
            source = slot.source if isinstance(slot.source, int) else id(slot.source)
            found.setdefault((slot.database, source), slot)
        return list(found.values())


def slots_of(drawn: Drawn, pins: Sequence[Slot] = ()) -> tuple[Slot, ...]:
    """Returns the neighbours of an image as it was drawn. The first ones are the pinned ones, if there are any.

    They are switched off if the model saw the query alone, as that of a draft does.
    """
    database = drawn.place.partition(RULES)[0]
    found = zip(drawn.neighbours, drawn.record["neighbours"], strict=True)
    slots, on = [], drawn.record["tokens"] not in ALONE
    for number, (png, about) in enumerate(found):
        if number < len(pins) and drawn.samples.request.asked.get("neighbours") == "chosen":
            slots.append(replace(pins[number], about={**pins[number].about, "similarity": about["similarity"]}, on=on))
        else:
            slots.append(Slot(png, about, about["row"], database, on))
    return tuple(slots)


def pinned(job: Job, pins: Sequence[Slot]) -> Job:
    """Returns a job whose images have the pinned neighbours first, and then their own ones up to the same number.

    Raises:
        ValueError: the model does not see the neighbours of this job.
    """
    if not pins:
        return job
    kept = [pin.for_database(job.place.partition(RULES)[0]) for pin in pins]
    parts = []
    for place, rows in enumerate(job.request.retrieved.rows.tolist()):
        others = [row for row in rows if row not in kept][: max(0, len(rows) - len(kept))]
        parts.append(with_neighbours(job.pipeline, job.request, place, [*kept, *others]))
    return replace(job, request=together(parts))


def with_rows(job: Job, rows: Sequence[int] | None) -> Job:
    """Returns a job whose images all have the given rows as neighbours; as it is if there are none.

    Raises:
        ValueError: see :func:`rdm.sampling.neighbours.with_neighbours`.
    """
    if rows is None:
        return job
    parts = [with_neighbours(job.pipeline, job.request, place, rows) for place in range(len(job.request.seeds))]
    return replace(job, request=together(parts))


def again(pipeline: Pipeline, card: Card) -> Job:
    """Returns the job that draws an image again with the chosen neighbours and the same seed.

    Raises:
        ValueError: no neighbour is chosen, or see :func:`rdm.sampling.neighbours.with_neighbours`.
    """
    first = card.first.samples
    request = with_neighbours(pipeline, replace(first.request, seeds=first.seeds), 0, card.chosen)
    return Job(card.drawn.place, pipeline, request, first.settings.one_draw)


def _place(number: Any, among: Sequence[Any], what: str) -> int:
    if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < len(among):
        raise ValueError(f"got {what} {number!r}, expected one of the {len(among)} on the page; draw again")
    return number
