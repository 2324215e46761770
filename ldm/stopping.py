"""What signals do: the process ends by an exception, so nothing half-written is left, and says how to go on."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from types import FrameType
from typing import Any

Handler = Callable[[int, FrameType | None], Any] | int | None


class Stopped(BaseException):
    """The process was told to stop. It is no ``Exception``, so only who means to handle it does.

    Attributes:
        number: the signal. The exit code of the process is 128 more.
        text: what was reached and how to go on, in one line.
    """

    def __init__(self, number: int, text: str = "") -> None:
        self.number = number
        self.text = text or ("interrupted" if number == signal.SIGINT else f"stopped by {signal.Signals(number).name}")
        super().__init__(self.text)


def stop_at_once(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
    """Handles a signal.

    Raises:
        Stopped: always.
    """
    raise Stopped(number)


@contextlib.contextmanager
def handled(handlers: Mapping[Any, Handler]) -> Iterator[None]:
    """Handles signals in the ``with`` block; they are handled as before afterwards.

    Processes that are forked meanwhile are left to the system: a signal ends them or, if it is ``SIGINT``, is ignored,
    as the terminal sends it to all processes and theirs is not the decision. Only the main thread of a process can
    handle signals; in another thread, nothing happens.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = set_handlers(handlers)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def set_handlers(handlers: Mapping[Any, Handler]) -> dict[int, Handler]:
    """Sets the handlers of signals as :func:`handled` does, and returns the former ones."""
    owner = os.getpid()

    def in_this_process(handler: Handler) -> Handler:
        if not callable(handler):
            return handler

        def call(number: int, frame: FrameType | None) -> None:
            if os.getpid() == owner:
                handler(number, frame)
            elif number != signal.SIGINT:
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)

        return call

    return {number: signal.signal(number, in_this_process(handler)) for number, handler in handlers.items()}


@contextlib.contextmanager
def going_on(how: str) -> Iterator[None]:
    """Adds to whatever stops the ``with`` block by a signal how its work is continued, as a part of a sentence."""
    try:
        yield
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt(f"{str(stop) or 'interrupted'}; {how}") from stop
    except Stopped as stop:
        raise Stopped(stop.number, f"{stop.text}; {how}") from stop
