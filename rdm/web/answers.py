"""What the handlers of all tabs share: a failure is one sentence to the user, and the next request works."""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable, Iterator
from typing import Any, TypeVar, get_type_hints

import gradio as gr
from pydantic import TypeAdapter, ValidationError

from ldm.command_line import in_words

LOG = logging.getLogger(__name__)
F = TypeVar("F", bound=Callable[..., Any])
SHOWN = 60  # characters of a wrong value in a message
FAILED = "this request failed, and the log of the page says why; the next one works"
SAMPLING = "model"
"""The ``concurrency_id`` of all events that sample: the queue runs one of them at a time."""


def told(error: Exception) -> gr.Error:
    """Returns what the user is told of an error: our sentence about wrong input, nothing of the inside otherwise."""
    if isinstance(error, gr.Error):
        return error
    if isinstance(error, ValueError | OSError):
        return gr.Error(" ".join(in_words(error).split()), print_exception=False)
    LOG.error("a request failed", exc_info=error)
    return gr.Error(FAILED, print_exception=False)


def answering(function: F) -> F:
    """Decorates a handler, or a generator of answers: its errors become messages of one line, see :func:`told`."""
    if inspect.isgeneratorfunction(function):

        @functools.wraps(function)
        def answers(*args: Any, **kwargs: Any) -> Iterator[Any]:
            try:
                yield from function(*args, **kwargs)
            except Exception as error:
                raise told(error) from error

        return answers  # type: ignore[return-value]

    @functools.wraps(function)
    def answer(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except Exception as error:
            raise told(error) from error

    return answer  # type: ignore[return-value]


def typed(function: F) -> F:
    """Decorates an endpoint: an argument of another type than its annotation is refused in one line."""
    hints = {name: hint for name, hint in get_type_hints(function).items() if name != "return"}
    adapters = {name: TypeAdapter(hint) for name, hint in hints.items()}
    signature = inspect.signature(function)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        for name, value in signature.bind(*args, **kwargs).arguments.items():
            try:
                adapters[name].validate_python(value, strict=True)
            except (ValidationError, RecursionError) as error:
                got = repr(value) if len(repr(value)) <= SHOWN else f"{repr(value)[:SHOWN]}..."
                expected = signature.parameters[name].annotation
                raise ValueError(f"got {name}={got}, expected {expected}") from error
        return function(*args, **kwargs)

    return call  # type: ignore[return-value]
