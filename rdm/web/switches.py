"""Neighbours as switches: what the page shows of each image, and what the user changed in it. Nothing here draws."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from PIL import Image

from rdm.web.drawing import Drawn


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


@dataclass(frozen=True, eq=False)
class Card:
    """One image with its neighbours.

    Attributes:
        drawn: the image as it was drawn last.
        slots: its neighbours, also those that are switched off.
        before: the PNG file of the image that it was drawn as first; None if it was drawn once.
    """

    drawn: Drawn
    slots: tuple[Slot, ...]
    before: bytes | None = None

    @property
    def chosen(self) -> list[int | Image.Image]:
        """The neighbours that the model is to see."""
        return [slot.source for slot in self.slots if slot.on]

    @property
    def title(self) -> str:
        """What was asked for."""
        return str(self.drawn.record["query"])


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


def slots_of(drawn: Drawn, pinned: Sequence[Slot] = ()) -> tuple[Slot, ...]:
    """Returns the neighbours of an image that was drawn with its own ones; the first ones may be pinned."""
    database = drawn.place.partition(": ")[0]
    found = zip(drawn.neighbours, drawn.record["neighbours"], strict=True)
    own = [Slot(png, about, about["row"], database) for png, about in found]
    return (*pinned, *own[len(pinned) :])


def _place(number: Any, among: Sequence[Any], what: str) -> int:
    if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < len(among):
        raise ValueError(f"got {what} {number!r}, expected one of the {len(among)} on the page; draw again")
    return number
