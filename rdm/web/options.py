"""Input fields of the sampling settings, made from the one record of them, :class:`rdm.sampling.settings.Settings`."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import gradio as gr
from gradio.components import Component

from rdm.sampling.settings import DEFAULTS, OPTIONS, Option
from rdm.sampling.values import AT_LEAST_0, COUNT, COUNT_OR_NONE, NUMBER, NUMBER_OR_NONE, SHARE, SHARE_ABOVE_0
from rdm.web.asking import LEFT_OUT

WHOLE = (COUNT, COUNT_OR_NONE)
NUMBERS = (*WHOLE, NUMBER, NUMBER_OR_NONE, SHARE, SHARE_ABOVE_0, AT_LEAST_0)


@dataclass(frozen=True, eq=False)
class Form:
    """The input fields of a tab that draws.

    Attributes:
        asked: the fields by what they say, such as ``seed``.
        settings: those of sampling settings by the name of the setting.
        draw: the button that begins.
        stop: the button that ends.
    """

    asked: dict[str, Any]
    settings: dict[str, Component]
    draw: gr.Button
    stop: gr.Button

    def fields(self) -> set[Component]:
        """Returns all fields."""
        return {*self.asked.values(), *self.settings.values()}

    def filled(self, given: Mapping[Component, Any]) -> dict[str, Any]:
        """Returns what the filled fields say by name; ``settings`` are the sampling settings.

        Raises:
            ValueError: see :func:`values`.
        """
        asked = {name: given[component] for name, component in self.asked.items()}
        return {**asked, "settings": values({name: given[component] for name, component in self.settings.items()})}


def fields(kind: str, without: Collection[str] = ()) -> dict[str, Component]:
    """Returns an input field for each setting of a kind of model, by name.

    Args:
        kind: the kind of model.
        without: settings that have a field elsewhere.
    """
    names = [name for name, known in OPTIONS.items() if kind in known.kinds]
    return {name: field(name, OPTIONS[name]) for name in names if name not in (*without, *LEFT_OUT)}


def field(name: str, known: Option) -> Component:
    """Returns the input field of a setting. If it is empty, the setting has its default, or is off if it can be."""
    default: Any = DEFAULTS[name]
    label = name.replace("_", " ")
    if known.value.names:
        choices: list[Any] = [*([("as usual", "")] if default is None else []), *known.value.names]
        return gr.Dropdown(choices, value=default or "", label=label, info=known.what)
    if known.value in NUMBERS and default is not None:
        precision = 0 if known.value in WHOLE else None
        return gr.Number(default, label=label, info=known.what, precision=precision)
    return gr.Textbox("", label=label, info=f"{known.what}; expected {known.value.expected}", max_lines=1)


def values(given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings in filled input fields, by name.

    Raises:
        ValueError: a text is none that the setting accepts.
    """
    found = {}
    for name, value in given.items():
        known = OPTIONS[name]
        if value == "" or (value is None and not known.value.fits(None)):
            continue
        if isinstance(value, str) and isinstance(known.command_line.get("nargs"), int):
            value = [known.value.read(word) for word in value.split()]
        elif isinstance(value, str):
            value = known.value.of_word(name, value)
        found[name] = value
    return found
