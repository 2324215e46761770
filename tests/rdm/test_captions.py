"""Texts about drawings: what they say is what they ask for, and no colour that is not there."""

import numpy as np
import pytest

from ldm.data.colours import COLOURS
from rdm.models.captions import HUES, bare_name, facts_of, positives, shown_name, text_about, with_article

APPLE = {
    "caption": "red apple",
    "keywords": "fruit, red, ripe",
    "category": "food-drink",
    "subcategory": "food-fruit",
    "style": "openmoji-line",
}
ICON = {"caption": "Box Open", "keywords": "", "style": "kameleon"}


def test_names_without_and_with_the_colours_that_are_there() -> None:
    assert bare_name("large red Square") == "large square"
    assert bare_name("orange") == "orange" and bare_name("black cat") == "black cat"
    assert shown_name("red and blue kite", ("blue",)) == "and blue kite"
    assert shown_name("red apple", ("red", "green")) == "red apple"
    assert shown_name("red apple", ("black",)) == "apple"
    assert shown_name("orange", ("orange",)) == "orange"


def test_facts_of_a_picture() -> None:
    assert facts_of(APPLE, ("black",)) == {
        "name:apple",
        "word:apple",
        "word:fruit",
        "word:ripe",
        "category:food-drink",
        "subcategory:food-fruit",
        "style:openmoji-line",
        "colour:black",
    }
    assert facts_of(ICON, ()) == {"name:box open", "word:box open", "word:box", "word:open", "style:kameleon"}


def test_positives_have_all_that_is_asked() -> None:
    facts = [facts_of(APPLE, ("red", "green")), facts_of(APPLE, ("black",)), facts_of(ICON, ("red",))]
    asked = [{"name:apple"}, {"name:apple", "colour:red"}, {"colour:red"}, {"colour:red", "colour:green"}, set()]
    expected = [[1, 1, 1, 1, 1], [1, 0, 0, 0, 1], [0, 0, 1, 0, 1]]
    assert positives(facts, [frozenset(wanted) for wanted in asked]).int().tolist() == expected


@pytest.mark.parametrize("colours", [("red", "green"), ("black",), ()])
@pytest.mark.parametrize("item", [APPLE, ICON], ids=["emoji", "icon"])
def test_texts_ask_for_what_they_say(item: dict[str, str], colours: tuple[str, ...]) -> None:
    facts = facts_of(item, colours)
    seen = set()
    for seed in range(600):
        text, asked = text_about(item, colours, np.random.default_rng(seed))
        words = set(text.split())
        assert asked and asked <= facts, text
        said = words & set(COLOURS)
        assert said == {fact.removeprefix("colour:") for fact in asked if fact.startswith("colour:")}, text
        for fact in asked:
            key, _, value = fact.partition(":")
            seen.add(key)
            assert set(value.replace("-", " ").split()) <= words, text
        assert ("style:" + item["style"] in asked) == (item["style"].replace("-", " ") in text), text
    everything = {fact.partition(":")[0] for fact in facts}
    assert seen == everything - ({"word"} if item is ICON else set())
    assert text_about(item, colours, np.random.default_rng(3)) == text_about(item, colours, np.random.default_rng(3))


def test_colours_are_worded_in_several_ways() -> None:
    texts = {text_about(APPLE, ("red",), np.random.default_rng(seed))[0] for seed in range(3000)}
    assert {
        "red apple",
        "a red apple",
        "a picture of a red apple",
        "apple",
        "a food drink in red",
        "a red thing",
    } <= texts
    plain = {text_about({"caption": "apple"}, ("red", "green"), np.random.default_rng(seed))[0] for seed in range(3000)}
    assert {"red and green apple", "green and red apple", "an apple that is red", "apple in green"} <= plain


def test_hues_and_articles() -> None:
    assert {"red", "beige", "brown"} <= HUES and not HUES & {"black", "white", "grey"}
    assert [with_article(word) for word in ("apple", "red apple")] == ["an apple", "a red apple"]
