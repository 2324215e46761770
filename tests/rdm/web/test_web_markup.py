"""What is shown of an image and its neighbours: escaped texts, alternative texts, and switches with their state."""

import re
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from rdm.web import markup
from rdm.web.asking import Ask, jobs
from rdm.web.drawing import Drawn, Step
from rdm.web.studio import Studio
from rdm.web.switches import Board, Card, Slot, again, pinned, slots_of

EVIL = '"><script>'


@pytest.fixture
def board(studio: Studio) -> Iterator[Board]:
    asked = jobs(studio, Ask(words=[EVIL, "a flag"], k=3, settings={"steps": 2}))
    yield Board(tuple(Card.of(event) for event in studio.draw(asked) if isinstance(event, Drawn)))


def test_the_texts_of_users_are_escaped_and_every_picture_has_an_alternative_text(board: Board) -> None:
    html = markup.board(board)
    assert "<script" not in html and "&lt;script&gt;" in html
    images = re.findall(r"<img [^>]*>", html)
    assert len(images) == 2 * (1 + 3)
    assert all(re.search(r'alt="[^"]+" src="data:image/png;base64,[A-Za-z0-9+/=]+"', image) for image in images)
    assert html.count('alt="a flag"') == 1
    buttons = re.findall(r"<button [^>]*>", html)
    assert all('aria-label="' in button and 'data-card="' in button for button in buttons)
    slot = board.slot(1, 0)
    for key in ("caption", "licence", "attribution"):
        assert slot.about[key] and slot.about[key] in html
    assert f"<b>{slot.about['similarity']:.2f}</b>" in html
    assert "http" not in re.sub(r"&lt;.*?&gt;|<details>.*?</details>", "", html)  # only attributions name addresses


def test_a_switch_shows_its_state(board: Board) -> None:
    off = board.switched(1, 2)
    assert [slot.on for slot in off.cards[1].slots] == [True, True, False] and len(off.cards[1].chosen) == 2
    assert markup.board(off).count('aria-pressed="false" title="neighbour 3') == 1 + 2  # and no pin is pressed
    assert off.switched(1, 2).cards[1].chosen == board.cards[1].chosen
    assert off.cards[1].is_changed and not off.cards[0].is_changed and not off.switched(1, 2).cards[1].is_changed
    assert markup.board(off).count('class="due"') == 1 and 'class="due"' not in markup.board(board)
    pin = off.pinned(1, 2)
    assert pin.slot(1, 2).pinned and pin.slot(1, 2).on and pin.pins() == [pin.slot(1, 2)]
    assert not board.slot(1, 2).pinned  # a change makes another board
    assert pin.pinned(1, 2).pins() == []


def test_another_neighbour_takes_the_place_of_the_one_it_was_looked_for(board: Board) -> None:
    found = tuple(Slot(b"x", {"caption": name}, row, "flags") for row, name in enumerate("ab"))
    opened = replace(board.asked(0, 1), found=found)
    changed = opened.taken(1)
    assert changed.slot(0, 1).source == 1 and changed.slot(0, 1).new and changed.opened is None
    assert changed.cards[0].chosen == [board.slot(0, 0).source, 1, board.slot(0, 2).source]
    assert 'title="take b"' in markup.found(found)
    with pytest.raises(ValueError, match="choose one first"):
        changed.taken(0)


@pytest.mark.parametrize("numbers", [(2, 0), (-1, 0), (0, 3), (True, 0), ("0", 0), (None, None), (0.0, 1)])
def test_a_number_that_is_not_on_the_page_is_refused(board: Board, numbers: tuple) -> None:
    for change in (board.switched, board.pinned, board.asked):
        with pytest.raises(ValueError, match="on the page"):
            change(*numbers)


