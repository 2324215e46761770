"""What one bad input is, and what all kinds of bad inputs are made with."""

from __future__ import annotations

import random
import runpy
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
MARK = "executed"  # the file that bad inputs would make if something in them were run
TREE = "system"  # the folder of the tiny system within the folder of an attempt


@dataclass(frozen=True)
class Attempt:
    """A bad input together with the call that reads it.

    Attributes:
        what: what is bad about it, in a few words.
        call: the call; its working directory is the folder of the attempt.
        named: words of which a clear error has at least one, such as the file or the value; none for any words.
        refused: whether the input must be refused.
        command: whether the call is that of a command line, which says its errors on stderr.
    """

    what: str
    call: Callable[[], object]
    named: tuple[str, ...] = ()
    refused: bool = False
    command: bool = False


Make = Callable[[random.Random, int], Attempt]
"""Makes attempt number n of a kind in the working directory, with a generator of random numbers of its own."""


def command(what: str, script: str, *words: str, named: Sequence[str] = (), refused: bool = False) -> Attempt:
    """Returns the attempt that calls ``main.py`` or a script with some words."""

    def call() -> None:
        sys.argv = [script, *words]
        runpy.run_path(str(ROOT / script), run_name="__main__")

    return Attempt(what, call, tuple(named), refused, command=True)


def mutated(data: bytes, rng: random.Random) -> tuple[bytes, str]:
    """Returns some bytes with a change, and what it is."""
    changed, size = bytearray(data), max(1, len(data))
    where, length = rng.randrange(size), rng.choice((1, 2, 4, 8, 64))
    # Headers decide most, so that half of the changes are near the beginning or the end.
    if rng.random() < 0.5:
        where = min(size - 1, rng.randrange(256)) if rng.random() < 0.6 else max(0, size - 1 - rng.randrange(512))
    way = rng.choice(("cut", "flip", "noise", "zeros", "ones", "doubled", "removed", "inserted", "appended"))
    if way == "cut":
        del changed[where:]
    elif way == "flip" and changed:
        changed[where] ^= 1 << rng.randrange(8)
    elif way in ("noise", "zeros", "ones"):
        fill = {"noise": rng.randbytes(length), "zeros": bytes(length), "ones": b"\xff" * length}[way]
        changed[where : where + length] = fill[: max(0, len(changed) - where)]
    elif way == "doubled":
        changed[where:where] = changed[where : where + 64 * length]
    elif way == "removed":
        del changed[where : where + length]
    else:
        at = len(changed) if way == "appended" else where
        changed[at:at] = rng.randbytes(length)
    return bytes(changed), f"{way} at byte {where} of {size}"


_TEXTS = (
    *("", " ", "x", "None", "null", "nan", "inf", "-inf", "1e400", "-1", "0", "1.5", "true", "[]", "{}", "[1, 2", "}{"),
    *("../up", "/dev/null/x", ".", "/", "~", "*", "a" * 5000, "\x1b[31mred\x1b[0m", "\u202eabc", "\U0001f600" * 9),
    *("${oc.env:HOME}", "${model}", "!!python/object/apply:os.system [x]", "$(touch executed)", "`touch executed`"),
    *("; touch executed", "| touch executed", "%s%n%d", "{0.__class__}", "a\nb", "a\tb", "a\rb", "os.system", "--help"),
    *("99999999999999999999", "1_000", "٣", "²", "0x10", "1e3", "1,2", "=", "a=b", "=b", "a=", "\ud800", "é", "\x7f"),
)


def bad_text(rng: random.Random) -> str:
    """Returns a text that few options expect."""
    if rng.random() < 0.85:
        return rng.choice(_TEXTS)
    return "".join(chr(rng.choice((rng.randrange(1, 128), rng.randrange(1, 0xD800)))) for _ in range(rng.randrange(30)))


def bad_value(rng: random.Random, depth: int = 0) -> Any:
    """Returns a value of JSON that few keys expect."""
    way = rng.randrange(9 if depth < 2 else 7)
    if way < 3:
        return rng.choice((None, True, False, 0, -1, 10**9, 10**30, 0.5, -0.0, float("nan"), float("inf"), 1e308))
    if way < 7:
        return bad_text(rng).replace("\ud800", "?")
    if way == 7:
        return [bad_value(rng, depth + 1) for _ in range(rng.randrange(4))]
    return {bad_text(rng).replace("\ud800", "?"): bad_value(rng, depth + 1) for _ in range(rng.randrange(3))}


def replaced(content: Any, rng: random.Random) -> tuple[Any, str, str]:
    """Returns JSON values with one of them replaced, removed or added; with the place of the change, and its key."""
    at: list[tuple[Any, Any, str]] = []

    def walk(part: Any, path: str) -> None:
        for key, value in part.items() if isinstance(part, dict) else enumerate(part):
            at.append((part, key, f"{path}.{key}".lstrip(".")))
            if isinstance(value, dict | list):
                walk(value, at[-1][2])

    walk(content, "")
    if not at:
        return content, "nothing to change", ""
    part, key, path = rng.choice(at)
    way = rng.choice(("removed", "added", "other", "other", "other", "other"))
    if way == "removed":
        del part[key]
    elif way == "added" and isinstance(part, dict):
        part[bad_text(rng).replace("\ud800", "?") or "empty"] = bad_value(rng)
    else:
        part[key] = bad_value(rng)
    return content, f"{path} {way}", str(key)
