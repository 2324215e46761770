"""The values that options of sampling accept. Python and the command line refuse another value with the same sentence.

This module imports nothing slow, so ``--help`` is fast.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ldm.util import bytes_of, nearest

PRECISIONS = ("32", "bf16")
# The names of ldm.models.diffusion.samplers and its schedule, which import torch.
SAMPLERS = ("ddim", "ddpm", "plms", "heun", "dpmpp_2m", "dpmpp_2m_sde", "unipc")
STOCHASTIC = ("ddim", "ddpm", "dpmpp_2m_sde")
SPACINGS = ("uniform", "trailing", "karras", "quad")
COMBINE = ("concat", "mean")  # how a pipeline of diffusers is shown several neighbours
OFFLOAD = ("none", "model", "sequential")
# Defaults of the arguments of requests, see rdm.sampling.ways and rdm.sampling.edit.
POOL = 20
TOP_M = 0.2
IMAGE_WEIGHT = NEGATIVE_WEIGHT = 0.5
REPEATS = 4


@dataclass(frozen=True)
class Value:
    """The values that an option accepts.

    Attributes:
        expected: a description of the values for error messages.
        read: converts a word of the command line to a value; raises ValueError if it cannot.
        fits: whether a value is accepted.
        names: the accepted names, if it is a choice among names.
    """

    expected: str
    read: Callable[[str], Any]
    fits: Callable[[Any], bool]
    names: tuple[str, ...] = ()

    def check(self, name: str, value: Any) -> None:
        """Checks the value of an option.

        Raises:
            ValueError: the option does not accept it.
        """
        if not self.fits(value):
            is_text = isinstance(value, str)
            got = f"an empty {name}" if is_text and not value.strip() else f"{name}={value!r}"
            raise ValueError(f"got {got}, expected {self.expected}{nearest(value, self.names) if is_text else ''}")

    def of_word(self, name: str, text: str) -> Any:
        """Returns the value that a word of the command line stands for.

        Raises:
            ValueError: the option does not accept it; the sentence is that of :meth:`check`.
        """
        value: Any = text
        with contextlib.suppress(ValueError):
            value = self.read(text)
        self.check(name, value)
        return value


def whole_or_text(text: str) -> int | str:
    """Returns a whole number, or the text as it is."""
    try:
        return int(text)
    except ValueError:
        return text


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_count(value: Any) -> bool:
    return _is_whole(value) and value >= 1


def _is_share(value: Any) -> bool:
    return _is_number(value) and 0 <= value <= 1


def _are_whole(values: Any, number: int) -> bool:
    return isinstance(values, tuple | list) and len(values) == number and all(map(_is_whole, values))


def _fits_memory(value: Any) -> bool:
    try:
        return _is_count(value) or (isinstance(value, str) and bytes_of(value) > 0)
    except ValueError:
        return False


def _size_of(text: str) -> int | list[int]:
    numbers = [int(part) for part in text.lower().split("x")]
    return numbers[0] if len(numbers) == 1 else numbers


def _is_size(value: Any) -> bool:
    sides = value if isinstance(value, tuple | list) and len(value) == 2 else (value,)
    return all(map(_is_count, sides))


def _count_or_number(text: str) -> int | float:
    return int(text) if text.isdigit() else float(text)


def one_of(*names: str) -> Value:
    """Returns the value of an option that accepts these names."""
    words = f"{', '.join(names[:-1])} or {names[-1]}"
    return Value(words, str, lambda value: isinstance(value, str) and value in names, names)


def _is_truth(value: Any) -> bool:
    return isinstance(value, bool)


COUNT = Value("a whole number of at least 1", int, _is_count)
COUNT_OR_NONE = Value("a whole number of at least 0", int, lambda value: _is_whole(value) and value >= 0)
NUMBER = Value("a finite number", float, _is_number)
NUMBER_OR_NONE = Value("a finite number", float, lambda value: value is None or _is_number(value))
CORRELATION = Value("a number from -1 to 1", float, lambda value: _is_number(value) and -1 <= value <= 1)
SHARE = Value("a number from 0 to 1", float, _is_share)
SHARE_ABOVE_0 = Value("a number above 0 and up to 1", float, lambda value: _is_share(value) and value > 0)
AT_LEAST_0 = Value("a number of at least 0", float, lambda value: _is_number(value) and value >= 0)
TIMES = Value(
    "a first and a last time, two whole numbers of at least 0 of which the last is not the smaller one",
    whole_or_text,
    lambda value: _are_whole(value, 2) and 0 <= value[0] <= value[1],
)
CHECKPOINT = Value("the path of a checkpoint", str, lambda value: bool(value) and isinstance(value, str))
PRECISION = one_of(*PRECISIONS)
SIDE_OR_MEMORY = Value(
    "a side in pixels or a size such as 2GB", lambda text: int(text) if text.isdigit() else text, _fits_memory
)
SWITCH = Value(
    "true, false or the name of a backend",
    str,
    lambda value: isinstance(value, bool) or (isinstance(value, str) and bool(value)),
)
TRUTH = Value("true or false", str, _is_truth)
SEED = Value("a whole number from 0 to 4294967295", int, lambda value: _is_whole(value) and 0 <= value < 2**32)
WORDS = Value("some words", str, lambda value: isinstance(value, str) and bool(value.strip()))
SIDES = Value(
    "pixels at the left, top, right and bottom: four whole numbers of at least 0, not all of them 0",
    whole_or_text,
    lambda value: _are_whole(value, 4) and min(value) >= 0 and any(value),
)
SIZE = Value("a side in pixels such as 64, or HEIGHTxWIDTH; in Python, [height, width]", _size_of, _is_size)
MOST_POPULAR = Value(
    "a fraction above 0 and up to 1, such as 0.2, or a number of rows, such as 500",
    _count_or_number,
    lambda value: _is_count(value) or (isinstance(value, float) and 0 < value <= 1),
)

# The arguments of requests and of loading a model, in Python and on the command line. None is refused only for those
# that have another default.
ARGUMENTS = {
    "k": COUNT,
    "neighbours": COUNT,
    "knn": COUNT,
    "n": COUNT,
    "n_samples": COUNT,
    "n_iter": COUNT,
    "n_rows": COUNT,
    "per_row": COUNT,
    "seed": SEED,
    "image_weight": NUMBER,
    "negative": WORDS,
    "negative_weight": NUMBER,
    "prompt": WORDS,
    "class_name": WORDS,
    "pool": COUNT,
    "by": one_of("text", "label"),
    "top_m": MOST_POPULAR,
    "weighted": TRUTH,
    "strength": SHARE,
    "repeats": COUNT,
    "size": SIZE,
    "outpaint": SIDES,
    "invert": TRUTH,
    "same_outline": NUMBER,
    "agree": COUNT,
}
OPTIONAL = (
    "k", "neighbours", "knn", "per_row", "negative", "prompt", "class_name", "strength", "size", "outpaint",
    "same_outline", "agree",
)  # fmt: skip
# Arguments that have no effect without one of others, and their defaults.
NEEDED = {
    "image_weight": (IMAGE_WEIGHT, ("image",)),
    "negative_weight": (NEGATIVE_WEIGHT, ("negative",)),
    "repeats": (REPEATS, ("mask", "outpaint")),
    "weaker_scale": (2.0, ("weaker",)),
    # Only on the command line; in Python, they are values of ``tokens``.
    "only_caption": (False, ("caption", "prompt", "from_file")),
    "omit_query": (False, ("caption", "prompt", "from_file")),
    "use_query": (False, ("image", "prompt", "from_file")),
    "only_picture": (False, ("image",)),
}


def check_arguments(**given: Any) -> None:
    """Checks arguments of a request, and that none of them lacks another without which it has no effect.

    Raises:
        ValueError: an argument does not accept its value, or has no effect.
    """
    for name, value in given.items():
        if name in ARGUMENTS and not (value is None and name in OPTIONAL):
            ARGUMENTS[name].check(name, value)
    check_needed(given)


def check_needed(given: Mapping[str, Any]) -> None:
    """Checks that each option that is given has those that it needs to have an effect.

    Raises:
        ValueError: an option has no effect without one that is not given.
    """
    for name, (default, others) in NEEDED.items():
        if given.get(name, default) != default and all(given.get(other) is None for other in others):
            words = " or ".join(other for other in others if other in given)
            raise ValueError(
                f"got {name}={given[name]!r} without {words}, which it needs to have an effect; give {words}, or leave "
                f"out {name}"
            )


def check_pool(pool: int, by: str, k: int | None) -> None:
    """Checks the number of rows that the neighbours of a class are drawn from.

    Args:
        pool: that number.
        by: how the rows of a class are found, see :func:`rdm.sampling.ways.classes`.
        k: number of neighbours; None if the model says it.

    Raises:
        ValueError: the pool is smaller than k, or rows are found by label, without a pool.
    """
    if by == "label" and pool != POOL:
        raise ValueError(
            f"got pool={pool} with by='label', which draws from no pool; leave out pool, or give by='text'"
        )
    if by == "text" and k is not None and pool < k:
        raise ValueError(f"got pool={pool}, expected at least the number of neighbours, which is {k}")