def test_drawing_again_shows_what_one_neighbour_does(board: Board, studio: Studio) -> None:
    def redrawn_card(card: Card) -> Card:
        (image,) = (event for event in studio.draw([again(studio.pipeline(), card)]) if isinstance(event, Drawn))
        return card.redrawn(image)

    def redrawn(board: Board) -> Card:
        return redrawn_card(board.cards[1])

    same = redrawn(board)
    assert same.drawn.png == board.cards[1].drawn.png  # the same neighbours, seed and settings: the same file
    fewer = redrawn(board.switched(1, 0))
    assert fewer.drawn.png != board.cards[1].drawn.png and fewer.first is board.cards[1].drawn
    assert [each["row"] for each in fewer.drawn.record["neighbours"]] == [
        board.slot(1, place).source for place in (1, 2)
    ]
    assert len(fewer.slots) == 3 and not fewer.slots[0].on and not fewer.is_changed
    back = board.with_card(1, fewer).switched(1, 0)
    assert back.cards[1].is_changed and redrawn_card(back.cards[1]).drawn.png == board.cards[1].drawn.png
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 30, 3), dtype=np.uint8))
    given = redrawn(board.put(1, 0, Slot.of_picture(picture)))
    assert given.drawn.png not in (board.cards[1].drawn.png, fewer.drawn.png)
    assert "row" not in given.drawn.record["neighbours"][0]
    nothing = board.switched(1, 0).switched(1, 1).switched(1, 2)
    with pytest.raises(ValueError, match="no neighbour"):
        again(studio.pipeline(), nothing.cards[1])


def test_pinned_neighbours_come_first_in_the_next_images_also_of_another_place(board: Board, studio: Studio) -> None:
    pins = board.pinned(1, 1).pins()
    for job in jobs(studio, Ask(words=["the sun"], n=2, k=3, settings={"steps": 2})):
        rows = pinned(job, pins).request.retrieved.rows
        assert rows.shape == (2, 3) and set(rows[:, 0]) == {pins[0].source}
        kept = [row for row in job.request.retrieved.rows[0].tolist() if row != pins[0].source][:2]
        assert rows[0, 1:].tolist() == kept
        (image, _) = (event for event in studio.draw([pinned(job, pins)]) if isinstance(event, Drawn))
        assert [slot.pinned for slot in slots_of(image, pins)] == [True, False, False]
    foreign = replace(pins[0], database="another")
    rows = pinned(job, [foreign]).request.retrieved.rows
    assert rows[0, 0] < 0  # its picture stands for it
    assert pinned(job, []) is job


def test_progress_says_how_far_it_is() -> None:
    html = markup.progress(Step(0.25, b"png"), "image 1 of <2>")
    assert 'value="0.250"' in html and "&lt;2&gt;" in html and 'role="status"' in html and "cG5n" in html
    assert "<progress" not in markup.progress(None, "stopped")


@pytest.mark.parametrize("least", [-1.0, 1.0])
def test_the_neighbours_of_a_draft_are_switched_off_until_it_is_drawn_again(studio: Studio, least: float) -> None:
    settings = {"steps": 2, "retrieve_below": least}
    (job,) = jobs(studio, Ask(words=["a flag"], k=2, settings=settings))
    (card,) = (Card.of(event) for event in studio.draw([job]) if isinstance(event, Drawn))
    is_draft = least < 0
    assert [slot.on for slot in card.slots] == [not is_draft] * 2 and not card.is_changed
    words = "this is the draft, which saw no neighbour" if is_draft else "drawn after a draft"
    assert f"{words} (similarity to the text" in markup.card(card, 0)
    if is_draft:
        board = Board((card,)).switched(0, 1)
        assert board.cards[0].is_changed and board.cards[0].chosen == [card.slots[1].source]
        (shown,) = (each for each in studio.draw([again(job.pipeline, board.cards[0])]) if isinstance(each, Drawn))
        assert "draft" not in shown.record and shown.record["tokens"] == "neighbours"
        assert [each["row"] for each in shown.record["neighbours"]] == [card.slots[1].source]
