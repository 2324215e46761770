"""The numbers of classes: which names the classes of a data set have, and in which order."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from ldm.files import located, read_text

NO_CLASS = -1
LARGEST = 1_000_000  # a label above this is an identifier rather than the number of a class


@dataclass(frozen=True)
class Classes:
    """The classes of a data set.

    Attributes:
        names: their names, in the order of their numbers.
        are_numbers: whether the names in the data are the numbers themselves.
        some_without: whether there are pictures without a class.
    """

    names: Sequence[str]
    are_numbers: bool = False
    some_without: bool = False

    def number(self, name: str) -> int:
        """Returns the number of a class, or -1 for a picture without a class."""
        if not name:
            return NO_CLASS
        return max(int(name), NO_CLASS) if self.are_numbers else self._places[name]

    @cached_property
    def _places(self) -> dict[str, int]:
        return {name: number for number, name in enumerate(self.names)}


def sorted_classes(found: Iterable[str]) -> Classes:
    """Returns classes that are numbered in the sorted order of their names; an empty name is no class."""
    known = set(found)
    return Classes(sorted(known - {""}), some_without="" in known)


def numbered_classes(found: Iterable[str]) -> Classes:
    """Returns classes whose names are their numbers, if all are whole numbers; else in the order of their names.

    A negative number stands for no class.
    """
    everything = set(found)
    known = everything - {""}
    whole = bool(known) and all(name.removeprefix("-").isdecimal() and len(name) < 20 for name in known)
    if whole and (last := max(map(int, known))) <= LARGEST:
        some_without = "" in everything or any(name.startswith("-") for name in known)
        return Classes([str(number) for number in range(last + 1)], are_numbers=True, some_without=some_without)
    return sorted_classes(everything)


def listed_classes(listed: str | Sequence[str], found: Iterable[str]) -> Classes:
    """Returns classes that are numbered in the order of a list.

    Args:
        listed: the names, or a text file with one in each line.
        found: the names that the data set has.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a name is in the list twice, or a class of the data set is not in the list.
    """
    if isinstance(listed, str) and not located(listed).is_file():
        raise FileNotFoundError(f"class_list: no file at {listed!r}; expected one with a class in each line")
    names = read_text(listed).splitlines() if isinstance(listed, str) else [str(name) for name in listed]
    if len(set(names)) < len(names):
        raise ValueError("class_list: got a name twice, expected each class once")
    known = set(found)
    if missing := sorted(known - {"", *names}):
        raise ValueError(f"class_list: got a picture of class '{missing[0]}', which the list lacks; add it")
    return Classes(names, some_without="" in known)
